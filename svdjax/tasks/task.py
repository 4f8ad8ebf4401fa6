"""What a task is: the one place that knows what a model is conditioned on, in training and in sampling alike."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from svdjax.models.svd import SVD, SVDConfig
from svdjax.tasks.conditioning import Conditioning
from svdjax.typing import Array, Key


@runtime_checkable
class Task(Protocol):
    """One way to condition a model. A request is whatever a user asks for, and what a training clip answers."""

    config: SVDConfig

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

    def unconditional(self, model: SVD, cond: Conditioning) -> Conditioning:
        """The branch that guidance moves away from, and what training puts in place of a dropped condition."""
        ...
