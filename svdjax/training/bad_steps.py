"""Steps whose loss or gradient is unusable: what counts as such, and how a step is left out."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.errors import UserError
from svdjax.training.state import TrainState
from svdjax.typing import Array, Bool, Float, Int

Running = dict[str, Float[Array, ""] | Int[Array, ""]]  # `TrainState.running`
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    """Which steps are bad, besides those whose loss or gradient is not finite, and what becomes of them.

    Attributes:
        policy: ``stop`` ends the run. ``skip`` leaves parameters, moments and averages as they were, counts the
            step in ``bad_steps``, and goes on with the next batch.
        max_loss: a larger loss is bad; None sets no bound.
        max_grad_norm: a larger norm of the gradient before clipping is bad; None sets no bound.
        max_ratio: a loss or gradient norm of more than so many times its running mean over the good steps is bad:
            it explodes. The default is far beyond what clips and noise levels do; None sets no bound.
        window: good steps over which the means run; before there were so many, ``max_ratio`` judges none.
        max_skipped: so many bad steps in a row end the run all the same.
    """

    policy: Literal["stop", "skip"] = "stop"
    max_loss: float | None = None
    max_grad_norm: float | None = None
    max_ratio: float | None = 100.0
    window: int = 100
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is not positive.
        """
        for name in ("max_loss", "max_grad_norm", "max_ratio", "window", "max_skipped"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"bad.{name.replace('_', '-')} {value}: must be above 0")

    def is_bad(self, loss: Float[Array, ""], grad_norm: Float[Array, ""], running: Running) -> Bool[Array, ""]:
        """Whether a step with this loss and this norm of the gradient, in float32, is bad."""

        def bound(largest: float | None, mean: Float[Array, ""]) -> Float[Array, ""]:
            known = (running["count"] >= self.window) & (mean > 0)  # a ratio to other means would say nothing
            exploding = jnp.where(known, (self.max_ratio or jnp.inf) * mean, jnp.inf)
            return jnp.minimum(exploding, largest or _LARGEST)

        # Undefined values compare as False.
        good = loss <= bound(self.max_loss, running["loss"])
        return ~(good & (grad_norm <= bound(self.max_grad_norm, running["grad_norm"])))

    def follow(self, running: Running, loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Running:
        """The running means after a good step: the plain means at first, exponential ones from ``window`` on."""
        count = running["count"] + 1
        weight = 1 / jnp.minimum(count, self.window)
        values = {"loss": loss, "grad_norm": grad_norm}
        return {"count": count} | {
            name: running[name] + weight * (value - running[name]) for name, value in values.items()
        }


def skip_if(bad: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The state after a step: the new one, or the old one with the new one's step number if the step is bad."""
    chosen = jax.tree.map(lambda after, before: jnp.where(bad, before, after), new, old)
    return dataclasses.replace(chosen, step=new.step)


def count_if_good(
    bad: Bool[Array, ""], metrics: dict[str, Float[Array, ""] | Float[Array, "2"]]
) -> dict[str, Float[Array, "2"]]:
    """Metrics as pairs (sum, count), both zero if the step is bad."""

    def counted(value: Float[Array, ""] | Float[Array, "2"]) -> Float[Array, "2"]:
        pair = value if value.ndim else jnp.stack([value, jnp.ones_like(value)])
        return jnp.where(bad, 0, pair)

    return {name: counted(value) for name, value in metrics.items()}
