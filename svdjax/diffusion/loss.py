"""The training loss: squared error of the denoised latents, weighted by noise level."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from svdjax.diffusion.denoiser import ConditionalDenoise, per_video
from svdjax.typing import Array, Float, PyTree


@runtime_checkable
class Weighting(Protocol):
    """How much an error at each noise level counts: 1 / c_out^2 makes it the plain error of the output."""

    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight at each positive sigma."""
        ...


@dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

    sigma_data: float = 0.5

    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight at each sigma."""
        return 1 / sigma**2 + 1 / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class VWeighting:
    """(1 + sigma^2) / sigma^2 (SVD paper, appendix D): the squared error of the v prediction."""

    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight at each sigma."""
        return EDMWeighting(sigma_data=1.0)(sigma)


@dataclass(frozen=True, kw_only=True)
class EpsWeighting:
    """1 / sigma^2: the squared error of the eps prediction."""

    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight at each sigma."""
        return 1 / sigma**2


@dataclass(frozen=True, kw_only=True)
class UnitWeighting:
    """1: the squared error of the denoised latents."""

    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight at each sigma."""
        return jnp.ones_like(sigma)


def denoising_loss(
    denoiser: ConditionalDenoise,
    x0: Float[Array, "b t h w c"],
    noise: Float[Array, "b t h w c"],
    sigma: Float[Array, " b"],
    cond: PyTree,
    weighting: Weighting,
) -> Float[Array, " b"]:
    """Weighted error of each video: w(sigma) mean((D(x0 + sigma noise; sigma) - x0)^2) (EDM, Eq. 2 and 8).

    Args:
        denoiser: D(x, sigma, cond) of the model in training.
        x0: clean latents, float32 or float64.
        noise: standard normal, or that with an offset (`with_offset`).
        sigma: one positive noise level per video, shared by its frames.
        cond: conditioning of the videos.
        weighting: 1 / c_out^2 of the denoiser's preconditioning is the usual choice.
    """
    x = x0 + per_video(sigma.astype(x0.dtype)) * noise
    error = denoiser(x, sigma, cond) - x0
    return weighting(sigma) * jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
