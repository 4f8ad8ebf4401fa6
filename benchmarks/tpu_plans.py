"""Plans of every stage on 16 chips of each kind, and of some on other slices, for docs/tpu_plans.md.

``python -m benchmarks.tpu_plans [--only TEXT]``: each plan is made in a process of its own, in minutes and up to
10 GB; the one that is compiled to the end takes 46 minutes and over 23 GB. What is done is kept in
``benchmarks/tpu_plans.json``: a second start goes on where the first one stopped, and a row deleted there is made
anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from svdjax.conversion.output import finished
from svdjax.planning.chips import CHIPS
from svdjax.planning.plan import NO_ROOM, PROGRAM, WORKING
from svdjax.training.config import RunConfig, load_config
from svdjax.training.flops import peak_flops

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "tpu_plans.md"
CONFIGS = Path(__file__).parents[1] / "configs"
_DECODE = ("--buffers", "--program", "decode")
NESTED = ("residual", "transformer", "spatial", "temporal", "feed_forward")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan: the stage of a configuration on a slice.

    Attributes:
        clips: for each chip or group at once. accumulate: parts of a batch, one after another.
        nested: recompute the parts of a transformer one by one.
        whole: compile training to the end, with the chip's code; otherwise its buffers are placed.
        sampling: compile sampling from its model on one chip instead.
        released: place the arrays of decoding with the temporal decoder, as released models have it, alone.
    """

    config: str
    topology: str
    fsdp: int = 1
    context: int = 1
    clips: int = 1
    nested: bool = False
    accumulate: int = 1
    whole: bool = False
    sampling: bool = False
    released: bool = False

    @property
    def name(self) -> str:
        """Key of the row in the results."""
        mesh = "sampling" if self.sampling else f"{self.fsdp}x{self.context}"
        mesh += f" {self.clips} clips" if self.clips > 1 else ""
        name = f"{self.config} {self.topology} {mesh}" + (" nested" if self.nested else "")
        name += f" in {self.accumulate}" if self.accumulate > 1 else ""
        return name + " whole" * self.whole + " temporal decoder" * self.released

    @property
    def batch(self) -> int:
        """Clips in a step."""
        return self.fsdp * self.clips * self.accumulate


RUNS = (
    *("image_time_embed", "image", "video_256x384", "video_320x576", "image_to_video_320x576", "svd", "svd_xt"),
    *("text_to_video_576x1024", "camera_lora", "multi_view", "sv3d", "frame_interpolation", "temporal_decoder"),
    *("ablation_256x256", "ablation_512x512"),
)
SIXTEEN = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4", "v4": "v4:2x2x4"}
SLICES = {
    (run, chip): Row(config=run, topology=topology, fsdp=16) for chip, topology in SIXTEEN.items() for run in RUNS
}
OTHERS = [
    Row(config="svd_xt", topology="v5e:8x8", fsdp=16, context=4, nested=True, accumulate=48),
    Row(config="svd_xt", topology="v5e:8x8", fsdp=16, context=4),
    Row(config="svd_xt", topology="v5e:8x8", fsdp=16, context=4, nested=True),
    Row(config="svd_xt", topology="v5p:4x4x4", fsdp=64, clips=4, accumulate=3),
    Row(config="svd_xt", topology="v5p:1"),
    Row(config="svd_xt", topology="v5p:1", whole=True),
    Row(config="svd", topology="v5p:1"),
    Row(config="svd", topology="v5e:1", sampling=True),
    Row(config="svd", topology="v5e:1", sampling=True, released=True),
    Row(config="svd_xt", topology="v5e:1", sampling=True),
    Row(config="svd_xt", topology="v5e:1", sampling=True, released=True),
]


