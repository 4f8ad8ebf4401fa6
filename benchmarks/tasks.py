"""The demo tasks, measured in one command: are the effects there, and how large beside what is simpler?

Command: python -m benchmarks.tasks [--only NAME ...] [--out runs/tasks] [--seed 0]
         python -m benchmarks.tasks --quick [--only NAME ...]   (needs ".[measure]", training scikit-video, too)

Trains each task from its committed configuration (hours; what is finished in the folder is not trained again, and
after Ctrl-C the same command goes on), and prints one JSON object with the figures, their baselines and seeds, then
a Markdown table. ``--quick`` trains nothing: it measures the bundled checkpoints with few samples, and exits with 1
unless each effect has the direction that it should have. What is not bundled counts neither way.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from benchmarks import (
    camera_lora,
    frame_interpolation,
    longer_videos,
    multi_view,
    temporal_decoder,
    text_to_video,
    video_prediction,
)
from benchmarks.films import films
from svdjax.cli import guard
from svdjax.compilation import keep_compiled

Figures = dict[str, Any]


class Benchmark(Protocol):
    """What the module of a task offers.

    Attributes:
        BUNDLED: what ``measure`` takes of the package's files, which may be missing; empty if it needs training.
        QUICK: arguments with which ``measure`` takes few samples.
    """

    BUNDLED: tuple[Path, ...]
    QUICK: Mapping[str, Any]

    def train(self, folder: Path, *, seed: int, steps: int | None) -> tuple[Path, ...]:
        """What ``measure`` takes, trained in a folder; ``steps`` are those of each stage, if not its own."""

    def measure(self, *files: Path, **few: Any) -> Figures:
        """Figures of trained files, with their baselines."""

    def as_expected(self, figures: Figures) -> bool:
        """Whether the effect has the direction that it should have."""

    def row(self, figures: Figures) -> tuple[str, str]:
        """What was measured and what it is beside, for people."""


TASKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "text_to_video": text_to_video,
        "camera_lora": camera_lora,
        "frame_interpolation": frame_interpolation,
        "video_prediction": video_prediction,
        "multi_view": multi_view,
        "temporal_decoder": temporal_decoder,
        "longer_videos": longer_videos,
    }
)


def missing(name: str) -> str:
    """Why the bundled files of a task cannot be measured; empty if they can."""
    task = TASKS[name]
    if not task.BUNDLED:
        return "has to be trained"
    names = [path.name for path in task.BUNDLED if not path.exists()]
    return f"not bundled: {', '.join(names)}" if names else ""


def quick(name: str) -> Figures:
    """Figures of few samples of a task's bundled files."""
    task = TASKS[name]
    return judged(task, task.measure(*task.BUNDLED, **task.QUICK))


def full(name: str, folder: Path, *, seed: int = 0, steps: int | None = None) -> Figures:
    """Figures of a task after training, see `Benchmark.train`."""
    task = TASKS[name]
    return {"training_seed": seed, **judged(task, task.measure(*task.train(folder, seed=seed, steps=steps)))}


def judged(task: Benchmark, figures: Figures) -> Figures:
    """Figures with the verdict on them."""
    return {**figures, "as_expected": task.as_expected(figures)}


def table(found: Mapping[str, Figures | str]) -> str:
    """A Markdown table of figures by task, or of why there are none."""
    lines = ["| task | measured | beside | as expected |", "| --- | --- | --- | --- |"]
    for name, figures in found.items():
        if isinstance(figures, str):
            cells = (figures, "", "")
        else:
            cells = (*TASKS[name].row(figures), "yes" if figures["as_expected"] else "**no**")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and with ``--quick`` say by the exit code whether all is as expected."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME", help=", ".join(TASKS)
    )
    parser.add_argument("--quick", action="store_true", help="measure the bundled checkpoints, with few samples")
    parser.add_argument("--out", type=Path, help="for data and runs; runs/tasks if left out")
    parser.add_argument("--seed", type=int, help="of training; 0 if left out")
    parser.add_argument("--steps", type=int, help="of each stage of training, to see everything work")
    args = parser.parse_args()
    if args.quick and any(value is not None for value in (args.out, args.seed, args.steps)):
        parser.error("--quick trains nothing: leave --out, --seed and --steps out")
    if "temporal_decoder" in args.only and not args.quick:
        films()  # which would be missed after hours
    folder = args.out or Path("runs/tasks")
    keep_compiled()
    found: dict[str, Figures | str] = {}
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if args.quick:
            found[name] = missing(name) or quick(name)
        else:
            found[name] = full(name, folder / name, seed=args.seed or 0, steps=args.steps)
    print(json.dumps(found, indent=1))
    print(f"\n{table(found)}")
    verdicts = [figures["as_expected"] for figures in found.values() if isinstance(figures, dict)]
    return int(args.quick and not all(verdicts))


if __name__ == "__main__":
    sys.exit(guard(main))
