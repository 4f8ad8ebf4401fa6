"""The loop: data, step, hooks; it stops at the last step, or when it is asked to."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jax

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
    steps: int,
    hooks: Sequence[Hook],
    stop: Callable[[], bool] = lambda: False,
    prepare: Callable[[Batch], Batch] = dict,
) -> TrainState:
    """Train until step ``steps``, or until ``stop()`` says so after a step.

    Each batch goes through ``prepare`` on the host.

    Nothing here waits for the device; only hooks do, when they read a value.
    """
    waited = 0.0
    for step in range(int(state.step) + 1, steps + 1):
        start = time.perf_counter()
        batch = next(data)
        waited += time.perf_counter() - start
        batch = jax.device_put(prepare(batch))
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, frozen, batch)
        moment = Moment(step=step, last=step == steps, state=state, metrics=metrics, waited=waited)
        for hook in hooks:
            hook(moment)
        if stop():
            break
    return state


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """While active, SIGTERM and SIGINT no longer kill the process: they make the yielded function return True."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
