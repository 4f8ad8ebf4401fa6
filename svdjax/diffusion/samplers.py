"""Samplers: from noise to clean latents, knowing only a denoiser D(x, sigma) -> x0 and a list of sigmas.

A sampler is one update rule; what a step is made of is shared. All work on x = x0 + sigma eps, so D
gives eps = (x - D) / sigma, and the probability flow ODE is dx/dsigma = eps (Karras et al. 2022, EDM,
arXiv 2206.00364, Eq. 1 and 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from svdjax.diffusion.denoiser import Denoise
from svdjax.diffusion.noise import video_noise
from svdjax.typing import Array, Float, Int, Key

Video = Float[Array, "b t h w c"]
Sigma = Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run, from noise level ``sigma`` down to ``target``.

    Attributes:
        sigma: noise level of the latents.
        target: the next noise level; 0 in the last step.
        previous_sigma: noise level of the step before; infinite in the first step, so that multistep rules
            give the past no weight.
        previous_x0: what D gave in the step before; zeros in the first.
        part: this step's part of the run, 1 / (number of steps).
        normal: draws standard normal noise shaped like the latents, the same at every call.
    """

    sigma: Sigma
    target: Sigma
    previous_sigma: Sigma
    previous_x0: Video
    part: Sigma
    normal: Callable[[], Video]


# D with one sigma for all videos.
UniformDenoise = Callable[[Video, Sigma], Video]


@runtime_checkable
class Sampler(Protocol):
    """One update rule."""

    def __call__(self, denoise: UniformDenoise, x: Video, step: Step) -> tuple[Video, Video]:
        """Go one step down.

        Returns:
            The latents at ``step.target``, and what D gave for the ones that came in (after any churn).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise added before each step, to correct the errors of earlier ones (EDM, Alg. 2, lines 4 to 6).

    Attributes:
        amount: S_churn; 0 turns it off.
        sigma_min: S_tmin, the lowest noise level that is churned.
        sigma_max: S_tmax, the highest.
        noise: S_noise, the standard deviation of what is added.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = float("inf")
    noise: float = 1.0

    def __call__(self, x: Video, step: Step) -> tuple[Video, Sigma]:
        """The latents and their noise level after churning."""
        if self.amount == 0:
            return x, step.sigma
        inside = (self.sigma_min <= step.sigma) & (step.sigma <= self.sigma_max)
        gamma = jnp.where(inside, jnp.minimum(self.amount * step.part, 2**0.5 - 1), 0.0)
        added = step.sigma * jnp.sqrt(gamma * (gamma + 2))
        return x + added * self.noise * step.normal(), step.sigma * (1 + gamma)


def _follow_eps(x: Video, x0: Video, ratio: Sigma) -> Video:
    """An Euler step to ``ratio`` times the noise level: x + (target - sigma) eps, exactly x0 at ratio 0."""
    return x0 + ratio * (x - x0)


@dataclass(frozen=True, kw_only=True)
class Euler:
    """First order (EDM, Alg. 2 without lines 9 to 11); SVD's sampler, with no churn."""

    churn: Churn = Churn()

    def __call__(self, denoise: UniformDenoise, x: Video, step: Step) -> tuple[Video, Video]:
        """One step; see `Sampler`."""
        x, sigma = self.churn(x, step)
        x0 = denoise(x, sigma)
        return _follow_eps(x, x0, step.target / sigma), x0


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Second order with two calls of D per step, one in the last (EDM, Alg. 2; Alg. 1 without churn)."""

    churn: Churn = Churn()

    def __call__(self, denoise: UniformDenoise, x: Video, step: Step) -> tuple[Video, Video]:
        """One step; see `Sampler`."""
        x, sigma = self.churn(x, step)
        x0 = denoise(x, sigma)
        euler = _follow_eps(x, x0, step.target / sigma)

        def corrected() -> Video:
            eps = (x - x0) / sigma
            eps_at_target = (euler - denoise(euler, step.target)) / step.target
            return x + (step.target - sigma) * (eps + eps_at_target) / 2

        return jax.lax.cond(step.target > 0, corrected, lambda: euler), x0


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Song et al. 2020 (arXiv 2010.02502), Eq. 12 and 16, which in x0 + sigma eps is an Euler step and noise.

    The step goes down to a lower level than the target, and fresh noise lifts it to the target. With
    alpha = 1 / (1 + sigma^2) the deviation of that noise, Eq. 16 over sqrt(alpha), is
    eta target sqrt(1 - (target / sigma)^2). At ``eta`` 0 this is `Euler`; at 1 it is ancestral sampling.
    """

    eta: float = 0.0

    def __call__(self, denoise: UniformDenoise, x: Video, step: Step) -> tuple[Video, Video]:
        """One step; see `Sampler`."""
        x0 = denoise(x, step.sigma)
        ratio = step.target / step.sigma
        if self.eta == 0:
            return _follow_eps(x, x0, ratio), x0
        lifted = self.eta * jnp.sqrt(1 - ratio**2)
        x = _follow_eps(x, x0, ratio * jnp.sqrt(1 - lifted**2))
        return x + step.target * lifted * step.normal(), x0


