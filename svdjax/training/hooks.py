"""What happens every n steps: metrics, validation, samples, checkpoints."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grain
import jax
import numpy as np
from rich.console import Console

from svdjax.errors import UserError
from svdjax.models.svd import SVD
from svdjax.progress import step_bar
from svdjax.training.checkpoint import Checkpoints
from svdjax.training.loop import Hook, Moment
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.step import Frozen, make_loss


@contextmanager
def progress_bar(stage: Stage, console: Console) -> Iterator[Hook]:
    """While active: a bar at the bottom of the terminal, and the hook that moves it."""
    with step_bar(console, transient=True) as bar:
        task = bar.add_task(stage.name, total=stage.steps)
        yield lambda moment: bar.update(task, completed=moment.step)


class MetricsLog:
    """Prints metrics, one line per call, and appends them to a JSONL file."""

    def __init__(self, path: Path, stage: Stage, console: Console) -> None:
        self._path, self._stage, self._console = path, stage, console
        self._last: tuple[int, float, float] | None = None

    def __call__(self, moment: Moment) -> None:
        """Log the training metrics of a step, with its speed and the share of time spent waiting for data."""
        metrics = finite(moment, self._stage.name)
        now = time.perf_counter()
        if self._last:
            step, then, waited = self._last
            metrics["steps_per_second"] = (moment.step - step) / (now - then)
            metrics["data_wait"] = (moment.waited - waited) / (now - then)
        self._last = (moment.step, now, moment.waited)
        self.write(moment.step, metrics)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._console.print(
            f"[bold]{self._stage.name}[/] {step}/{self._stage.steps}  {values}", highlight=False, soft_wrap=True
        )


def finite(moment: Moment, stage: str) -> dict[str, float]:
    """The step's metrics as numbers.

    Raises:
        UserError: the loss or the gradient is not finite.
    """
    metrics = {name: float(value) for name, value in jax.device_get(moment.metrics).items()}
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        raise UserError(
            f"stage {stage}, step {moment.step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}: "
            f"lower --{stage}.optim.rate, and run again to go on from the last checkpoint"
        )
    return metrics


def save_checkpoint(checkpoints: Checkpoints, data: grain.DatasetIterator, config: str, stage: str) -> Hook:
    """A hook that saves, unless the step's loss or gradient is not finite."""

    def hook(moment: Moment) -> None:
        finite(moment, stage)
        checkpoints.save(moment.state, position={"iterator": data.get_state()}, config=config)

    return hook


def validate(stage: Stage, model: SVD, frozen: Frozen, batches: Sequence[Batch], log: MetricsLog) -> Hook:
    """A hook that logs the loss of the averaged weights on the same clips with the same noise every time."""
    loss_fn = jax.jit(make_loss(stage, model))

    def hook(moment: Moment) -> None:
        rows: list[Metrics] = []
        for index, batch in enumerate(batches):
            loss, metrics = loss_fn(moment.state.ema, frozen, batch, jax.random.key(index))
            rows.append({"loss": loss, **metrics})
        means = {f"val_{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
        log.write(moment.step, means)

    return hook


def sample_grid(write: Callable[[Mapping[str, jax.Array], Path], None], directory: Path) -> Hook:
    """A hook that writes a grid of samples of the averaged weights, named by the step."""

    def hook(moment: Moment) -> None:
        write(moment.state.ema, directory / f"step_{moment.step:07d}")

    return hook
