"""What a task is: the one place that knows what a model is conditioned on, in training and in sampling alike."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.tasks.conditioning import Conditioning
from svdjax.typing import Array, Float, Key, ndarray


@runtime_checkable
class Task(Protocol):
    """One way to condition a model. A request is whatever a user asks for, and what a training clip answers.

    A request is a pytree whose arrays have the batch first. In training `prepare` (on the host) and
    `request_from_batch` (on the devices) make it of clips; in sampling `request` (on the host) and `complete` (on
    the devices) make it of what a user gives. From there on both go the same way, through `condition`.

    Attributes:
        picture: index of the frame of a training clip that its request shows, None if it may be any; where latents
            are kept, it is the one whose pixels stay.
        per_frame: whether a request says something of each frame, so that the one which a clip answers is for as
            many frames.
    """

    config: SVDConfig
    picture: int | None
    per_frame: bool

    def request(self, defaults: SamplingDefaults, **inputs: Any) -> Any:
        """On the host: the request of a user for videos of one size, all but what `complete` draws.

        Args:
            defaults: size, and the scalars that every video gets.
            inputs: what this task is asked by, under names of its own; one entry for each video.

        Raises:
            UserError: the model lacks a network that this task needs, or an input does not fit.
        """
        ...

    def inputs_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """On the host: the inputs of `request` that a batch of clips (``video`` in [-1, 1]) would answer.

        Raises:
            UserError: the batch lacks what this task is conditioned on.
        """
        ...

    def complete(self, request: Any, keys: Key[Array, " b"]) -> Any:
        """On the devices: add what is random in a request, drawn for each video with its own key."""
        ...

    def finish(self, request: Any, frames: Float[ndarray, "b t h w 3"]) -> Float[ndarray, "b t h w 3"]:
        """On the host: put frames that the request itself holds in the place of generated ones."""
        ...

    def following(self, request: Any, frames: Float[ndarray, "b k h w 3"]) -> Any:
        """On the host: the request for videos that begin with these frames, the last of those already made."""
        ...

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """On the host: make of a batch what may go to a device, e.g. tokens of its captions.

        Raises:
            UserError: the batch lacks what this task is conditioned on.
        """
        ...

    def request_from_batch(self, batch: Mapping[str, Array], keys: Key[Array, " b"]) -> Any:
        """The request that each clip of a prepared batch answers; the randomness of each video has its own key.

        Where the batch holds what an encoder would compute, the request carries it.
        """
        ...

    def encoded(
        self, model: SVD, batch: Mapping[str, Array], keys: Key[Array, " b"], draws: int
    ) -> dict[str, Array]:
        """What the encoders make of a prepared batch, under the names that :meth:`request_from_batch` looks for.

        Where the encoder's input is random, the results for ``draws`` inputs, or for 0 that part of the batch which
        it is made from.
        """
        ...

    def condition(self, model: SVD, request: Any, frames: int) -> Conditioning:
        """Turn a request for videos of that many frames into conditioning, the same for training and sampling."""
        ...

    def unconditional(self, model: SVD, cond: Conditioning, request: Any = None) -> Conditioning:
        """The branch that guidance moves away from, and what training puts in place of a dropped condition.

        A user's ``request`` may say what to move away from.
        """
        ...
