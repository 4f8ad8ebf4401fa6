"""Curves of a run's metrics as SVG that follows the page's colours, light or dark."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from svdjax.pages import COLOURS, draw

Rows = Mapping[int, Mapping[str, float]]

# The pictures in order: title, and a pattern of the metrics in it. All other metrics get one each after them.
PICTURES = (
    ("loss", r"(val_)?loss"),
    ("loss by noise level", r"loss/sigma_.*"),
    ("validation loss by noise level", r"val_loss/sigma_.*"),
    ("learning rate", "rate"),
    ("norms", r"(grad|update)_norm"),
    ("steps per second", "steps_per_second"),
    ("clips per second", "clips_per_second"),
    ("share of time waiting for data", "data_wait"),
    ("model FLOPs utilisation", "mfu"),
    ("device memory (GiB)", r"memory_(peak_)?gib"),
    ("conditions dropped", r"dropped_.*"),
)
LOGARITHMIC = {"loss", "loss by noise level", "validation loss by noise level", "norms"}
_SMOOTH = 50  # noisy curves are drawn faint, with a mean over about a fiftieth of their length on top


def curves(rows: Rows) -> list[str]:
    """Draw every metric.

    Args:
        rows: values by step and metric.

    Returns:
        SVG elements to put into a page.

    Raises:
        UserError: matplotlib is missing.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    pictures = []
    for title, pattern in PICTURES:
        found = [name for name in names if re.fullmatch(pattern, name)]
        names = [name for name in names if name not in found]
        pictures.append((title, found))
    for name in names:
        base = name.removeprefix("val_")
        if base == name or base not in names:
            pictures.append((base, [other for other in names if other.removeprefix("val_") == base]))
    return [_draw(title, {name: _series(rows, name) for name in found}) for title, found in pictures if found]


def _series(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values; what is not finite is left out."""
    points = [(step, row[name]) for step, row in rows.items() if name in row and math.isfinite(row[name])]
    return [step for step, _ in points], [value for _, value in points]


def _draw(title: str, series: Mapping[str, tuple[list[int], list[float]]]) -> str:
    def plot(axes: Any) -> None:
        axes.set_xlabel("step")
        for i, (name, (steps, values)) in enumerate(series.items()):
            _line(axes, name, steps, values, COLOURS[i % len(COLOURS)])
        if title in LOGARITHMIC and all(value > 0 for _, values in series.values() for value in values):
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize="small")

    return draw(title, plot)


def _line(axes: Any, name: str, steps: Sequence[int], values: Sequence[float], colour: str) -> None:
    label = name.rsplit("/", 1)[-1]
    window = len(values) // _SMOOTH
    if window < 2 or name.startswith("val_"):
        axes.plot(steps, values, color=colour, label=label, marker="o" if len(values) < 30 else None, markersize=3)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    means = [
        sum(part) / len(part) for part in (values[max(0, i - window) : i + window + 1] for i in range(len(values)))
    ]
    axes.plot(steps, means, color=colour, label=label)
