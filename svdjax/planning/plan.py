"""A plan: what the compiler says of a program on one chip, and what that means for its speed.

Memory is the compiler's own account, of the whole program or of its arrays. Times are estimates and marked so: the
compiler's roofline, which counts neither Pallas kernels nor transfers between chips, and transfers at the full
bandwidth of a chip's links without overlap.
"""

import math
import re
import time
from dataclasses import asdict, dataclass

import jax
from jax.sharding import Mesh
from rich.table import Table

from svdjax.compilation import nothing_kept
from svdjax.errors import UserError
from svdjax.planning.chips import Chip, chip_of
from svdjax.planning.collectives import Collective, collectives_of
from svdjax.training.flops import peak_flops
from svdjax.typing import PyTree

GIB = 2**30
WORKING, PROGRAM = "temporaries, results", "program"  # of a plan's memory, beside what lies there meanwhile
NO_ROOM = "does not fit"


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a program for a slice before it is compiled.

    Attributes:
        name: of the program. batch: clips or videos that all chips work on in one call.
        at_once: those of them whose activations a chip, or a group that shares a video, has at the same time.
        memory: GiB on one chip by what takes them.
        flops, executed: of all chips: what the mathematics asks for, and what is done.
    """

    name: str
    topology: str
    mesh: Mesh
    batch: int
    memory: dict[str, float]
    flops: int
    executed: int
    at_once: int = 1

    @property
    def chip(self) -> Chip:
        """Of which the slice is made."""
        return chip_of(self.topology)

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
    def floor(self) -> float:
        """Seconds of what is executed, at the chips' peak."""
        return self.executed / self.peak

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON can hold it; GiB, seconds and FLOPs."""
        return {
            "name": self.name,
            "topology": self.topology,
            "mesh": dict(self.mesh.shape),
            "batch": self.batch,
            "memory": self.memory,
            "total": self.total,
            "hbm": self.chip.hbm_gib,
            "flops": self.flops,
            "executed": self.executed,
            "floor": self.floor,
        }


@dataclass(frozen=True, kw_only=True)
class Plan(Outline):
    """What the compiler says of a program on one chip of a slice.

    Attributes:
        memory: all that it needs; without PROGRAM if the chip's code was not made.
        seconds: of the parts of making it.
        roofline: seconds of the compiler's own estimate, without kernels and transfers; None without the code.
        collectives: what is sent; None where the compiler does not show its program.
    """

    seconds: dict[str, float]
    roofline: float | None
    collectives: list[Collective] | None

    @property
    def fits(self) -> bool | None:
        """Whether it has room in the chip's memory; None if its arrays have and the code's size is not known."""
        if self.total > self.chip.hbm_gib:
            return False
        return True if PROGRAM in self.memory else None

    @property
    def transfer(self) -> float | None:
        """Estimate: seconds of what is sent, over all links of a chip, with nothing else going on meanwhile.

        None where the compiler does not show what is sent.
        """
        if self.collectives is None:
            return None
        return sum(each.sent for each in self.collectives) / self.chip.link_bandwidth

    @property
    def step(self) -> float | None:
        """Estimate: seconds of a call, by the compiler or by its FLOPs at the chips' peak, and the transfers.

        None without the compiler's word: FLOPs alone would promise too much.
        """
        return None if self.roofline is None else max(self.roofline, self.floor) + (self.transfer or 0)

    @property
    def mfu(self) -> float | None:
        """Estimate: share of the chips' peak that the mathematics would use."""
        return None if self.step is None else self.flops / (self.peak * self.step)

    @property
    def mfu_bounds(self) -> tuple[float, float] | None:
        """Most of the chips' peak that the mathematics could use: with transfers beside computing, and after it.

        By FLOPs at the peak and transfers alone; None where the compiler does not show what is sent.
        """
        if self.transfer is None:
            return None
        ideal = self.flops / self.peak
        return ideal / max(self.floor, self.transfer), ideal / (self.floor + self.transfer)

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON can hold it; GiB, seconds and FLOPs."""
        return super().to_dict() | {
            "fits": self.fits,
            "roofline": self.roofline,
            "collectives": None if self.collectives is None else [asdict(each) for each in self.collectives],
            "transfer": self.transfer,
            "step": self.step,
            "mfu": self.mfu,
            "mfu_bounds": self.mfu_bounds,
            "seconds": self.seconds,
        }


def make_plan(
    function: jax.stages.Wrapped, arguments: tuple[PyTree, ...], outline: Outline, *, turns: int = 1
) -> Plan:
    """Compile a program for a mesh of a slice's devices.

    Args:
        function: to be compiled. arguments: its arguments, as shapes where they lie.
        outline: of the program; its memory is what lies there meanwhile: the arguments, and what other programs
            need.
        turns: how often the loop turns that makes up the program (sampler steps, parts of a batch), of which the
            compiler counts one turn. What is done once beside it (the optimizer's part) is counted as often: the
            estimate is too high rather than too low.

    Raises:
        UserError: it does not fit into the chips' memory.
    """
    start = time.perf_counter()
    with jax.set_mesh(outline.mesh):
        traced = function.trace(*arguments)
        seconds = {"trace": time.perf_counter() - start}
        lowered = traced.lower()
        seconds["lower"] = time.perf_counter() - start - seconds["trace"]
        try:
            with nothing_kept():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{outline.name} on {outline.topology}: {out_of_memory(error)}") from None
    seconds["compile"] = time.perf_counter() - start - sum(seconds.values())
    analysis, hlo = compiled.memory_analysis(), _text(compiled)
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    needed = {
        WORKING: (analysis.temp_size_in_bytes + outputs) / GIB,
        PROGRAM: analysis.generated_code_size_in_bytes / GIB,
    }
    return Plan(
        **vars(outline) | {"memory": outline.memory | needed},
        seconds=seconds,
        roofline=turns * _roofline(compiled, hlo),
        collectives=None if hlo is None else collectives_of(hlo),
    )


def resident(**trees: PyTree) -> dict[str, float]:
    """GiB on one chip by name, of trees of shapes with shardings."""
    return {name: gib_of(tree) for name, tree in trees.items()}


def gib_of(tree: PyTree) -> float:
    """GiB of the shards on one chip, of shapes with shardings; what lies in the host's memory is not there."""
    here = [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host"]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in here) / GIB


def _text(compiled: jax.stages.Compiled) -> str | None:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu cannot print some programs for v6e
        return None


def _roofline(compiled: jax.stages.Compiled, hlo: str | None) -> float:
    """The compiler's seconds; it counts each of these calls, which cost nothing, as minus one second."""
    return float(compiled.cost_analysis()["optimal_seconds"]) + (hlo or "").count('"ConcatBitcast"')


def out_of_memory(error: Exception) -> str:
    """The compiler's sentence about the memory, out of pages."""
    used = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
    # Its other words for it, though parameters are in that number, too.
    used = used or re.search(r"HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
    if used:
        return f"{NO_ROOM} (needs {used[1]} of {used[2]})"
    return f"does not compile ({next(iter(str(error).splitlines()), '')[:300]})"


_VERDICTS = {True: ": fits", False: ": does NOT fit", None: ": arrays fit, code on top"}


def table(plan: Outline) -> Table:
    """A plan for people."""
    mesh = " x ".join(f"{size} {name}" for name, size in plan.mesh.shape.items())
    rows = Table(title=f"{plan.name} on {plan.topology}: {mesh}, batch {plan.batch}", show_header=False)
    for name, size in plan.memory.items():
        rows.add_row(name, f"{size:.2f} GiB")
    total = f"{plan.total:.2f} of {plan.chip.hbm_gib} GiB"
    if isinstance(plan, Plan):
        total += _VERDICTS[plan.fits]
    else:
        total += f", beside activations of {plan.at_once} clip{'s' * (plan.at_once > 1)}"
    rows.add_row("memory per chip", total, end_section=True)
    rows.add_row("FLOPs", f"{plan.flops:.3g}, executed {plan.executed:.3g}")
    rows.add_row("at the chips' peak", f"{plan.floor:.3g} s")
    if isinstance(plan, Plan):
        _add_compiled(rows, plan)
    return rows


def _add_compiled(rows: Table, plan: Plan) -> None:
    if plan.roofline is not None:
        rows.add_row("compiler's roofline", f"{plan.roofline:.3g} s, without kernels and transfers")
    for each in plan.collectives or ():
        rows.add_row(each.kind, f"{each.count} times, {each.bytes / GIB:.2f} GiB per chip")
    rows.add_row("transfers", "not shown by libtpu" if plan.transfer is None else f"{plan.transfer:.3g} s")
    if plan.roofline is not None:
        rows.add_row("duration (estimate)", f"{plan.step:.3g} s")
        rows.add_row("MFU (estimate)", f"{plan.mfu:.0%}")
    elif plan.mfu_bounds is not None:
        best, after = plan.mfu_bounds
        hidden = f", {after:.0%} if transfers are not hidden" if plan.transfer else ""
        rows.add_row("MFU (bound)", f"at most {best:.0%}{hidden}")
    rows.add_section()
    for name, seconds in plan.seconds.items():
        rows.add_row(name, f"{seconds:.1f} s")
