"""Multi-view: a picture of an object becomes an orbit around it (SVD-MV of the paper; SV3D_u and SV3D_p)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.diffusion.noise import LogNormal
from svdjax.errors import UserError
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.tasks.conditioning import Conditioning, embed_scalars
from svdjax.tasks.image_to_video import ImageRequest, ImageToVideo
from svdjax.typing import AnyArray, Array, Float, Key, ndarray

ELEVATION = 10.0  # degrees; what the script that came with SV3D takes

SV3D_NOISE_AUG = LogNormal(mean=math.log(1e-5), std=0.0)  # one level, always


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ViewsRequest(ImageRequest):
    """What a user asks for, and what a clip of an orbit answers: a picture, and where the cameras stand.

    Attributes:
        elevation: degrees above the object's equator, of each video or of each view; None where it is not read.
        azimuths: degrees of each view on the orbit, growing anticlockwise as seen from above, from any place on;
            None where they are not read.
    """

    elevation: Float[AnyArray, " b"] | Float[AnyArray, "b t"] | None = None
    azimuths: Float[AnyArray, "b t"] | None = None


def _relative(azimuths: Float[AnyArray, "b t"]) -> Float[AnyArray, "b t"]:
    """Degrees in [0, 360) from the last view's azimuth on."""
    return (azimuths - azimuths[:, -1:]) % 360


# What the scalars of the vector conditioning are, by name. The paper does not say in what unit elevation enters: in
# degrees here, for in radians its sinusoids would hardly move. SV3D's are its released code's (arXiv 2403.12008).
_VALUES: Mapping[str, Callable[[ViewsRequest], Array]] = MappingProxyType(
    {
        "fps": lambda request: request.fps - 1,
        "motion_bucket": lambda request: request.motion_bucket,
        "noise_aug": lambda request: request.noise_aug,
        "elevation": lambda request: request.elevation,
        "polar": lambda request: jnp.deg2rad(90 - request.elevation),
        "azimuth": lambda request: jnp.deg2rad(_relative(request.azimuths)),
    }
)


