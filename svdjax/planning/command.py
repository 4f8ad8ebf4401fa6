"""``svdjax plan``: compile a run's real step, or sampling, for a slice that is not there; say what it needs.

libtpu compiles on any machine (``pip install 'svdjax[tpu]'``). Memory is the compiler's own account for one chip.
``--buffers`` has it without waiting for the chip's code, which takes most of the time. Times are estimates and
marked so.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from svdjax.conversion.output import finished
from svdjax.errors import UserError
from svdjax.planning.buffers import NoRoom, largest_batch, place, plan_buffers
from svdjax.planning.chips import chip_of, topology_devices
from svdjax.planning.plan import Outline, table
from svdjax.planning.sampling import plan_sampling
from svdjax.planning.training import outline_training, plan_training, shardings
from svdjax.sampling.pipeline import Settings
from svdjax.training.config import RunConfig, load_config
from svdjax.training.mesh import make_mesh
from svdjax.training.run import DEMO
from svdjax.training.stage import Stage


def main(argv: Sequence[str]) -> int:
    """``svdjax plan CONFIG.py --topology v5e:4x4 [--buffers|...] [--option ...]``; `_parser` has all of them."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return 0
    if options.json and (options.shardings or options.largest):
        parser.error("--json: there is none for --shardings and --largest")
    if options.context != 1 and not options.sampling:
        parser.error("--context: is for --sampling; in training it is --mesh.context")
    config = load_config(rest, default=DEMO)
    devices = topology_devices(options.topology)
    console = Console()
    if options.sampling:
        shared = {"per_device": options.videos, "context": options.context}
        settings = Settings(defaults=config.model.defaults, **shared, chunk=options.chunk)
        plans = plan_sampling(config.model, settings, devices, options.topology)
        return _report(plans, options.json, console)
    stage, mesh = _stage(config, options.stage), make_mesh(config.mesh, devices)
    again = [*rest, "--topology", options.topology, "--stage", stage.name]
    if options.shardings:
        # As wide as its rows, whatever the terminal: names that are cut off could not be looked for.
        Console(width=1000).print(shardings(config, stage, mesh))
        return 0
    if options.largest:
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        largest = largest_batch(_fits(again, stage, options.topology, console), parts)
        console.print(f"largest batch whose arrays fit: {largest}")
        return 0
    if not options.outline and not options.buffers:
        return _report([plan_training(config, stage, mesh, options.topology)], options.json, console)
    made = outline_training(config, stage, mesh, options.topology)
    if options.buffers:
        with console.status(f"{stage.name} on {options.topology}: the compiler places its arrays"):
            made = plan_buffers(made, again)
    return _report([made], options.json, console)


def _fits(argv: Sequence[str], stage: Stage, topology: str, console: Console) -> Callable[[int], bool]:
    """Whether the arrays of a step with so many clips have room."""

    def fits(batch: int) -> bool:
        try:
            with console.status(f"batch {batch}: the compiler places its arrays"):
                placed = place([*argv, f"--{stage.name}.batch", str(batch), f"--{stage.name}.accumulate", "1"])
        except NoRoom as error:
            console.print(f"batch {batch}: {error}")
            return False
        console.print(f"batch {batch}: {placed.gib:.2f} GiB")
        return placed.gib <= chip_of(topology).hbm_gib

    return fits


def _report(plans: Iterable[Outline], file: Path | None, console: Console) -> int:
    """Print each plan when it is made, for the next one may take long."""
    made = []
    for each in plans:
        console.print(table(each))
        made.append(each.to_dict())
    if file:
        with finished(file, overwrite=True) as partial:
            partial.write_text(json.dumps(made, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="svdjax plan", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="v5e:4x4", help="e.g. v5e:1, v5e:4x4; 2xv5e:4x4: two slices")
    parser.add_argument("--stage", help="of the configuration; by default its last one")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--outline", action="store_true", help="compile nothing: what stays in memory beside activations, and FLOPs"
    )
    instead.add_argument(
        "--buffers", action="store_true", help="stop when all arrays have their place: a small part of the time"
    )
    instead.add_argument("--shardings", action="store_true", help="print how each parameter is cut, no more")
    instead.add_argument("--largest", action="store_true", help="look for the largest batch whose arrays fit")
    instead.add_argument("--sampling", action="store_true", help="plan sampling from the model instead")
    parser.add_argument("--videos", type=int, default=1, help="that a chip (or those of --context) samples at once")
    parser.add_argument("--context", type=int, default=1, help="chips that share one video when sampling")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--chunk", type=int, help="frames to decode at once; as `svdjax sample` if left out")
    return parser


def _stage(config: RunConfig, name: str | None) -> Stage:
    stages = {stage.name: stage for stage in config.stages()}
    name = name or list(stages)[-1]
    if name not in stages:
        raise UserError(f"--stage {name}: the configuration has {', '.join(stages)}")
    return stages[name]
