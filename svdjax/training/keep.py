"""Which checkpoints stay."""

from collections.abc import Mapping
from dataclasses import dataclass

from svdjax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay.

    Attributes:
        last: so many of the newest.
        every: besides, those of steps that are multiples of it, for ever; 0 for none.
        best: besides, the one with the lowest validation loss.
    """

    last: int = 2
    every: int = 0
    best: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is too small.
        """
        for name, least in {"last": 1, "every": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"keep.{name} {getattr(self, name)}: must be at least {least}")

    def kept(self, losses: Mapping[int, float | None]) -> set[int]:
        """The steps that stay, of whole checkpoints with these validation losses."""
        kept = set(sorted(losses)[-self.last :]) | {
            step for step in losses if self.every and step % self.every == 0
        }
        best = best_of(losses) if self.best else None
        return kept if best is None else kept | {best}


def best_of(losses: Mapping[int, float | None]) -> int | None:
    """The step of the checkpoint with the lowest validation loss; None if none was measured."""
    measured = {step: loss for step, loss in losses.items() if loss is not None}
    return min(measured, key=lambda step: measured[step], default=None)
