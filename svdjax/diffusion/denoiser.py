"""The denoiser D(x, sigma, cond) -> x0: a network and what its input and output mean."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from svdjax.diffusion.noise import discrete_sigmas
from svdjax.typing import Array, Float, PyTree, Shaped

# (c_in * x, c_noise, cond) -> output, shaped like x.
Network = Callable[[Float[Array, "b t h w c"], Float[Array, " b"], PyTree], Float[Array, "b t h w c"]]
# (x, sigma, cond) -> x0, and the same with its conditioning bound: all that a sampler knows.
ConditionalDenoise = Callable[[Float[Array, "b t h w c"], Float[Array, " b"], PyTree], Float[Array, "b t h w c"]]
Denoise = Callable[[Float[Array, "b t h w c"], Float[Array, " b"]], Float[Array, "b t h w c"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Scalings:
    """Karras et al. 2022 (EDM, arXiv 2206.00364), Eq. 7: D = c_skip x + c_out F(c_in x, c_noise)."""

    c_skip: Float[Array, " b"]
    c_out: Float[Array, " b"]
    c_in: Float[Array, " b"]
    c_noise: Float[Array, " b"]


@runtime_checkable
class Preconditioning(Protocol):
    """What a network's input and output mean at each noise level."""

    def __call__(self, sigma: Float[Array, " b"]) -> Scalings:
        """The scalings for positive ``sigma``, in its dtype."""
        ...


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Plain EDM (Table 1, last column): unit variance of input and target for data of std ``sigma_data``."""

    sigma_data: float = 0.5

    def __call__(self, sigma: Float[Array, " b"]) -> Scalings:
        """The scalings at each sigma."""
        total = jnp.hypot(sigma, self.sigma_data)
        return Scalings(
            c_skip=(self.sigma_data / total) ** 2,
            c_out=sigma * self.sigma_data / total,
            c_in=1 / total,
            c_noise=jnp.log(sigma) / 4,
        )


@dataclass(frozen=True, kw_only=True)
class VPrediction:
    """SVD's (paper, appendix D): EDM at sigma_data 1 for output v = (eps - sigma x0) / sqrt(1 + sigma^2).

    This is SD 2.1's v in EDM's terms: with x = x0 + sigma eps, c_skip x + c_out v = x0.
    """

    def __call__(self, sigma: Float[Array, " b"]) -> Scalings:
        """The scalings at each sigma."""
        edm = EDM(sigma_data=1.0)(sigma)
        return dataclasses.replace(edm, c_out=-edm.c_out)


@dataclass(frozen=True, kw_only=True)
class DiscreteV:
    """SD 2.1 at 768 pixels: output v, told the nearest of the 1000 training levels by its index."""

    def __call__(self, sigma: Float[Array, " b"]) -> Scalings:
        """The scalings at each sigma; only ``c_noise`` is quantised."""
        return dataclasses.replace(VPrediction()(sigma), c_noise=_nearest_index(sigma))


@dataclass(frozen=True, kw_only=True)
class DiscreteEps:
    """SD 2.1 base: output eps, so D = x - sigma F, told the nearest of the 1000 training levels."""

    def __call__(self, sigma: Float[Array, " b"]) -> Scalings:
        """The scalings at each sigma; only ``c_noise`` is quantised."""
        return Scalings(
            c_skip=jnp.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / jnp.hypot(sigma, 1.0),
            c_noise=_nearest_index(sigma),
        )


def _nearest_index(sigma: Float[Array, " b"]) -> Float[Array, " b"]:
    levels = jnp.asarray(discrete_sigmas(), sigma.dtype)
    return jnp.argmin(jnp.abs(sigma[:, None] - levels), axis=1).astype(sigma.dtype)


# Names used by model configurations.
PRECONDITIONINGS = MappingProxyType(
    {"v": VPrediction(), "edm": EDM(), "discrete_v": DiscreteV(), "discrete_eps": DiscreteEps()}
)


@dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, cond) -> x0: everything else in this package knows the network through it only."""

    network: Network
    preconditioning: Preconditioning

    def __call__(
        self, x: Float[Array, "b t h w c"], sigma: Float[Array, " b"], cond: PyTree
    ) -> Float[Array, "b t h w c"]:
        """The clean latents that the noisy ones come from (EDM, Eq. 7).

        Args:
            x: latents plus noise of standard deviation ``sigma``; float32 or float64, the result's dtype.
            sigma: positive noise level of each video.
            cond: handed to the network as it is.
        """
        scalings = self.preconditioning(sigma.astype(x.dtype))
        output = self.network(per_video(scalings.c_in) * x, scalings.c_noise, cond)
        return per_video(scalings.c_skip) * x + per_video(scalings.c_out) * output.astype(x.dtype)


def per_video(values: Shaped[Array, " b"]) -> Shaped[Array, "b 1 1 1 1"]:
    """Shape one value per video so that it broadcasts over ``b t h w c``."""
    return values[:, None, None, None, None]
