"""``svdjax plan``: compile a run's real step, or sampling, for a slice that is not there; say what it needs.

libtpu compiles on any machine (``pip install 'svdjax[tpu]'``). Memory is the compiler's own account for one chip.
Times are estimates and marked so.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from svdjax.conversion.output import finished
from svdjax.errors import UserError
from svdjax.planning.chips import topology_devices
from svdjax.planning.plan import Outline, table
from svdjax.planning.sampling import plan_sampling
from svdjax.planning.training import largest_batch, outline_training, plan_training, shardings
from svdjax.sampling.pipeline import Settings
from svdjax.training.config import RunConfig, load_config
from svdjax.training.mesh import make_mesh
from svdjax.training.run import DEMO
from svdjax.training.stage import Stage


def main(argv: Sequence[str]) -> int:
    """``svdjax plan CONFIG.py --topology v5e:4x4 [--outline|--sampling|--shardings|--largest] [--option ...]``."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return 0
    config = load_config(rest, default=DEMO)
    devices = topology_devices(options.topology)
    console = Console()
    if options.sampling:
        settings = Settings(defaults=config.model.defaults, per_device=options.videos, chunk=options.chunk)
        plans = plan_sampling(config.model, settings, devices[0], options.topology)
        return _report(plans, options.json, console)
    stage, mesh = _stage(config, options.stage), make_mesh(config.mesh, devices)
    if options.shardings:
        console.print(shardings(config, stage, mesh))
        return 0
    if options.largest:
        console.print(f"largest batch that fits: {largest_batch(config, stage, mesh, options.topology)}")
        return 0
    plan = outline_training if options.outline else plan_training
    return _report([plan(config, stage, mesh, options.topology)], options.json, console)


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
    parser.add_argument("--topology", default="v5e:4x4", help="a slice, e.g. v5e:1, v5e:4x4, v5p:4x4x4")
    parser.add_argument("--stage", help="of the configuration; by default its last one")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--outline", action="store_true", help="compile nothing: what stays in memory beside activations, and FLOPs"
    )
    instead.add_argument("--shardings", action="store_true", help="print how each parameter is cut, no more")
    instead.add_argument("--largest", action="store_true", help="look for the largest batch that fits")
    instead.add_argument("--sampling", action="store_true", help="plan sampling from the model on one chip instead")
    parser.add_argument("--videos", type=int, default=1, help="that a chip samples at once")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--chunk", type=int, help="frames to decode at once; as `svdjax sample` if left out")
    return parser


def _stage(config: RunConfig, name: str | None) -> Stage:
    stages = {stage.name: stage for stage in config.stages()}
    name = name or list(stages)[-1]
    if name not in stages:
        raise UserError(f"--stage {name}: the configuration has {', '.join(stages)}")
    return stages[name]
