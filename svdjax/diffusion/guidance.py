"""Classifier-free guidance: how the conditional and the unconditional prediction are combined."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.diffusion.denoiser import ConditionalDenoise, Denoise, per_video
from svdjax.typing import Array, Float, PyTree, ndarray

Video = Float[Array, "b t h w c"]


@runtime_checkable
class Guidance(Protocol):
    """Combines two predictions of the clean latents (Ho & Salimans 2022, arXiv 2207.12598)."""

    def __call__(self, cond_x0: Video, uncond_x0: Video, sigma: Float[Array, " b"]) -> Video:
        """The guided prediction at noise level ``sigma``."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoGuidance:
    """The conditional prediction alone; `guided` then skips the unconditional half of the batch."""

    def __call__(self, cond_x0: Video, uncond_x0: Video, sigma: Float[Array, " b"]) -> Video:
        """``cond_x0``."""
        return cond_x0


class _FrameScales(ABC):
    """Guidance with one scale per frame: uncond + scale_t (cond - uncond), at every noise level."""

    @abstractmethod
    def scales(self, frames: int) -> Float[ndarray, " t"]:
        """The scale of each frame; 1 is the conditional prediction."""

    def __call__(self, cond_x0: Video, uncond_x0: Video, sigma: Float[Array, " b"]) -> Video:
        """Extrapolate from the unconditional to the conditional prediction, frame by frame."""
        scales = jnp.asarray(self.scales(cond_x0.shape[1]), cond_x0.dtype)[:, None, None, None]
        return uncond_x0 + scales * (cond_x0 - uncond_x0)


@dataclass(frozen=True)
class ConstantGuidance(_FrameScales):
    """The same scale for every frame."""

    scale: float

    def scales(self, frames: int) -> Float[ndarray, " t"]:
        """``scale``, for each frame."""
        return np.full(frames, self.scale)


@dataclass(frozen=True)
class LinearGuidance(_FrameScales):
    """SVD's: from ``first`` at the given frame to ``last`` at the farthest (SVD 1 to 2.5, XT 1.5 to 3)."""

    first: float
    last: float

    def scales(self, frames: int) -> Float[ndarray, " t"]:
        """Equal steps; a single frame gets ``first``."""
        return np.linspace(self.first, self.last, frames)


@dataclass(frozen=True)
class TriangleGuidance(_FrameScales):
    """SV3D's (arXiv 2403.12008): ``min`` at both ends (an orbit ends where it began), ``max`` midway."""

    min: float = 1.0
    max: float = 2.5

    def scales(self, frames: int) -> Float[ndarray, " t"]:
        """A triangle wave of period 1 over the clip; a single frame gets ``min``."""
        v = np.linspace(0, 1, frames)
        return self.min + (self.max - self.min) * 2 * np.abs(v - np.floor(v + 0.5))


@dataclass(frozen=True)
class TrapezoidGuidance(_FrameScales):
    """Rises from ``min`` to ``max`` over the first ``edge`` part of the frames, and falls over the last.

    (The reference code of SV4D leaves the middle at 1 whatever its maximum; here it is ``max``.)
    """

    min: float = 1.0
    max: float = 2.5
    edge: float = 0.1

    def scales(self, frames: int) -> Float[ndarray, " t"]:
        """``int(edge * frames)`` frames on each slope, both ends included."""
        rise = np.linspace(self.min, self.max, int(frames * self.edge))
        return np.concatenate([rise, np.full(frames - 2 * len(rise), self.max), rise[::-1]])


@dataclass(frozen=True)
class IntervalGuidance:
    """``inner`` for sigma_min < sigma <= sigma_max, else the conditional prediction (arXiv 2404.07724)."""

    inner: Guidance
    sigma_min: float
    sigma_max: float

    def __call__(self, cond_x0: Video, uncond_x0: Video, sigma: Float[Array, " b"]) -> Video:
        """The guided prediction inside the interval."""
        active = per_video((self.sigma_min < sigma) & (sigma <= self.sigma_max))
        return jnp.where(active, self.inner(cond_x0, uncond_x0, sigma), cond_x0)


def guided(denoiser: ConditionalDenoise, guidance: Guidance, cond: PyTree, uncond: PyTree) -> Denoise:
    """A denoiser of latents alone, for the samplers.

    Args:
        denoiser: D(x, sigma, cond).
        guidance: combines the two predictions.
        cond: conditioning; every array has the batch first.
        uncond: the same structure, without what guidance should strengthen. Unused by `NoGuidance`.

    Returns:
        D(x, sigma), which calls the network once, on the batch [uncond, cond] of twice the size.
    """
    if isinstance(guidance, NoGuidance):
        return lambda x, sigma: denoiser(x, sigma, cond)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)

    def denoise(x: Video, sigma: Float[Array, " b"]) -> Video:
        twice = denoiser(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma]), both)
        uncond_x0, cond_x0 = jnp.split(twice, 2)
        return guidance(cond_x0, uncond_x0, sigma)

    return denoise
