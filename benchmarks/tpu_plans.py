"""Plans of every stage on every kind of chip, for docs/tpu_plans.md.

``python -m benchmarks.tpu_plans [--only TEXT]``: each plan is compiled in a process of its own, which takes minutes
and up to 14 GB. What is done is kept in ``benchmarks/tpu_plans.json``: a second start goes on where the first one
stopped, and a row deleted there is made anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from svdjax.conversion.output import finished

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "tpu_plans.md"
START, END = "<!-- plans -->", "<!-- /plans -->"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan: the stage of a configuration on a slice, or with ``sampling`` its model's sampling on one chip."""

    config: str
    topology: str
    fsdp: int = 1
    context: int = 1
    sampling: bool = False

    @property
    def name(self) -> str:
        """Key of the row in the results."""
        mesh = "sampling" if self.sampling else f"{self.fsdp}x{self.context}"
        return f"{self.config} {self.topology} {mesh}"


SLICES = {"v4": "v4:2x2x4", "v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4"}
STAGES = ("image", "video_256x384", "video_320x576", "image_to_video_320x576", "svd", "svd_xt")
ROWS = [
    Row(config="svd_xt", topology="v5e:4x4", fsdp=16),
    Row(config="svd_xt", topology="v5e:4x4", fsdp=8, context=2),
    Row(config="svd_xt", topology="v5e:4x4", fsdp=4, context=4),
    Row(config="svd", topology="v5e:1", sampling=True),
    Row(config="svd_xt", topology="v5e:1", sampling=True),
    Row(config="svd_xt", topology="v5p:1"),
    *(
        Row(config=stage, topology=topology, fsdp=16)
        for stage in STAGES
        for chip, topology in SLICES.items()
        if (stage, chip) != ("svd_xt", "v5e")
    ),
]


def main() -> None:
    """Make the plans that are missing, and the page's table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="make only rows whose name contains this")
    only = parser.parse_args().only
    console = Console(stderr=True)
    for row in ROWS:
        results = _results()
        if only in row.name and row.name not in results:
            console.print(row.name)
            results[row.name] = _made(row)
            _write(RESULTS, json.dumps(results, indent=1) + "\n")
    before, rest = PAGE.read_text().split(START)
    _write(PAGE, f"{before}{START}\n{table(_results())}{END}{rest.split(END)[1]}")


def table(results: dict[str, list[dict]]) -> str:
    """The rows that are there, in the order of ROWS, as Markdown."""
    columns = (
        *("run", "slice", "data x fsdp x context", "batch", "GiB per chip", "of them state and frozen"),
        *("at the peak", "estimate"),
    )
    lines = [f"| {' | '.join(columns)} |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    for row in ROWS:
        for plan in results.get(row.name, ()):
            what = f"{row.config}, {plan['name']}" if row.sampling else row.config
            lines.append(f"| {what} | {row.topology} | {_cells(plan)} |")
    return "\n".join(lines) + "\n"


def _results() -> dict[str, list[dict]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _write(path: Path, text: str) -> None:
    with finished(path, overwrite=True) as partial:
        partial.write_text(text)


def _cells(plan: dict) -> str:
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    if "refused" in plan:
        return f"{mesh} | {plan['batch']} | {plan['refused']} | | | "
    own = ("temporaries, results", "program")
    resident = sum(size for name, size in plan["memory"].items() if name not in own)
    verdict = f"{plan['total']:.1f} of {plan['hbm']}: " + ("**fits**" if plan["fits"] else "too much")
    cells = [mesh, plan["batch"], verdict, f"{resident:.2f}", f"{plan['floor']:.2f} s", f"{plan['step']:.2f} s"]
    return " | ".join(map(str, cells))


def _made(row: Row) -> list[dict]:
    options = ["--sampling"] if row.sampling else _mesh(row)
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
    return ["--mesh.fsdp", str(row.fsdp), "--mesh.context", str(row.context), "--unet.batch", str(row.fsdp)]


if __name__ == "__main__":
    main()
