"""The loop: data, step, hooks; it stops at the last step, or when it is asked to."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import multihost_utils

from svdjax.training.stage import Batch, Metrics
from svdjax.training.state import TrainState
from svdjax.training.step import Frozen, TrainStep


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What hooks see after a step. Reading a value of ``state`` or ``metrics`` waits for the device.

    Attributes:
        step: updates done. last: whether this is the last step.
        state, metrics: after the step, on the device.
        waited: seconds that the loop has waited for data since it started.
    """

    step: int
    last: bool
    state: TrainState
    metrics: Metrics
    waited: float


Hook = Callable[[Moment], None]


def every(n: int, hook: Hook) -> Hook:
    """Call a hook every ``n`` steps and at the last one; never if ``n`` is 0."""

    def call(moment: Moment) -> None:
        if n and (moment.step % n == 0 or moment.last):
            hook(moment)

    return call


def train(
    state: TrainState,
    frozen: Frozen,
    data: Iterator[Batch],
    *,
    train_step: TrainStep,
    place: Callable[[Batch], Batch],
    steps: int,
    hooks: Sequence[Hook],
    stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Train until step ``steps``, or until ``stop(step)`` says so after a step.

    At most two steps are in flight: before a batch is placed, the step before the last has to end. Besides that
    only hooks wait for the device, when they read a value.

    Args:
        state: before the first step. frozen: the parameters that stay.
        data: this process's rows of each batch, from the state's step on.
        train_step: compiled. place: makes global arrays of a batch.
        steps: at which to end. hooks: called after each step. stop: asked after each step.
    """
    waited = 0.0
    last: Metrics = {}
    last_but_one: Metrics = {}
    for step in range(int(state.step) + 1, steps + 1):
        start = time.perf_counter()
        batch = next(data)
        waited += time.perf_counter() - start
        # One step in hand keeps the device busy. JAX lets some thirty wait: their batches would all lie on the
        # device, taken from the loader faster than they are used, so that it seemed too slow.
        jax.block_until_ready(last_but_one)
        batch = place(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, frozen, batch)
        last_but_one, last = last, metrics
        moment = Moment(step=step, last=step == steps, state=state, metrics=metrics, waited=waited)
        for hook in hooks:
            hook(moment)
        if stop(step):
            break
    return state


@contextmanager
def stop_on_signals() -> Iterator[Callable[[int], bool]]:
    """While active, SIGTERM and SIGINT do not kill: they make the yielded function, asked after a step, say True.

    With several processes it suffices that one gets the signal, and all say True after the same step: they agree
    on it by JAX's preemption service, which takes SIGTERM itself. A second SIGINT kills.
    """
    asked, calls = threading.Event(), itertools.count(1)
    several = jax.process_count() > 1

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    def stop(step: int) -> bool:
        # Counted over all stages: the agreed count may lie in the next one.
        # And true at that one only: what comes after it has to be remembered.
        if several and not asked.is_set() and multihost_utils.reached_preemption_sync_point(next(calls)):
            asked.set()
        return asked.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: interrupt}
    if not several:
        handlers[signal.SIGTERM] = lambda *_: asked.set()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