EulerAncestral = partial(DDIM, eta=1.0)


@dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """Second order with one call of D per step (Lu et al. 2022, arXiv 2211.01095, Alg. 2).

    x0 is extrapolated linearly in lambda = -ln(sigma) from this step and the one before. ``eta`` > 0 solves
    the reverse SDE in place of the ODE; 1 is the paper's SDE-DPM-Solver++(2M).
    """

    eta: float = 0.0

    def __call__(self, denoise: UniformDenoise, x: Video, step: Step) -> tuple[Video, Video]:
        """One step; see `Sampler`."""
        x0 = denoise(x, step.sigma)
        # h_i = lambda_i - lambda_(i-1). To sigma 0, where h is infinite, the step is of first order: h = 0.
        h = jnp.log(step.sigma / jnp.where(step.target > 0, step.target, step.sigma))
        extrapolated = x0 + h / (2 * jnp.log(step.previous_sigma / step.sigma)) * (x0 - step.previous_x0)
        ratio = step.target / step.sigma  # exp(-h)
        x = _follow_eps(x, extrapolated, ratio ** (1 + self.eta))
        if self.eta == 0:
            return x, x0
        return x + step.target * jnp.sqrt(1 - ratio ** (2 * self.eta)) * step.normal(), x0


DPMpp2MSDE = partial(DPMpp2M, eta=1.0)

# Names used by configurations and the command line.
SAMPLERS = MappingProxyType(
    {
        "euler": Euler(),
        "heun": Heun(),
        "dpmpp_2m": DPMpp2M(),
        "dpmpp_2m_sde": DPMpp2MSDE(),
        "euler_ancestral": EulerAncestral(),
        "ddim": DDIM(),
    }
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Move:
    """Where one step of a run leads; `moves_of` gives all of them at once, along the first axis.

    Attributes:
        number: of the step, from 0.
        sigma, target, previous_sigma, part: see `Step`.
    """

    number: Int[Array, "*n"]
    sigma: Float[Array, "*n"]
    target: Float[Array, "*n"]
    previous_sigma: Float[Array, "*n"]
    part: Float[Array, "*n"]


def moves_of(sigmas: Float[Array, " n"]) -> Move:
    """The steps down these noise levels from a `Schedule`; only the last level may be 0."""
    steps = len(sigmas) - 1
    before = jnp.full(1, jnp.inf, sigmas.dtype)
    return Move(
        number=jnp.arange(steps),
        sigma=sigmas[:-1],
        target=sigmas[1:],
        previous_sigma=jnp.concatenate([before, sigmas[:-2]]),
        part=jnp.full(steps, 1 / steps, sigmas.dtype),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Run:
    """How far a run has come.

    Attributes:
        x: the latents, float32 or float64.
        x0: what D gave in the last step; zeros before the first.
    """

    x: Float[Array, "*n b t h w c"]
    x0: Float[Array, "*n b t h w c"]

    @classmethod
    def start(cls, x: Video) -> "Run":
        """From latents at the first noise level (see `initial_noise`)."""
        return cls(x=x, x0=jnp.zeros_like(x))


def advance(
    denoise: Denoise,
    run: Run,
    move: Move,
    sampler: Sampler,
    key: Key[Array, ""],
    *,
    index: Int[Array, " b"] | None = None,
) -> Run:
    """Go one step; works under jit and with the batch sharded over devices.

    Args:
        denoise: D(x, sigma [b]) -> x0.
        run: how far it has come. move: the step to go.
        sampler: the update rule.
        key: randomness of the stochastic samplers: noise = f(key, step, index).
        index: number of each video in the whole run, on which alone its noise depends; default 0, 1, ...
    """
    x = run.x
    batch = x.shape[0]
    index = jnp.arange(batch) if index is None else index
    step = Step(
        sigma=move.sigma.astype(x.dtype),
        target=move.target.astype(x.dtype),
        previous_sigma=move.previous_sigma.astype(x.dtype),
        previous_x0=run.x0,
        part=move.part.astype(x.dtype),
        normal=partial(video_noise, jax.random.fold_in(key, move.number), index, x.shape[1:], x.dtype),
    )
    x, x0 = sampler(lambda x, sigma: denoise(x, jnp.broadcast_to(sigma, (batch,))), x, step)
    return Run(x=x, x0=x0)


def sample(
    denoise: Denoise,
    x: Video,
    sigmas: Float[Array, " n"],
    sampler: Sampler,
    key: Key[Array, ""],
    *,
    index: Int[Array, " b"] | None = None,
) -> Video:
    """Denoise ``x`` down the noise levels, all steps in one program.

    Args:
        denoise, sampler, key, index: see `advance`.
        x: latents at noise level ``sigmas[0]`` (see `initial_noise`), float32 or float64.
        sigmas: descending noise levels from a `Schedule`; only the last may be 0.

    Returns:
        The latents at ``sigmas[-1]``: clean ones if that is 0.
    """

    def one_step(run: Run, move: Move) -> tuple[Run, None]:
        return advance(denoise, run, move, sampler, key, index=index), None

    return jax.lax.scan(one_step, Run.start(x), moves_of(sigmas))[0].x
