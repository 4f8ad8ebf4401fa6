"""``svdjax plan``: compile a run's real step for a slice that is not there; say what it needs and how fast it is.

libtpu compiles on any machine (``pip install 'svdjax[tpu]'``). Memory is the compiler's own account. Times are
estimates and marked so: the compiler's roofline, which counts neither Pallas kernels nor transfers between chips,
and transfers at the full bandwidth of a chip's links without overlap.
"""

import argparse
import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from svdjax.compilation import nothing_kept
from svdjax.errors import UserError, require
from svdjax.models.params import flat_params
from svdjax.training.collectives import Collective, collectives_of
from svdjax.training.config import RunConfig, load_config
from svdjax.training.flops import TrainingFlops, clip_shapes, peak_flops, stage_flops
from svdjax.training.mesh import make_mesh
from svdjax.training.optim import make_optimizer
from svdjax.training.run import DEMO
from svdjax.training.sharding import BatchLayout, param_shardings, spec_table, state_shardings
from svdjax.training.stage import Stage
from svdjax.training.state import TrainState, new_state
from svdjax.training.step import make_train_step
from svdjax.typing import PyTree


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What a chip has: memory that a program may use in GiB, and bytes/s of all its links (vendor's pages)."""

    hbm_gib: float
    link_bandwidth: float


CHIPS = {
    "v4": Chip(hbm_gib=30.75, link_bandwidth=300e9),
    "v5e": Chip(hbm_gib=15.75, link_bandwidth=200e9),
    "v5p": Chip(hbm_gib=95.74, link_bandwidth=600e9),
    "v6e": Chip(hbm_gib=31.25, link_bandwidth=448e9),
}
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the compiler says of a stage's step on one chip of a slice.

    Attributes:
        memory: GiB by what takes them.
        seconds: tracing, lowering and compiling.
        roofline: seconds of the compiler's own estimate, without kernels and transfers.
        collectives: what is sent; None where the compiler does not show its program.
        flops, executed: per step of all chips: what the mathematics asks for, and what is done.
    """

    stage: str
    topology: str
    mesh: Mesh
    batch: int
    memory: dict[str, float]
    seconds: dict[str, float]
    roofline: float
    collectives: list[Collective] | None
    flops: int
    executed: int

    @property
    def chip(self) -> Chip:
        """Of which the slice is made."""
        return CHIPS[self.topology.split(":")[0]]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.mesh.size

    @property
    def total(self) -> float:
        """GiB."""
        return sum(self.memory.values())

    @property
    def peak(self) -> float:
        """FLOP/s of all chips together."""
        return self.chips * (peak_flops(self.mesh.devices.flat[0].device_kind) or float("nan"))

    @property
    def transfer(self) -> float:
        """Estimate: seconds of what is sent, over all links of a chip, with nothing else going on meanwhile."""
        return sum(each.sent for each in self.collectives or ()) / self.chip.link_bandwidth

    @property
    def step(self) -> float:
        """Estimate: seconds of a step, by the compiler or by its FLOPs at the chips' peak, and the transfers."""
        return max(self.roofline, self.executed / self.peak) + self.transfer

    @property
    def mfu(self) -> float:
        """Estimate: share of the chips' peak that the mathematics would use."""
        return self.flops / (self.peak * self.step)


def main(argv: Sequence[str]) -> int:
    """``svdjax plan CONFIG.py --topology v5e:4x4 [--stage NAME] [--shardings] [--largest] [--option ...]``."""
    parser = argparse.ArgumentParser(prog="svdjax plan", description=__doc__, add_help=False)
    parser.add_argument("--topology", default="v5e:4x4", help="a slice, e.g. v5e:4x4, v5p:4x4x4")
    parser.add_argument("--stage", help="of the configuration; by default its last one")
    parser.add_argument(
        "--shardings", action="store_true", help="print how each parameter is cut, and compile nothing"
    )
    parser.add_argument("--largest", action="store_true", help="look for the largest batch that fits")
    options, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return 0
    config = load_config(rest, default=DEMO)
    stages = {stage.name: stage for stage in config.stages()}
    name = options.stage or list(stages)[-1]
    if name not in stages:
        raise UserError(f"--stage {name}: the configuration has {', '.join(stages)}")
    console = Console()
    mesh = make_mesh(config.mesh, topology_devices(options.topology))
    if options.shardings:
        console.print(shardings(config, stages[name], mesh))
        return 0
    if options.largest:
        console.print(f"largest batch that fits: {largest_batch(config, stages[name], mesh, options.topology)}")
        return 0
    console.print(table(plan(config, stages[name], mesh, options.topology)))
    return 0


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a slice by its name, whether it is there or not.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    require("libtpu", "tpu")
    if name.split(":")[0] not in CHIPS:
        raise UserError(f"--topology {name}: give a kind of chip ({', '.join(CHIPS)}) and a shape, as in v5e:4x4")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no machine of Google's to ask for its slice
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies  # loads libtpu, which reads the variables

    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--topology {name}: libtpu knows no such slice ({reason})") from None


def shardings(config: RunConfig, stage: Stage, mesh: Mesh) -> Table:
    """How each trained parameter is cut, and its bytes on one chip in float32."""
    rows = spec_table(_trained(config, stage), mesh)
    table = Table("parameter", "shape", "cut", "bytes per chip")
    for path, shape, spec, size in rows:
        table.add_row(path, " x ".join(map(str, shape)), str(tuple(spec)) if any(spec) else "whole", f"{size:,}")
    table.add_row("all", "", "", f"{sum(row[-1] for row in rows):,}")
    return table


def _trained(config: RunConfig, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: x for path, x in flat_params(stage.shapes(config.model)).items() if stage.trains(path)}


def plan(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> Plan:
    """Compile a stage's step for a mesh of a topology's devices.

    Raises:
        UserError: it does not fit into the chips' memory.
    """
    arguments, step = _step(config, stage, mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = step.trace(*arguments)
        seconds = {"trace": time.perf_counter() - start}
        lowered = traced.lower()
        seconds["lower"] = time.perf_counter() - start - seconds["trace"]
        try:
            with nothing_kept():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{stage.name} on {topology}: {_out_of_memory(error)}") from None
    seconds["compile"] = time.perf_counter() - start - sum(seconds.values())
    state, frozen, batch = arguments
    analysis, hlo, flops = compiled.memory_analysis(), _text(compiled), _flops(config, stage)
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = {
        "parameters": _gib(state.params),
        "moments": _gib(state.opt_state),
        "average": _gib(state.ema),
        "frozen": _gib(frozen),
        "batch": _gib(batch),
        "activations, gradients": (analysis.temp_size_in_bytes + outputs) / GIB,
        "program": analysis.generated_code_size_in_bytes / GIB,
    }
    return Plan(
        stage=stage.name,
        topology=topology,
        mesh=mesh,
        batch=stage.batch,
        memory=memory,
        seconds=seconds,
        roofline=_roofline(compiled, hlo),
        collectives=None if hlo is None else collectives_of(hlo),
        flops=flops.model * stage.batch,
        executed=flops.executed * stage.batch,
    )


def _step(
    config: RunConfig, stage: Stage, mesh: Mesh
) -> tuple[tuple[TrainState, PyTree, PyTree], jax.stages.Wrapped]:
    """What the step takes, as shapes where they lie, and the step."""
    model, optimizer = stage.shapes(config.model), make_optimizer(stage.optim, stage.steps)
    params = _trained(config, stage)
    state = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    placed = state_shardings(state, optimizer, mesh, offload=stage.offload)
    rest = {path: x for path, x in flat_params(model).items() if path not in params}
    where, dtype = param_shardings(rest, mesh), jnp.dtype(stage.compute_dtype)
    frozen = {path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where[path]) for path, x in rest.items()}
    rows = NamedSharding(mesh, PartitionSpec(BatchLayout(mesh, stage.batch).axes))
    clip = _clip(config, stage)
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch, *x.shape[1:]), x.dtype, sharding=rows) for name, x in clip.items()
    }
    step = make_train_step(stage, model, optimizer, config.seed, placed)
    return (jax.tree.map(_at, state, placed), frozen, batch), step


