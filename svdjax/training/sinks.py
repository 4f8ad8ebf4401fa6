"""Where metrics go: a JSONL file, the terminal, TensorBoard, Weights & Biases."""

import hashlib
import importlib.util
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console

from svdjax.errors import require


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where metrics go besides ``metrics.jsonl`` and the terminal.

    Attributes:
        tensorboard: write event files; None writes them if tensorboardX is installed.
        wandb: project of Weights & Biases to log to, one run per stage.
    """

    tensorboard: bool | None = None
    wandb: str | None = None


@runtime_checkable
class Sink(Protocol):
    """A place for metrics. Names with a ``/`` are details, of the metric in front of it."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step; several rows of a step complement one another."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class JsonLines:
    """A file with one JSON object per row: ``step``, ``time`` (seconds since 1970) and the values."""

    def __init__(self, path: Path) -> None:
        """Rows are appended to those of the run so far, without a last one that a kill has cut."""
        self._path = path
        if path.exists():
            whole = path.read_bytes().rfind(b"\n") + 1
            with path.open("rb+") as file:
                file.truncate(whole)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    def close(self) -> None:
        """Every row is written already."""


class Printed:
    """One line per row on the terminal, without the details."""

    def __init__(self, console: Console, stage: str, steps: int) -> None:
        self._console, self._stage, self._steps = console, stage, steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Print the values."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        self._console.print(
            f"[bold]{self._stage}[/] {step}/{self._steps}  {shown}", highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """Event files for ``tensorboard --logdir``."""

    def __init__(self, directory: Path, start: int) -> None:
        """Rows after step ``start``, which a resumed run repeats, are hidden.

        Raises:
            UserError: tensorboardX is not installed.
        """
        writer = require("tensorboardX", "tensorboard").SummaryWriter
        self._writer = writer(str(directory), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, the same one when training goes on."""

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any]) -> None:
        """Start or continue the run of a stage's directory.

        Args:
            project: to log to.
            directory: of the stage.
            config: the resolved configuration.

        Raises:
            UserError: wandb is not installed.
        """
        self._run = require("wandb", "wandb").init(
            project=project,
            group=directory.parent.name,
            name=f"{directory.parent.name}/{directory.name}",
            id=hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload the rest."""
        self._run.finish()


def open_sinks(log: LogConfig, directory: Path, *, start: int, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks that write into a stage's directory, or to a service.

    Args:
        log: which.
        directory: of the stage.
        start: step from which training goes on, 0 at first.
        config: the resolved configuration.

    Raises:
        UserError: a package is missing.
    """
    sinks: list[Sink] = [JsonLines(directory / "metrics.jsonl")]
    installed = importlib.util.find_spec("tensorboardX") is not None
    if installed if log.tensorboard is None else log.tensorboard:
        sinks.append(TensorBoard(directory / "tensorboard", start))
    if log.wandb:
        sinks.append(Wandb(log.wandb, directory, config))
    return sinks
