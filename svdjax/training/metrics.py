"""Training metrics: from arrays on the device, kept until the log step, to numbers for every sink."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.training.flops import peak_flops
from svdjax.training.loop import Moment
from svdjax.training.optim import learning_rate
from svdjax.training.sinks import Sink
from svdjax.training.stage import Metrics, Stage
from svdjax.typing import Array, Float, ndarray

# Noise levels at which SVD's stages differ: details below 0.2, layout above 5, next to nothing but noise above 25.
SIGMA_EDGES = (0.0, 0.2, 1.0, 5.0, 25.0, math.inf)


def sigma_bands(loss: Float[Array, " b"], sigma: Float[Array, " b"]) -> dict[str, Float[Array, "2"]]:
    """The loss per band of noise levels, for a stage's metrics.

    Args:
        loss: of each video.
        sigma: noise level of each video, positive.

    Returns:
        (sum, count) of the losses with lower <= sigma < upper, by ``loss/sigma_LOWER-UPPER``.
    """
    bands = {}
    for lower, upper in itertools.pairwise(SIGMA_EDGES):
        inside = (lower <= sigma) & (sigma < upper)
        pair = jnp.stack([jnp.sum(jnp.where(inside, loss, 0)), jnp.sum(inside)])
        bands[f"loss/sigma_{lower:g}-{upper:g}"] = pair.astype(jnp.float32)
    return bands


def summarise(rows: Sequence[Mapping[str, Array | ndarray]]) -> dict[str, float]:
    """One number per metric of several steps or batches.

    Args:
        rows: of each step, metrics of shape (), which are averaged, or (2,) = (sum, count), which are summed.

    Returns:
        The means, and sum / count; a metric without a count is left out.
    """
    numbers = {}
    rows = jax.device_get(list(rows))
    for name in rows[0]:
        values = np.stack([row[name] for row in rows]).astype(np.float64)
        if values.ndim == 1:
            numbers[name] = float(values.mean())
        elif (count := values[:, 1].sum()) > 0:
            numbers[name] = float(values[:, 0].sum() / count)
    return numbers


class MetricsLog:
    """A hook for every step that hands the metrics to its sinks every ``log_every`` steps.

    In between it keeps the arrays as they are, so that only log steps wait for the device.
    """

    def __init__(self, stage: Stage, sinks: Sequence[Sink], *, flops_per_clip: float | None = None) -> None:
        """Nothing is written yet.

        Args:
            stage: gives the interval, the batch and the learning rate.
            sinks: where to write; none on all processes but one.
            flops_per_clip: of a training step, for the utilisation; None leaves it out.
        """
        self._stage, self._sinks, self._flops_per_clip = stage, sinks, flops_per_clip
        self._rate = learning_rate(stage.optim, stage.steps)
        self._waiting: list[Metrics] = []
        self._last: tuple[int, float, float] | None = None
        self._newest: dict[str, tuple[int, float]] = {}  # of each metric the last step and value

    def __call__(self, moment: Moment) -> None:
        """Keep the step's metrics; at a log step and at the last one write those since the previous."""
        every = self._stage.log_every
        if not every:
            return
        self._waiting.append(moment.metrics)
        if moment.step % every and not moment.last:
            return
        values = summarise(self._waiting)
        self._waiting.clear()
        values["rate"] = float(self._rate(moment.step - 1))
        self.write(moment.step, {**values, **self._speed(moment), **device_memory()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a row to every sink."""
        self._newest |= {name: (step, value) for name, value in values.items()}
        for sink in self._sinks:
            sink.write(step, values)

    def measured(self, name: str, step: int) -> float | None:
        """A metric's value at a step, on every process; None if it was last measured at another."""
        at, value = self._newest.get(name, (None, None))
        return value if at == step else None

    def _speed(self, moment: Moment) -> dict[str, float]:
        """Rates since the previous log step, by the clock: with validation, samples and all."""
        now, last = time.perf_counter(), self._last
        self._last = (moment.step, now, moment.waited)
        if last is None:
            return {}
        step, then, waited = last
        rate = (moment.step - step) / (now - then)
        clips = rate * self._stage.batch
        speed = {
            "steps_per_second": rate,
            "clips_per_second": clips,
            "data_wait": (moment.waited - waited) / (now - then),
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak and self._flops_per_clip:
            speed["mfu"] = clips * self._flops_per_clip / (peak * jax.device_count())
        return speed


def device_memory() -> dict[str, float]:
    """GiB in use, and at most so far, on the fullest device of this process; empty where unknown (CPU)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if not all(stats):
        return {}
    return {
        "memory_gib": max(each["bytes_in_use"] for each in stats) / 2**30,
        "memory_peak_gib": max(each["peak_bytes_in_use"] for each in stats) / 2**30,
    }
