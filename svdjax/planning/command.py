"""``svdjax plan``: compile a run's real step, or sampling, for a slice that is not there; say what it needs.

libtpu compiles on any machine (``pip install 'svdjax[tpu]'``). Memory is the compiler's own account for one chip.
``--buffers`` has it without waiting for the chip's code, which takes most of the time. Times are estimates and
marked so.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console

from svdjax.conversion.output import finished
from svdjax.errors import UserError
from svdjax.planning.buffers import NoRoom, largest_batch, place, plan_buffers
from svdjax.planning.chips import chip_of, topology_devices
from svdjax.planning.plan import Outline, Plan, table
from svdjax.planning.sampling import Program, module_of, sampling_programs
from svdjax.planning.training import STEP, outline_training, plan_training, shardings
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
    _check(parser, options)
    config = load_config(rest, default=DEMO)
    devices = topology_devices(options.topology)
    plan = _sampling if options.sampling else _training
    return plan(options, [*rest, "--topology", options.topology], config, devices, Console())


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that would do nothing beside the others."""
    if options.json and (options.shardings or options.largest):
        parser.error("--json: there is none for --shardings and --largest")
    if options.context != 1 and not options.sampling:
        parser.error("--context: is for --sampling; in training it is --mesh.context")
    for name in ("videos", "chunk"):
        if getattr(options, name) is not None and not options.sampling:
            parser.error(f"--{name}: is for --sampling")
    if options.stage and options.sampling:
        parser.error("--stage: is for training")
    if options.videos is not None and options.videos < 1:
        parser.error(f"--videos {options.videos}: must be at least 1")
    if options.sampling and options.shardings:
        parser.error("--shardings: when sampling, each chip has all weights")
    if options.largest and options.videos:
        parser.error("--videos: is what --largest looks for: leave it out")


def _training(
    options: argparse.Namespace, argv: list[str], config: RunConfig, devices: Sequence[jax.Device], console: Console
) -> int:
    stage, mesh = _stage(config, options.stage), make_mesh(config.mesh, devices)
    argv = [*argv, "--stage", stage.name]
    if options.shardings:
        # As wide as its rows, whatever the terminal: names that are cut off could not be looked for.
        Console(width=1000).print(shardings(config, stage, mesh))
        return 0
    if options.largest:

        def needed(batch: int) -> float:
            return place([*argv, f"--{stage.name}.batch", str(batch), f"--{stage.name}.accumulate", "1"], STEP).gib

        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        return _largest("batch", needed, parts, options.topology, console)
    if not options.outline and not options.buffers:
        return _report([plan_training(config, stage, mesh, options.topology)], options.json, console)
    made = outline_training(config, stage, mesh, options.topology)
    if options.buffers:
        with console.status(f"{stage.name} on {options.topology}: the compiler places its arrays"):
            made = plan_buffers(made, argv, STEP)
    return _report([made], options.json, console)


def _sampling(
    options: argparse.Namespace, argv: list[str], config: RunConfig, devices: Sequence[jax.Device], console: Console
) -> int:
    argv = [*argv, "--sampling", "--context", str(options.context)]
    argv += [] if options.chunk is None else ["--chunk", str(options.chunk)]

    def programs(videos: int) -> Iterator[Program]:
        shared = {"per_device": videos, "context": options.context, "chunk": options.chunk}
        settings = Settings(defaults=config.model.defaults, **shared)
        made = sampling_programs(config.model, settings, devices, options.topology)
        return (each for each in made if options.program in (None, each.outline.name))

    def placed(program: Program, videos: int) -> Plan:
        name = program.outline.name
        return plan_buffers(program.outline, [*argv, "--videos", str(videos), "--program", name], module_of(name))

    def waited_for(program: Program) -> Plan:
        with console.status(f"{program.outline.name} on {options.topology}: the compiler places its arrays"):
            return placed(program, options.videos or 1)

    def needed(videos: int) -> float:
        return max(placed(each, videos).total for each in programs(videos))

    if options.largest:
        return _largest("number of videos", needed, 1, options.topology, console)
    made = programs(options.videos or 1)
    if options.outline:
        return _report((each.outline for each in made), options.json, console)
    if options.buffers:
        return _report(map(waited_for, made), options.json, console)
    return _report((each.plan() for each in made), options.json, console)


def _largest(what: str, needed: Callable[[int], float], parts: int, topology: str, console: Console) -> int:
    """Look for the most whose arrays fit; ``needed`` says how many GiB of a chip a number takes."""

    def fits(number: int) -> bool:
        try:
            with console.status(f"{what} {number}: the compiler places its arrays"):
                gib = needed(number)
        except NoRoom as error:
            console.print(f"{what} {number}: {error}")
            return False
        console.print(f"{what} {number}: {gib:.2f} GiB")
        return gib <= chip_of(topology).hbm_gib

    console.print(f"largest {what} whose arrays fit: {largest_batch(fits, parts)}")
    return 0


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
    instead.add_argument(
        "--largest", action="store_true", help="look for the largest batch, or most videos, whose arrays fit"
    )
    parser.add_argument("--sampling", action="store_true", help="plan sampling from the model instead of training")
    parser.add_argument("--program", help=argparse.SUPPRESS)  # of sampling, this one alone: what `place` waits for
    parser.add_argument("--videos", type=int, help="that a chip (or those of --context) samples at once")
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