@dataclass(frozen=True, kw_only=True)
class MultiView:
    """The multi-view task of one model configuration, whose ``scalars`` say which model it is.

    With ``fps`` it is one that comes from image to video (SVD-MV): the picture is the first view, noised at random
    levels in training. Without, it is SV3D: the picture is the last view, where the orbit closes, all but clean.
    """

    config: SVDConfig

    @property
    def picture(self) -> int:
        """Index of the view that the picture shows."""
        return self._image.picture

    @property
    def per_frame(self) -> bool:
        """Whether it reads poses, which each view has its own of."""
        return bool(self._poses())

    @property
    def _image(self) -> ImageToVideo:
        """The part of the task that is the same as in image to video."""
        if self._reads("fps"):
            return ImageToVideo(config=self.config)
        return ImageToVideo(config=self.config, picture=-1, noise_aug=SV3D_NOISE_AUG)

    def _reads(self, *names: str) -> bool:
        return any(name in names for name, _ in self.config.scalars)

    def _poses(self) -> tuple[str, ...]:
        """The poses that the model reads, by the names that they have in requests and in batches."""
        reads = {"elevation": self._reads("elevation", "polar"), "azimuths": self._reads("azimuth")}
        return tuple(name for name in reads if reads[name])

    def request(
        self,
        defaults: SamplingDefaults,
        *,
        images: Float[ndarray, "b h w 3"],
        elevation: Float[ndarray, " b"] | Float[ndarray, "b t"] | None = None,
        azimuths: Float[ndarray, "b t"] | None = None,
    ) -> ViewsRequest:
        """Ask for orbits around the objects in pictures.

        Args:
            defaults: their size, and the scalars of all of them.
            images: float32 in [-1, 1].
            elevation: of the cameras, in degrees; None is 10.
            azimuths: of the cameras, in degrees; None is a whole turn in equal steps.

        Raises:
            UserError: a pose is given that the model does not read, azimuths are not those of one turn, or whatever
                image to video refuses.
        """
        videos, frames = len(images), defaults.frames
        given = {"elevation": elevation, "azimuths": azimuths}
        for name, values in given.items():
            if values is not None and name not in self._poses():
                raise UserError(f"--{name}: this model does not read it: leave it out, or use one that does")
        if azimuths is not None:
            _check_turn(azimuths, frames)
        if elevation is not None and elevation.ndim == 2 and elevation.shape[1] != frames:
            raise UserError(
                f"--elevation: {elevation.shape[1]} given for {frames} views: give one, or one for each"
            )
        even = 360 / frames * np.arange(1, frames + 1, dtype=np.float32) % 360
        usual = {"elevation": np.full(videos, ELEVATION, np.float32), "azimuths": np.tile(even, (videos, 1))}
        poses = {name: usual[name] if given[name] is None else given[name] for name in self._poses()}
        return ViewsRequest(**vars(self._image.request(defaults, images=images)), **poses)

    def inputs_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``images``: the views that orbits are asked by; ``elevation`` and ``azimuths`` as far as they are read.

        Raises:
            UserError: the batch lacks them.
        """
        self._check(batch)
        return self._image.inputs_from_batch(batch) | {name: batch[name] for name in self._poses()}

    def complete(self, request: ViewsRequest, keys: Key[Array, " b"]) -> ViewsRequest:
        """Add the noise on the picture."""
        return self._image.complete(request, keys)

    def following(self, request: ViewsRequest, frames: Float[ndarray, "b k h w 3"]) -> ViewsRequest:
        """There is none: an orbit closes.

        Raises:
            UserError: always.
        """
        del request, frames
        raise UserError("--windows: an orbit has no continuation: ask for more --frames instead")

    def finish(self, request: ViewsRequest, frames: Float[ndarray, "b t h w 3"]) -> Float[ndarray, "b t h w 3"]:
        """The views of SV3D with the picture itself as the last one; those of SVD-MV as they are."""
        if self.picture == 0:
            return frames
        height, width = frames.shape[2:4]
        last = np.asarray(request.image)[:, None, :height, :width].astype(frames.dtype)
        return np.concatenate([frames[:, :-1], last], axis=1)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch without its captions.

        Raises:
            UserError: it lacks poses that the model reads, or what image to video needs.
        """
        self._check(batch)
        return self._image.prepare(batch)

    def _check(self, batch: Mapping[str, Any]) -> None:
        if missing := [name for name in self._poses() if name not in batch]:
            raise UserError(
                f"clips without {' and '.join(missing)}, which this multi-view model reads: give orbits that are "
                "annotated with them, and set --data.sampling.views"
            )

    def request_from_batch(self, batch: Mapping[str, Array], keys: Key[Array, " b"]) -> ViewsRequest:
        """The request that each clip of an orbit answers: its first view, or its last, and its poses.

        Args:
            batch: as of :meth:`ImageToVideo.request_from_batch`; and ``elevation`` [b t] or [b]
                and ``azimuths`` [b t] in degrees, as far as they are read.
            keys: randomness of each video's noise and of its level.
        """
        poses = {name: batch[name] for name in self._poses()}
        return ViewsRequest(**vars(self._image.request_from_batch(batch, keys)), **poses)

    def encoded(
        self, model: SVD, batch: Mapping[str, Array], keys: Key[Array, " b"], draws: int
    ) -> dict[str, Array]:
        """As of :meth:`ImageToVideo.encoded`, of the view that the picture shows."""
        return self._image.encoded(model, batch, keys, draws)

    def condition(self, model: SVD, request: ViewsRequest, frames: int) -> Conditioning:
        """Turn a request into conditioning, the same for training and sampling.

        Args:
            model: holds the image encoder and the VAE.
            request: a batch of pictures and poses.
            frames: number of views t.

        Returns:
            The picture as image to video takes it, and the scalars that the model is told, each view's own.
        """
        values = {name: _VALUES[name](request) for name, _ in self.config.scalars}
        return dataclasses.replace(
            self._image.condition_on_picture(model, request, frames),
            vector=embed_scalars(self.config.scalars, values, frames),
        )

    def unconditional(self, model: SVD, cond: Conditioning, request: ViewsRequest | None = None) -> Conditioning:
        """Zero token, zero latent, the same scalars."""
        return self._image.unconditional(model, cond, request)


def _check_turn(azimuths: Float[ndarray, "b t"], frames: int) -> None:
    """Orbits are learned in one direction, once around.

    Raises:
        UserError: these go otherwise, or are of another number.
    """
    if azimuths.shape[1] != frames:
        raise UserError(f"azimuths: {azimuths.shape[1]} given for {frames} views: give one for each")
    if (np.diff(_relative(azimuths)[:, :-1]) < 0).any():
        raise UserError(
            "azimuths: must rise (anticlockwise from above), at most one turn, to the picture's own: sort them"
        )
