"""Metrics of a step: means, and sums with their counts."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np

from svdjax.typing import Array, Float, ndarray

BANDS = (0.1, 0.5, 2.0, 10.0)  # sigmas between the bands


def sigma_bands(loss: Float[Array, " b"], sigma: Float[Array, " b"]) -> dict[str, Float[Array, "2"]]:
    """Sum of the loss of each video, and number of videos, within bands of noise levels."""
    edges = (0.0, *BANDS, float("inf"))
    bands = {}
    for low, high in pairwise(edges):
        inside = (sigma >= low) & (sigma < high)
        bands[f"loss_sigma_{low:g}_{high:g}"] = jnp.stack([jnp.sum(loss * inside), jnp.sum(inside)])
    return bands


def combined(rows: Sequence[Mapping[str, Array | ndarray]]) -> dict[str, float]:
    """Numbers of several steps: the mean of scalars; sum / count of pairs, left out where the count is 0."""
    numbers = {}
    for name in rows[0]:
        values = np.stack([np.asarray(row[name], np.float64) for row in rows])
        if values.ndim == 1:
            numbers[name] = float(values.mean())
        elif values[:, 1].sum():
            numbers[name] = float(values[:, 0].sum() / values[:, 1].sum())
    return numbers
