"""Which clips stay: one threshold for each axis, given as a value or as the share of the clips that it removes.

The paper trained a model for each of several shares of each axis and kept what people preferred (section 3.2 and
appendix E): the shares of `PAPER` are what it chose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from svdjax.errors import UserError

Row = Mapping[str, Any]  # what is known of one clip; an axis that was not measured is absent or None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A rule on one column.

    Attributes:
        name: of the axis. column: of the rows.
        keeps: clips whose value is at or above the threshold, or those at or below it.
        threshold: the value itself; or, where it is None,
        percentile: the share in percent of the measured clips that the rule removes.
    """

    name: str
    column: str
    keeps: Literal["above", "below"]
    threshold: float | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: not exactly one of threshold and percentile, or a percentile outside of 0..100.
        """
        if (self.threshold is None) == (self.percentile is None):
            raise UserError(f"axis {self.name}: give a threshold or a percentile, one of the two")
        if self.percentile is not None and not 0 <= self.percentile < 100:
            raise UserError(f"axis {self.name}: percentile {self.percentile:g} must be at least 0 and below 100")


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """What a set of axes decides.

    Attributes:
        kept: numbers of the rows that pass all axes, ascending.
        removed: for each axis, numbers of the rows that it removes, whatever the others do.
        thresholds: for each axis with a threshold, its value.
    """

    kept: list[int]
    removed: dict[str, list[int]]
    thresholds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an axis does, in figures and in words.

    Attributes:
        name: of the axis; "all together" and "kept" at the end. threshold: as text; empty where there is none.
        removes: number of clips. alone: of these, that no other axis removes. share: of all clips, as text.
    """

    name: str
    threshold: str
    removes: int
    alone: int | str
    share: str


PAPER = (
    Axis(name="motion", column="motion_score", keeps="above", percentile=25.0),
    Axis(name="aesthetic", column="aesthetic", keeps="above", percentile=25.0),
    Axis(name="clip score", column="clip_score", keeps="above", percentile=50.0),
    Axis(name="text", column="text_area", keeps="below", threshold=0.07),
)


def decide(rows: Sequence[Row], axes: Sequence[Axis], also: Mapping[str, Sequence[int]] | None = None) -> Filtered:
    """Apply each axis to all rows: percentiles are of all measured clips, so the order of the axes is free.

    A row without the axis's column passes it. Equal values share their fate: a percentile may remove fewer clips
    than it says, never more.

    Args:
        rows: one for each clip. axes: the rules.
        also: rows that something else removes, such as duplicates, by the name of the reason.
    """
    removed, thresholds = {}, {}
    for axis in axes:
        values = np.array([np.nan if row.get(axis.column) is None else row[axis.column] for row in rows], float)
        measured = values[np.isfinite(values)]
        if not len(measured):
            continue
        sign = 1.0 if axis.keeps == "above" else -1.0
        threshold = axis.threshold
        if threshold is None:
            count = int(len(measured) * axis.percentile / 100 + 1e-9)  # of clips to remove, rounded down
            threshold = sign * float(np.sort(sign * measured)[count])
        thresholds[axis.name] = threshold
        removed[axis.name] = np.flatnonzero(sign * values < sign * threshold).tolist()
    removed |= {name: sorted(numbers) for name, numbers in (also or {}).items()}
    gone = set().union(*removed.values())
    return Filtered(
        kept=[number for number in range(len(rows)) if number not in gone], removed=removed, thresholds=thresholds
    )


def effects(rows: Sequence[Row], filtered: Filtered) -> list[Effect]:
    """What each axis removes, what all of them remove together, and what stays."""
    found = []
    for name, numbers in filtered.removed.items():
        others = set().union(*(other for axis, other in filtered.removed.items() if axis != name))
        threshold = f"{filtered.thresholds[name]:.4g}" if name in filtered.thresholds else ""
        found.append(_effect(rows, name, len(numbers), threshold, len(set(numbers) - others)))
    gone = len(rows) - len(filtered.kept)
    return [*found, _effect(rows, "all together", gone), _effect(rows, "kept", len(filtered.kept))]


def _effect(rows: Sequence[Row], name: str, count: int, threshold: str = "", alone: int | str = "") -> Effect:
    share = f"{count / max(1, len(rows)):.1%}"
    return Effect(name=name, threshold=threshold, removes=count, alone=alone, share=share)