def main() -> None:
    """Make the plans that are missing, and the page's tables of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="make only rows whose name contains this")
    only = parser.parse_args().only
    console = Console(stderr=True)
    for row in (*SLICES.values(), *OTHERS):
        results = _results()
        if only in row.name and row.name not in results:
            console.print(row.name)
            results[row.name] = _made(row)
            _write(RESULTS, json.dumps(results, indent=1) + "\n")
    page, results = PAGE.read_text(), _results()
    for name, made in (("plans", others(results)), ("slices", slices(results)), ("sent", sent(results))):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(start)
        page = f"{before}{start}\n{made}{end}{rest.split(end)[1]}"
    _write(PAGE, page)


def others(results: dict[str, list[dict]]) -> str:
    """The plans of OTHERS that are there, as Markdown."""
    columns = (
        *("run", "slice", "data x fsdp x context", "batch", "GiB per chip", "state and frozen", "temporaries"),
        *("program", "at the peak", "links", "estimate", "MFU", "made in"),
    )
    lines = []
    for row in OTHERS:
        for plan in results.get(row.name, ()):
            what = f"sampling {row.config}, {plan['name']}" if row.sampling else row.config
            what += ", nested" * row.nested + f", in {row.accumulate} parts" * (row.accumulate > 1)
            what += ", to the end" * row.whole + ", temporal decoder" * row.released
            lines.append([what, row.topology, *_cells(plan, mfu="" if row.sampling else _mfu(plan))])
    return _markdown(columns, lines)


def slices(results: dict[str, list[dict]]) -> str:
    """What the plans of SLICES that are there take of a chip, and their floors, as Markdown."""
    columns = ("run", "one clip", "stays", *(f"{chip}, {CHIPS[chip].hbm_gib} GiB" for chip in CHIPS))
    lines = []
    for run in RUNS:
        plans = {chip: plan for chip in CHIPS for plan in results.get(SLICES[run, chip].name, ())}
        placed = [plan for plan in plans.values() if "refused" not in plan]
        if placed:
            cells = [_on(chip, plans.get(chip), placed[0]) for chip in CHIPS]
            lines.append([run, " x ".join(map(str, _clip(run))), f"{min(map(_stays, placed)):.2f}", *cells])
    return _markdown(columns, lines)


def sent(results: dict[str, list[dict]], chip: str = "v5p") -> str:
    """What 16 chips of a kind send each other in a step of SLICES, as Markdown."""
    columns = ("run", "gathered", "added up", "exchanged", "links", "computing, one clip", "clips for equal times")
    lines = []
    for run in RUNS:
        for plan in results.get(SLICES[run, chip].name, ()):
            sizes = {each["kind"]: each["bytes"] / 2**30 for each in plan.get("collectives") or ()}
            if sizes:
                gathered, added = sizes.pop("all-gather", 0), sizes.pop("all-reduce", 0)
                gib = (f"{size:.2f} GiB" for size in (gathered, added, sum(sizes.values())))
                links, floor = plan["transfer"], plan["floor"]
                lines.append([run, *gib, f"{links:.2g} s", f"{floor:.2g} s", f"{links / floor:.2f}"])
    return _markdown(columns, lines)


def _clip(run: str) -> tuple[int, int, int]:
    """Frames, height and width of a configuration's clips."""
    config = _run(run)
    return (getattr(config.stages()[-1], "frames", None) or config.data.sampling.frames, *config.data.sampling.size)


def _run(run: str) -> RunConfig:
    return load_config([str(CONFIGS / f"{run}.py")], default=CONFIGS)


def _on(chip: str, plan: dict | None, other: dict) -> str:
    """What a run takes of a chip; in brackets, where that is not known, its floor by what another kind does."""
    if plan is None:
        return f"({other['executed'] / other['batch'] / peak_flops(f'TPU {chip}'):.2g} s)"
    return plan["refused"] if "refused" in plan else f"{plan['total']:.1f} GiB, {plan['floor']:.2g} s"


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


def _cells(plan: dict, mfu: str) -> list[object]:
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    if "refused" in plan:
        return [mesh, plan["batch"], plan["refused"], *[""] * 8]
    verdict = {True: ": fits", False: ": too much", None: ""}[plan["fits"]]
    working, program = plan["memory"][WORKING], plan["memory"].get(PROGRAM)
    memory = [
        f"{plan['total']:.1f} of {plan['hbm']}{verdict}",
        f"{_stays(plan):.2f}",
        f"{working:.2f}",
        "" if program is None else f"{program:.2f}",
    ]
    links = f"{plan['transfer']:.2f} s" if plan["transfer"] else ""
    estimate = "" if plan["step"] is None else f"{plan['step']:.2f} s"
    return [mesh, plan["batch"], *memory, f"{plan['floor']:.2f} s", links, estimate, mfu, _duration(plan)]


def _mfu(plan: dict) -> str:
    """The estimate; or how much it can be at most, with transfers beside computing and after it."""
    if plan.get("mfu") is not None:
        return f"{plan['mfu']:.0%}"
    if plan.get("transfer") is None:
        return ""
    ideal = plan["flops"] / plan["executed"] * plan["floor"]
    beside, after = max(plan["floor"], plan["transfer"]), plan["floor"] + plan["transfer"]
    return f"≤ {ideal / beside:.0%}" + (f", {ideal / after:.0%}" if plan["transfer"] else "")


def _stays(plan: dict) -> float:
    """GiB of what lies on a chip from step to step."""
    return sum(size for name, size in plan["memory"].items() if name not in (WORKING, PROGRAM))


def _duration(plan: dict) -> str:
    return f"{sum(plan['seconds'].values()):.0f} s"


def _made(row: Row) -> list[dict]:
    options = ["--sampling"] if row.sampling else [*["--buffers"] * (not row.whole), *_mesh(row)]
    options += [*_DECODE, "--model.vae.temporal-decoder", "--model.vae.no-post-quant-conv"] * row.released
    plan = ["plan", str(CONFIGS / f"{row.config}.py"), "--topology", row.topology, *options]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "svdjax.cli", *plan, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(file.read_text())
    if NO_ROOM not in done.stderr:
        raise SystemExit(f"{row.name}: exit code {done.returncode}: {done.stderr[-2000:]}")
    mesh = {"data": 1, "fsdp": row.fsdp, "context": row.context}
    return [{"mesh": mesh, "batch": row.batch, "refused": done.stderr.splitlines()[-1].split(": ", 2)[-1]}]


def _mesh(row: Row) -> list[str]:
    stage = _run(row.config).stages()[-1].name
    parts = [f"--{stage}.batch", str(row.batch), f"--{stage}.accumulate", str(row.accumulate)]
    mesh = ["--mesh.fsdp", str(row.fsdp), "--mesh.context", str(row.context), *parts]
    return [*mesh, "--model.unet.remat", *NESTED] if row.nested else mesh


if __name__ == "__main__":
    main()
