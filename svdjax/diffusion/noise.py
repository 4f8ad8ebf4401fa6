"""Noise levels: the sigmas that a sampler walks down, the ones that training draws, and noise per video."""

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.errors import UserError
from svdjax.typing import Array, Float, Int, Key, ndarray


@runtime_checkable
class Schedule(Protocol):
    """The noise levels of a sampling run."""

    def __call__(self, steps: int) -> Float[Array, " n"]:
        """``steps + 1`` strictly descending sigmas, the last of them 0 (float64 if x64 is enabled).

        Raises:
            UserError: ``steps`` is below 1, or more than the schedule has levels.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Karras:
    """Equal steps in sigma^(1/rho) (Karras et al. 2022, arXiv 2206.00364, Eq. 5); SVD's schedule."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0

    def __call__(self, steps: int) -> Float[Array, " n"]:
        """``steps + 1`` descending sigmas."""
        _check_steps(steps)
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return _then_zero(np.linspace(*ends, steps) ** self.rho)


@dataclass(frozen=True, kw_only=True)
class LogLinear:
    """Equal steps in ln(sigma)."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0

    def __call__(self, steps: int) -> Float[Array, " n"]:
        """``steps + 1`` descending sigmas."""
        _check_steps(steps)
        return _then_zero(np.geomspace(self.sigma_max, self.sigma_min, steps))


@dataclass(frozen=True, kw_only=True)
class AlignYourSteps:
    """Levels optimised for few steps (Sabour et al. 2024, arXiv 2404.14507), published for 10 steps of SVD.

    Other step counts interpolate ln(sigma) linearly, as the authors do. The last level becomes 0, as in
    every schedule here, so 10 steps end with .034 and 0. For a model with another range of noise levels than SVD's,
    ln(sigma) is stretched to it.
    """

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    levels: tuple[float, ...] = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)

    def __call__(self, steps: int) -> Float[Array, " n"]:
        """``steps + 1`` descending sigmas."""
        _check_steps(steps)
        position = np.linspace(0, 1, steps + 1)[:-1]
        known = np.linspace(0, 1, len(self.levels))
        levels = np.log(self.levels)
        share = (levels - levels[-1]) / (levels[0] - levels[-1])
        stretched = np.log(self.sigma_min) + share * np.log(self.sigma_max / self.sigma_min)
        return _then_zero(np.exp(np.interp(position, known, stretched)))


@cache
def discrete_sigmas() -> Float[ndarray, "1000"]:
    """The 1000 noise levels of SD 2.1, ascending from .0292 to 14.61.

    ``sqrt(beta)`` is linear from sqrt(.00085) to sqrt(.012); sigma^2 = (1 - abar) / abar.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_bar = np.cumprod(1 - betas)
    return np.sqrt((1 - alphas_bar) / alphas_bar)


@dataclass(frozen=True, kw_only=True)
class DiscreteSchedule:
    """A subset of SD 2.1's 1000 training levels, evenly spaced in the index (arXiv 2305.08891, Table 2).

    ``"trailing"`` starts at the noisiest level; ``"leading"`` starts below it and is what the released
    SD 2.1 pipelines use (first index 1).
    """

    spacing: Literal["leading", "trailing"] = "trailing"

    def __call__(self, steps: int) -> Float[Array, " n"]:
        """``steps + 1`` descending sigmas."""
        levels = discrete_sigmas()
        _check_steps(steps, most=len(levels) - 1)
        if self.spacing == "leading":
            index = np.arange(steps)[::-1] * (len(levels) // steps) + 1
        else:
            index = np.round(len(levels) - np.arange(steps) * (len(levels) / steps)).astype(int) - 1
        return _then_zero(levels[index])


def _check_steps(steps: int, most: int | None = None) -> None:
    if steps < 1 or (most is not None and steps > most):
        allowed = "at least 1" if most is None else f"1 to {most}"
        raise UserError(f"{steps} sampling steps: this noise schedule allows {allowed}")


def _then_zero(sigmas: Float[ndarray, " n"]) -> Float[Array, " n+1"]:
    return jnp.asarray(np.append(sigmas, 0.0))


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Training noise levels: ln(sigma) ~ N(mean, std^2) (EDM, Table 1: P_mean and P_std)."""

    mean: float
    std: float

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw sigmas, one per video and shared by its frames: ``shape`` is ``(b,)``."""
        return jnp.exp(self.mean + self.std * jax.random.normal(key, shape))


@dataclass(frozen=True, kw_only=True)
class DiscreteLevels:
    """Training noise levels: those of SD 2.1, each of the 1000 as often (SVD paper, appendix E: the ablations)."""

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw sigmas, one per video and shared by its frames: ``shape`` is ``(b,)``."""
        return jax.random.choice(key, jnp.asarray(discrete_sigmas(), jnp.float32), shape)


# SVD paper, appendix D and E: more noise as resolution and the number of frames go up.
# P_std is 1.0 in the low-resolution stages, not the 1.2 of EDM.
STAGES = MappingProxyType(
    {
        "image": LogNormal(mean=-1.2, std=1.0),
        "video_256x384": LogNormal(mean=-1.2, std=1.0),
        "video_320x576": LogNormal(mean=0.0, std=1.0),
        "text_to_video_576x1024": LogNormal(mean=0.5, std=1.4),
        "image_to_video_320x576": LogNormal(mean=0.7, std=1.6),
        "image_to_video_576x1024": LogNormal(mean=1.0, std=1.6),
        "interpolation": LogNormal(mean=1.0, std=1.2),
    }
)


def row_keys(key: Key[Array, ""], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """A key for each video that depends on the video's own number, not on its place in the batch.

    Args:
        key: randomness of the run, or of a step.
        index: number of each video in the whole run, or in the step's global batch.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def video_noise(
    key: Key[Array, ""], index: Int[Array, " b"], shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "b ..."]:
    """Standard normal noise that depends on a video's own number, not on its place in the batch.

    Args:
        key: randomness of the run.
        index: number of each video in the whole run, over all batches and devices.
        shape: shape for one video, ``(t, h, w, c)``.
        dtype: float32 or float64.
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(row_keys(key, index))


def with_offset(
    noise: Float[Array, "b t h w c"], key: Key[Array, ""], index: Int[Array, " b"], strength: float
) -> Float[Array, "b t h w c"]:
    """Noise plus ``strength`` times normal noise that each channel of a video has in common.

    Noise that is drawn pixel by pixel hides a picture's mean colour last of all, so that a model whose levels end
    where some of it still shows never learns to choose it; this hides it, too (Guttenberg 2023, "Diffusion with
    offset noise").

    Args:
        noise: standard normal. key: randomness of the run, not that of ``noise``; see `video_noise` for ``index``.
    """
    return noise + strength * video_noise(key, index, (1, 1, 1, noise.shape[-1]), noise.dtype)


def initial_noise(
    key: Key[Array, ""],
    index: Int[Array, " b"],
    shape: tuple[int, ...],
    sigma_max: float | Float[Array, ""],
) -> Float[Array, "b t h w c"]:
    """What a sampler starts from: noise of standard deviation sqrt(1 + sigma_max^2).

    That is the deviation of unit-variance data plus noise of sigma_max (700.0007 for SVD).
    ``shape`` is ``(t, h, w, c)`` of the latents of one video; see `video_noise` for ``index``.
    """
    return video_noise(key, index, shape) * jnp.sqrt(1 + jnp.square(sigma_max))
