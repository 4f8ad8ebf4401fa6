"""Where the compiler puts every array of a program, without waiting for the chip's code.

The code takes most of the time and of the host's memory, and changes nothing of what was placed before. XLA cannot
be told to stop there, but it can be told to write down what it has done; so the plan is made by a process of its
own, which is ended as soon as that is there.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from svdjax.errors import UserError
from svdjax.interrupts import terminable
from svdjax.planning.collectives import collectives_of
from svdjax.planning.plan import GIB, NO_ROOM, WORKING, Outline, Plan

# What libtpu 0.0.42 writes, in this order; a file is whole when the next one is there.
_PROGRAM = "*.after_optimizations.txt"
_ASSIGNMENT = "*.after_optimizations-buffer-assignment.txt"
_NEXT = "*.after_optimizations-buffer-assignment-values.txt"
# Memories on the chip itself and the host's have a colour; what has none lies in the HBM.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (?!color )", re.MULTILINE)


class NoRoom(UserError):
    """The chips' memory is too small."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the compiler has decided.

    Attributes:
        gib: of one chip's HBM: arguments, results and temporaries, padded as they lie there.
        hlo: the optimised program. seconds: until then.
    """

    gib: float
    hlo: str
    seconds: float


def plan_buffers(outline: Outline, argv: Sequence[str], module: str) -> Plan:
    """The plan of a program, but for the size of its code and the compiler's own estimate of its speed.

    Args:
        outline: of the program.
        argv, module: see `place`.

    Raises:
        UserError: see `place`.
    """
    placed = place(argv, module)
    needed = {WORKING: placed.gib - outline.total}
    return Plan(
        **vars(outline) | {"memory": outline.memory | needed},
        seconds={"until buffers are placed": placed.seconds},
        roofline=None,
        collectives=collectives_of(placed.hlo),
    )


def largest_batch(fits: Callable[[int], bool], parts: int) -> int:
    """The largest batch that fits, found by bisection.

    Returns:
        A multiple of the ``parts`` that a batch is divided into; 0 if not even one clip for each fits.
    """
    low, high = 0, 1
    while fits(high * parts):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * parts) else (low, middle)
    return low * parts


def place(argv: Sequence[str], module: str) -> Placement:
    """Run ``svdjax plan`` with these arguments until the compiler has placed the program's arrays.

    Args:
        argv: of ``svdjax plan``, for the program to be compiled. module: what the compiler calls it.

    Raises:
        NoRoom: the compiler finds none in the chips' memory.
        UserError: the plan was refused, or its process ended before the arrays were placed.
    """
    start = time.perf_counter()
    with terminable(), tempfile.TemporaryDirectory() as name:
        folder, said = Path(name), Path(name) / "stderr"
        with said.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "svdjax.cli", "plan", *argv],
                env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_dump(folder, module)}"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            while (code := child.poll()) is None and not any(folder.glob(_NEXT)):
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
        if not any(folder.glob(_NEXT)):
            raise reason(said.read_text(), code)
        return Placement(
            gib=gib_in(next(folder.glob(_ASSIGNMENT)).read_text()),
            hlo=next(folder.glob(_PROGRAM)).read_text(),
            seconds=time.perf_counter() - start,
        )


def gib_in(assignment: str) -> float:
    """GiB of a chip's HBM that an assignment of buffers, as the compiler writes it down, takes."""
    return sum(map(int, _ALLOCATION.findall(assignment))) / GIB


def reason(stderr: str, code: int | None) -> UserError:
    """Why a plan ended before its arrays were placed."""
    lines = stderr.strip().splitlines() or [""]
    refusals = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if refusals:
        return NoRoom(refusals[-1]) if f": {NO_ROOM} (" in refusals[-1] else UserError(refusals[-1])
    last = lines[-1][:300]
    return UserError(f"the plan's process ended with code {code} (-9: out of this machine's memory): {last}")


def _dump(folder: Path, module: str) -> str:
    # Of this program alone: the host compiles small ones, too.
    return f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*{module}.*"
