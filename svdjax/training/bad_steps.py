"""Steps whose loss or gradient is unusable: what counts as such, and how a step is left out."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.errors import UserError
from svdjax.training.state import TrainState
from svdjax.typing import Array, Bool, Float, ndarray

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    """Which steps are bad, besides those whose loss or gradient is not finite, and what becomes of them.

    Attributes:
        policy: ``stop`` ends the run. ``skip`` leaves parameters, moments and average as they were, counts the step
            as ``skipped``, and goes on with the next batch.
        max_loss, max_grad_norm: a larger loss, or norm of the gradient before clipping, is bad; None sets no bound.
        max_skipped: so many bad steps in a row end the run all the same.
    """

    policy: Literal["stop", "skip"] = "stop"
    max_loss: float | None = None
    max_grad_norm: float | None = None
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is not positive.
        """
        for name in ("max_loss", "max_grad_norm", "max_skipped"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"bad.{name.replace('_', '-')} {value}: must be above 0")

    def is_bad(
        self, loss: Float[Array | ndarray, ""], grad_norm: Float[Array | ndarray, ""]
    ) -> Bool[Array | ndarray, ""] | np.bool_:
        """Whether a step with this loss and this norm of the gradient, in float32, is bad."""
        # Undefined values compare as False.
        return ~((loss <= (self.max_loss or _LARGEST)) & (grad_norm <= (self.max_grad_norm or _LARGEST)))


def skip_if(bad: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The state after a step: the new one, or the old one with the new one's step number if the step is bad."""
    chosen = jax.tree.map(lambda after, before: jnp.where(bad, before, after), new, old)
    return dataclasses.replace(chosen, step=new.step)


def count_if_good(
    bad: Bool[Array, ""], metrics: dict[str, Float[Array, ""] | Float[Array, "2"]]
) -> dict[str, Float[Array, "2"]]:
    """Metrics as pairs (sum, count), both zero if the step is bad, and ``skipped`` = (1 if it is bad, 1)."""

    def counted(value: Float[Array, ""] | Float[Array, "2"]) -> Float[Array, "2"]:
        pair = value if value.ndim else jnp.stack([value, jnp.ones_like(value)])
        return jnp.where(bad, 0, pair)

    skipped = jnp.stack([bad, jnp.ones_like(bad)]).astype(jnp.float32)
    return {name: counted(value) for name, value in metrics.items()} | {"skipped": skipped}