def _at(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _clip(config: RunConfig, stage: Stage) -> dict[str, np.ndarray]:
    """A batch of one black clip, as the data pipeline would make it."""
    sampling, vae = config.data.sampling, config.model.vae
    frames, height, width = getattr(stage, "frames", None) or sampling.frames, *sampling.size
    batch = {
        "video": np.zeros((1, frames, height, width, 3), np.uint8),
        "fps": np.ones(1, np.float32),
        "motion_bucket": np.ones(1, np.float32),
    }
    if getattr(stage, "cache_latents", False):
        shape = (1, frames, height // vae.factor, width // vae.factor, vae.latent_channels)
        batch |= {"video": batch["video"][:, :1], "latents": np.zeros(shape, np.float32)}
    if sampling.captions:
        batch["caption"] = [""]
    return stage.prepare(config.model, batch)


def _flops(config: RunConfig, stage: Stage) -> TrainingFlops:
    return stage_flops(stage, config.model, clip_shapes(_clip(config, stage)))


def _gib(tree: PyTree) -> float:
    """Of the shards on one chip."""
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return sum(sizes) / GIB


def _text(compiled: jax.stages.Compiled) -> str | None:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu cannot print some programs for v6e
        return None


def _roofline(compiled: jax.stages.Compiled, hlo: str | None) -> float:
    """The compiler's seconds; it counts each of these calls, which cost nothing, as minus one second."""
    return float(compiled.cost_analysis()["optimal_seconds"]) + (hlo or "").count('"ConcatBitcast"')


def _out_of_memory(error: Exception) -> str:
    """The compiler's sentence about the memory, out of pages."""
    found = re.search(r"[Uu]sed [\d.]+\w of [\d.]+\w hbm", str(error))
    if found:
        return f"does not fit ({found[0].lower()}): use more chips, --mesh.context, or more accumulation"
    return f"does not compile ({next(iter(str(error).splitlines()), '')[:300]})"


def largest_batch(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> int:
    """The largest batch that fits, found by bisection; each try is compiled.

    Returns:
        A multiple of the parts that a batch is divided into; 0 if not even one clip for each fits.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def fits(clips: int) -> bool:
        try:
            made = plan(config, dataclasses.replace(stage, batch=clips * parts, accumulate=1), mesh, topology)
        except UserError:
            return False
        return made.total <= made.chip.hbm_gib

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * parts


def table(plan: Plan) -> Table:
    """A plan for people."""
    mesh = " x ".join(f"{size} {name}" for name, size in plan.mesh.shape.items())
    rows = Table(title=f"{plan.stage} on {plan.topology}: {mesh}, batch {plan.batch}", show_header=False)
    for name, size in plan.memory.items():
        rows.add_row(name, f"{size:.2f} GiB")
    fits = "fits" if plan.total <= plan.chip.hbm_gib else "does NOT fit"
    rows.add_row("memory per chip", f"{plan.total:.2f} of {plan.chip.hbm_gib} GiB: {fits}", end_section=True)
    rows.add_row("FLOPs of a step", f"{plan.flops:.3g}, executed {plan.executed:.3g}")
    rows.add_row("at the chips' peak", f"{plan.executed / plan.peak:.3g} s")
    rows.add_row("compiler's roofline", f"{plan.roofline:.3g} s, without kernels and transfers")
    for each in plan.collectives or ():
        rows.add_row(each.kind, f"{each.count} times, {each.bytes / GIB:.2f} GiB per chip")
    rows.add_row("transfers", f"{plan.transfer:.3g} s" if plan.collectives is not None else "not shown by libtpu")
    rows.add_row("step (estimate)", f"{plan.step:.3g} s")
    rows.add_row("MFU (estimate)", f"{plan.mfu:.0%}", end_section=True)
    for name, seconds in plan.seconds.items():
        rows.add_row(name, f"{seconds:.1f} s")
    return rows
