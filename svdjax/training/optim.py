"""AdamW with warm-up, cosine decay and clipping."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import optax

from svdjax.errors import UserError, check_range
from svdjax.typing import Array


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer's settings.

    Attributes:
        rate: peak learning rate.
        warmup: steps to rise linearly to it from zero.
        final: the rate at the last step as a fraction of the peak (cosine decay); 1 keeps it constant.
        b1: decay of AdamW's mean of gradients.
        b2: decay of its mean of their squares.
        eps: added to the root of the latter.
        weight_decay: of AdamW; only kernels (two or more axes) decay.
        clip: largest global norm of a gradient; a very large one clips none.
        moment_dtype: type in which AdamW's mean of gradients is kept; bfloat16 saves two bytes per parameter. The
            mean of squares stays float32: it moves by less than a bfloat16's rounding.
    """

    rate: float = 1e-4
    warmup: int = 1000
    final: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check the numbers: with others the loss climbs, or nothing is trained, and nothing says so.

        Raises:
            UserError: one is out of range.
        """
        for name in ("rate", "warmup", "weight_decay"):
            check_range(f"optim.{name.replace('_', '-')}", getattr(self, name), 0)
        check_range("optim.final", self.final, 0, 1)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} {getattr(self, name)}: must be at least 0 and below 1")
        for name in ("eps", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"optim.{name} {getattr(self, name)}: must be above 0")


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of each step, for a run of ``steps`` steps."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.rate, config.warmup, max(steps, config.warmup + 1), config.rate * config.final
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of ``steps`` steps, over a flat tree of parameters."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_kernels,
            mu_dtype=config.moment_dtype,
        ),
    )


def _kernels(params: Mapping[str, Array]) -> dict[str, bool]:
    return {path: value.ndim >= 2 for path, value in params.items()}
