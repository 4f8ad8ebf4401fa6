"""Plans of every stage on every kind of chip, for docs/tpu_plans.md.

``python -m benchmarks.tpu_plans [--only TEXT]``: each plan is compiled in a process of its own, which takes minutes
and up to 14 GB. What is done is kept in ``benchmarks/tpu_plans.json``: a second start goes on where the first one
stopped, and a row deleted there is made anew.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from svdjax.conversion.output import finished
from svdjax.planning.chips import CHIPS
from svdjax.training.config import load_config
from svdjax.training.flops import peak_flops

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "tpu_plans.md"
CONFIGS = Path(__file__).parents[1] / "configs"
# Of a plan's memory: what the program needs beside what stays.
WORKING = ("temporaries, results", "program")
# GiB of temporaries of one clip a chip on v5e:4x4, by the compiler's assignment of buffers: see the page.
ANCHOR, ANCHOR_GIB = "svd_xt", 13.70


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan: the stage of a configuration on a slice, one clip for each chip or group of chips that share it.

    Attributes:
        sampling: plan sampling from its model on one chip instead. outline: compile nothing.
    """

    config: str
    topology: str
    fsdp: int = 1
    context: int = 1
    sampling: bool = False
    outline: bool = False

    @property
    def name(self) -> str:
        """Key of the row in the results."""
        mesh = "sampling" if self.sampling else f"{self.fsdp}x{self.context}"
        return f"{self.config} {self.topology} {mesh}" + (" outline" if self.outline else "")


RUNS = (
    *("image_time_embed", "image", "video_256x384", "video_320x576", "image_to_video_320x576", "svd", "svd_xt"),
    *("text_to_video_576x1024", "camera_lora", "multi_view", "sv3d", "frame_interpolation", "temporal_decoder"),
)
ALONE = {run: Row(config=run, topology="v5p:1") for run in RUNS}
OUTLINES = {run: Row(config=run, topology="v5e:4x4", fsdp=16, outline=True) for run in RUNS}
COMPILED = [
    *ALONE.values(),
    Row(config="svd", topology="v5e:1", sampling=True),
    Row(config="svd_xt", topology="v5e:1", sampling=True),
    Row(config="svd_xt", topology="v5e:4x4", fsdp=16),
]


def main() -> None:
    """Make the plans that are missing, and the page's tables of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="make only rows whose name contains this")
    only = parser.parse_args().only
    console = Console(stderr=True)
    for row in (*OUTLINES.values(), *COMPILED):
        results = _results()
        if only in row.name and row.name not in results:
            console.print(row.name)
            results[row.name] = _made(row)
            _write(RESULTS, json.dumps(results, indent=1) + "\n")
    page, results = PAGE.read_text(), _results()
    for name, made in (("plans", compiled(results)), ("slices", slices(results))):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(start)
        page = f"{before}{start}\n{made}{end}{rest.split(end)[1]}"
    _write(PAGE, page)


def compiled(results: dict[str, list[dict]]) -> str:
    """The plans that are there, in the order of COMPILED, as Markdown."""
    columns = (
        *("run", "slice", "data x fsdp x context", "batch", "GiB per chip", "of them state and frozen", "program"),
        *("at the peak", "estimate", "compiled in"),
    )
    lines = []
    for row in COMPILED:
        for plan in results.get(row.name, ()):
            what = f"{row.config}, {plan['name']}" if row.sampling else row.config
            lines.append([what, row.topology, *_cells(plan)])
    return _markdown(columns, lines)


def slices(results: dict[str, list[dict]]) -> str:
    """Estimates for 16 chips of each kind, as Markdown: what stays there, and what one clip takes."""
    columns = ("run", "one clip", "state and frozen", "what it takes", "GiB per chip", *CHIPS)
    lines = []
    for run in RUNS:
        if OUTLINES[run].name in results:
            (outline,), stage, clip = results[OUTLINES[run].name], _stage(run), _working(run)
            total = outline["total"] + clip
            lines.append([run, " x ".join(map(str, stage)), f"{outline['total']:.2f}"])
            lines[-1] += [f"{'' if run == ANCHOR else '~ '}{clip:.2f}", f"{total:.1f}"] if clip else ["?", "?"]
            lines[-1] += [_on(chip, total, outline["executed"] / outline["batch"]) for chip in CHIPS]
    return _markdown(columns, lines)


def _stage(run: str) -> tuple[int, int, int]:
    """Frames, height and width of a configuration's clips."""
    config = load_config([str(CONFIGS / f"{run}.py")], default=CONFIGS)
    stage, sampling = config.stages()[-1], config.data.sampling
    return (getattr(stage, "frames", None) or sampling.frames, *sampling.size)


def _working(run: str) -> float:
    """GiB that a clip takes beside what stays, by its pixels from the anchor's.

    The autoencoder's own training keeps other things, so this says nothing of it: 0.
    """
    if run == "temporal_decoder":
        return 0.0
    return ANCHOR_GIB * math.prod(_stage(run)) / math.prod(_stage(ANCHOR))


def _on(chip: str, total: float, executed: float) -> str:
    seconds = executed / peak_flops(f"TPU {chip}")
    return f"{seconds:.2g} s" if total <= CHIPS[chip].hbm_gib else f"({seconds:.2g} s)"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    if not lines:
        return ""
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _results() -> dict[str, list[dict]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _write(path: Path, text: str) -> None:
    with finished(path, overwrite=True) as partial:
        partial.write_text(text)


def _cells(plan: dict) -> list[object]:
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    if "refused" in plan:
        return [mesh, plan["batch"], plan["refused"], "", "", "", "", ""]
    stays = sum(size for name, size in plan["memory"].items() if name not in WORKING)
    verdict = f"{plan['total']:.1f} of {plan['hbm']}: " + ("**fits**" if plan["fits"] else "too much")
    memory = [verdict, f"{stays:.2f}", f"{plan['memory']['program']:.2f}"]
    times = [f"{plan['floor']:.2f} s", f"{plan['step']:.2f} s", f"{plan['seconds']['compile']:.0f} s"]
    return [mesh, plan["batch"], *memory, *times]


def _made(row: Row) -> list[dict]:
    options = ["--sampling"] if row.sampling else _mesh(row)
    options += ["--outline"] if row.outline else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [
            sys.executable,
            "-m",
            "svdjax.cli",
            "plan",
            f"configs/{row.config}.py",
            "--topology",
            row.topology,
        ]
        done = subprocess.run(
            [*command, *options, "--json", str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return json.loads(file.read_text())
    if "does not fit" not in done.stderr:
        raise SystemExit(f"{row.name}: exit code {done.returncode}: {done.stderr[-2000:]}")
    mesh = {"data": 1, "fsdp": row.fsdp, "context": row.context}
    return [{"mesh": mesh, "batch": row.fsdp, "refused": done.stderr.splitlines()[-1].split(": ", 2)[-1]}]


def _mesh(row: Row) -> list[str]:
    batch = "--decoder.batch" if row.config == "temporal_decoder" else "--unet.batch"
    return ["--mesh.fsdp", str(row.fsdp), "--mesh.context", str(row.context), batch, str(row.fsdp)]


if __name__ == "__main__":
    main()
