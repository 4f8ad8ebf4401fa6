"""The command ``svdjax report``: one self-contained HTML page about a run, with curves, samples and settings."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import tyro

from svdjax.errors import UserError
from svdjax.pages import data_uri, figure, image, listing, table, write_page
from svdjax.training.curves import Rows, curves
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.stage import Stage

MOST_SAMPLES = 12  # of a stage: evenly spread over its steps, with the first and the last
# Column of the overview: the metric whose last value it shows, and how.
OVERVIEW = {
    "loss": ("loss", "{:.4g}"),
    "validation loss": ("val_loss", "{:.4g}"),
    "steps/s": ("steps_per_second", "{:.3g}"),
    "clips/s": ("clips_per_second", "{:.3g}"),
    "MFU": ("mfu", "{:.1%}"),
    "waiting for data": ("data_wait", "{:.1%}"),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write RUN/report.html, one page that needs no other file: curves, samples over time, settings, hardware.

    Attributes:
        run: directory of a run, finished or not.
        out: where to write the page instead.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None


@dataclass(frozen=True)
class StageRecord:
    """What a stage has left so far.

    Attributes:
        name: of the stage. settings: of the stage, from the run's configuration.
        rows: values by step and metric. seconds: from the first to the last row.
        finished: whether its model is written. hardware: what it ran on, empty if unknown.
        samples: pictures by step.
    """

    name: str
    settings: Mapping[str, Any]
    rows: Rows
    seconds: float
    finished: bool
    hardware: Mapping[str, Any]
    samples: Mapping[int, Path]


def run(args: Report) -> None:
    """Write the page.

    Raises:
        UserError: the directory is no run, or matplotlib is missing.
    """
    settings = _read_settings(args.run)
    stages = [
        _read_stage(args.run / name, value)
        for name, value in settings.items()
        if isinstance(value, dict) and "optim" in value
    ]
    name = args.run.resolve().name
    path = args.out or args.run / "report.html"
    write_page(path, f"svdjax: {name}", _page(name, args.run, settings, stages))
    print(path)


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no run, for it has no config.json: name the --out of a training") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): name the --out of a training") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a run's configuration: name the --out of a training")
    return settings


def _read_stage(directory: Path, settings: Mapping[str, Any]) -> StageRecord:
    rows, times = read_metrics(directory / "metrics.jsonl")
    hardware = directory / "hardware.json"
    samples = {int(path.stem.removeprefix("step_")): path for path in directory.glob("samples/step_*.png")}
    return StageRecord(
        name=directory.name,
        settings=settings,
        rows=rows,
        seconds=max(times) - min(times) if times else 0.0,
        finished=any((directory / stage.result).exists() for stage in (Stage, LoRAStage)),
        hardware=json.loads(hardware.read_text()) if hardware.exists() else {},
        samples=dict(sorted(samples.items())),
    )


def read_metrics(path: Path) -> tuple[Rows, list[float]]:
    """The values of each step, and the times of all rows.

    Rows of one step complement one another; where a resumed run repeated steps, the later row counts. Lines that a
    kill has cut are left out.
    """
    rows: dict[int, dict[str, float]] = {}
    times = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            step, moment = int(row.pop("step")), float(row.pop("time"))
        except (ValueError, AttributeError, KeyError, TypeError):
            continue
        rows.setdefault(step, {}).update(row)
        times.append(moment)
    return dict(sorted(rows.items())), times


def _page(name: str, directory: Path, settings: Mapping[str, Any], stages: Sequence[StageRecord]) -> Iterator[str]:
    yield f"<h1>{escape(name)}</h1>"
    yield f'<p class="dim">svdjax report of {time.strftime("%Y-%m-%d %H:%M")}</p>'
    yield _overview(stages)
    final = directory / "samples.png"
    if final.exists():
        yield "<h2>Samples of the finished model</h2>"
        yield f'<p class="dim">{_COLUMNS}</p>'
        yield _sample(final, "last frame; all frames below")
        yield _video(final.with_suffix(".mp4"))
    for stage in stages:
        yield from _stage(stage)
    yield "<h2>Settings</h2>"
    yield f"<details><summary>config.json</summary>{listing(_leaves(settings))}</details>"


_COLUMNS = "Each row: a held-out picture, then what the averaged weights make of it at rising motion buckets."


def _overview(stages: Sequence[StageRecord]) -> str:
    header = ("stage", "steps", "time", *OVERVIEW, "hardware")
    rows = []
    for stage in stages:
        done = max(stage.rows, default=0)
        state = "" if stage.finished else " (not finished)"
        last = (_last(stage.rows, metric) for metric, _ in OVERVIEW.values())
        values = [
            "" if value is None else form.format(value)
            for value, (_, form) in zip(last, OVERVIEW.values(), strict=True)
        ]
        hours, minutes = divmod(round(stage.seconds / 60), 60)
        rows.append(
            (stage.name, f"{done:,}{state}", f"{hours} h {minutes:02} min", *values, _hardware(stage.hardware))
        )
    return table(header, rows)


def _last(rows: Rows, metric: str) -> float | None:
    return next((row[metric] for row in reversed(rows.values()) if metric in row), None)


def _hardware(hardware: Mapping[str, Any]) -> str:
    if not hardware:
        return "unknown"
    several = f", {hardware['processes']} processes" if hardware["processes"] > 1 else ""
    return f"{hardware['devices']} x {hardware['device']}{several}, jax {hardware['jax']}"


def _stage(stage: StageRecord) -> Iterator[str]:
    yield f"<h2>Stage {escape(stage.name)}</h2>"
    if not stage.rows:
        yield "<p>Nothing is logged yet.</p>"
    drawn = "".join(f"<figure>{svg}</figure>" for svg in curves(stage.rows))
    yield f'<div class="curves">{drawn}</div>'
    if stage.samples:
        yield f'<h3>Samples over time</h3><p class="dim">{_COLUMNS}</p><div class="samples">'
        for step in _spread(list(stage.samples)):
            moving = _video(stage.samples[step].with_suffix(".mp4"))
            yield figure(moving, f"step {step:,}") if moving else _sample(stage.samples[step], f"step {step:,}")
        yield "</div>"
    yield f"<details><summary>settings</summary>{listing(_leaves(stage.settings))}</details>"


def _spread(steps: Sequence[int]) -> list[int]:
    """At most ``MOST_SAMPLES`` of the steps."""
    if len(steps) <= MOST_SAMPLES:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (MOST_SAMPLES - 1))] for i in range(MOST_SAMPLES)]


def _sample(path: Path, caption: str) -> str:
    return image(path.read_bytes(), "image/png", caption)


def _video(path: Path) -> str:
    if not path.exists():
        return ""
    return (
        f'<video autoplay loop muted playsinline controls src="{data_uri(path.read_bytes(), "video/mp4")}"></video>'
    )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Everything in nested objects, by dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        path: leaf
        for key, inner in value.items()
        for path, leaf in _leaves(inner, f"{name}.{key}" if name else key).items()
    }
