"""What happens besides the steps: the guard, the log and the status line, validation, samples, a profile."""

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress

from svdjax.conversion.output import finished
from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig
from svdjax.progress import step_bar
from svdjax.training.config import RunConfig
from svdjax.training.flops import clip_shapes, peak_flops, stage_flops
from svdjax.training.loop import Hook, Moment
from svdjax.training.metrics import MetricsLog, summarise
from svdjax.training.sinks import Printed, open_sinks
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.state import TrainState
from svdjax.training.step import Frozen, LossFn


@dataclass(frozen=True)
class Watch:
    """The log of a stage, and the hooks of every step that keep log, status line and profile going."""

    log: MetricsLog
    hooks: tuple[Hook, ...]


@contextmanager
def watching(
    config: RunConfig,
    stage: Stage,
    console: Console,
    *,
    saved: Callable[[], int | None],
    flops_per_clip: float | None = None,
) -> Iterator[Watch]:
    """While active, a stage is logged into its directory. One process writes; all of them profile.

    Args:
        config: the run's. stage: what is trained.
        console: for the log's lines, and the status line below them.
        saved: step of the newest checkpoint, None if there is none.
        flops_per_clip: see :func:`clip_flops`.

    Raises:
        UserError: a package for logging is missing.
    """
    directory = config.out / stage.name
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        profiling = stack.enter_context(profile(config.profile, directory / "profile"))
        if jax.process_index():
            log = MetricsLog(stage, [])
            yield Watch(log, (log, profiling))
            return
        _write_hardware(directory / "hardware.json")
        bar = stack.enter_context(step_bar(console, transient=True))
        status = StatusLine(bar, stage, saved)
        written = open_sinks(config.log, directory, start=saved() or 0, config=json.loads(config.to_json()))
        sinks = [*written, Printed(console, stage.name, stage.steps), status]
        for sink in sinks:
            stack.callback(sink.close)
        log = MetricsLog(stage, sinks, flops_per_clip=flops_per_clip)
        yield Watch(log, (status, log, profiling))


def _write_hardware(path: Path) -> None:
    device = jax.devices()[0]
    hardware = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "svdjax")},
    }
    with finished(path, overwrite=True) as partial:
        partial.write_text(json.dumps(hardware, indent=2))


class StatusLine:
    """The line at the bottom of the terminal: loss, speed, waiting for data, checkpoint, steps, time left."""

    def __init__(self, bar: Progress, stage: Stage, saved: Callable[[], int | None]) -> None:
        self._bar, self._name, self._saved = bar, stage.name, saved
        self._task = bar.add_task(stage.name, total=stage.steps, completed=saved() or 0)

    def __call__(self, moment: Moment) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=moment.step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show a row of training; one of validation leaves the line as it is."""
        if "loss" not in values:
            return
        parts = [self._name, f"loss {values['loss']:.4g}"]
        if "steps_per_second" in values:
            parts.append(f"{values['steps_per_second']:.3g} steps/s")
            parts.append(f"data wait {values['data_wait']:.1%}")
        saved = self._saved()
        parts.append("not saved yet" if saved is None else f"saved at {saved}")
        self._bar.update(self._task, description=" · ".join(parts))

    def close(self) -> None:
        """The bar closes itself."""


def clip_flops(stage: Stage, config: SVDConfig, batch: Callable[[], Batch]) -> float | None:
    """Model FLOPs of a training step per clip; None where they would be of no use, the device's peak being unknown.

    Args:
        stage: what is trained.
        config: sizes of the networks.
        batch: makes a training batch, of which only the shapes matter.
    """
    if peak_flops(jax.devices()[0].device_kind) is None:
        return None
    return stage_flops(stage, config, clip_shapes(batch())).model


@contextmanager
def profile(steps: tuple[int, int] | None, directory: Path) -> Iterator[Hook]:
    """A hook that traces the steps from the first to the last given, for TensorBoard or Perfetto.

    Args:
        steps: the first, at least 2 (a hook runs after a step, and step 1 compiles), and the last; None for none.
        directory: for the trace.
    """
    first, last = steps or (1, 0)
    tracing = False

    def hook(moment: Moment) -> None:
        nonlocal tracing
        if tracing and (moment.step >= last or moment.last):
            jax.block_until_ready(moment.state)
            jax.profiler.stop_trace()
            tracing = False
        elif not tracing and first - 1 <= moment.step < last and not moment.last:
            jax.block_until_ready(moment.state)  # or the trace would begin with the steps before
            jax.profiler.start_trace(directory)
            tracing = True

    try:
        yield hook
    finally:
        if tracing:
            jax.profiler.stop_trace()


class Guard:
    """Ends a run whose loss or gradient is unusable; a hook for every step, before all others.

    It reads the steps since it last did so at those that are logged or saved, or else every 100 steps.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage, self._skipped = stage, 0
        self._intervals = [n for n in (stage.log_every, stage.checkpoint_every, 100) if n]
        self._waiting: list[tuple[int, Metrics]] = []

    def __call__(self, moment: Moment) -> None:
        """Keep the step, and look at it if it is time.

        Raises:
            UserError: see :meth:`check`.
        """
        self._waiting.append((moment.step, moment.metrics))
        if moment.last or any(moment.step % n == 0 for n in self._intervals):
            self.check()

    def check(self) -> None:
        """Look at all steps up to now.

        Raises:
            UserError: one is bad, or too many in a row are where these are skipped.
        """
        waiting, self._waiting = jax.device_get(self._waiting), []
        for step, metrics in waiting:
            bad = bool(metrics["bad_steps"][0])
            if self._stage.bad.policy == "skip":
                self._count(step, skipped=bad)
            elif bad:
                raise UserError(
                    f"stage {self._stage.name}, step {step}: loss {metrics['loss']:.6g}, gradient norm "
                    f"{metrics['grad_norm']:.6g}: {self._remedy()}"
                )

    def _count(self, step: int, *, skipped: bool) -> None:
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= self._stage.bad.max_skipped:
            raise UserError(
                f"stage {self._stage.name}: the {self._skipped} steps up to {step} had an unusable loss or "
                f"gradient and were skipped: {self._remedy()}"
            )

    def _remedy(self) -> str:
        name = self._stage.name
        return (
            f"not finite, or over a bound of --{name}.bad: lower --{name}.optim.rate, and run again to go on from "
            "the last checkpoint"
        )


Averages = Callable[[TrainState], Mapping[str, jax.Array]]  # the averaged parameters of a state, on the devices


def validate(
    loss: LossFn, averages: Averages, frozen: Frozen, batches: Callable[[], Iterable[Batch]], log: MetricsLog
) -> Hook:
    """A hook that logs the loss of the averaged weights on the same clips with the same noise every time."""

    def hook(moment: Moment) -> None:
        ema, rows = averages(moment.state), []
        for index, batch in enumerate(batches()):
            value, metrics = loss(ema, frozen, batch, jax.random.key(index))
            rows.append({"loss": value, **metrics})
        log.write(moment.step, {f"val_{name}": value for name, value in summarise(rows).items()})

    return hook


def sample_grid(
    averages: Averages, write: Callable[[Mapping[str, jax.Array], Path], None], directory: Path
) -> Hook:
    """A hook that writes a grid of samples of the averaged weights, named by the step."""

    def hook(moment: Moment) -> None:
        write(averages(moment.state), directory / f"step_{moment.step:07d}")

    return hook
