"""What chips send each other in a compiled program: the collectives in its HLO, by kind, with their bytes."""

import math
import re
from collections import Counter
from dataclasses import dataclass

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OP = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind in a step.

    Attributes:
        kind: of the operation. count: how often it happens, loops counted by their length.
        bytes: of its results on one chip.
    """

    kind: str
    count: int
    bytes: int

    @property
    def sent(self) -> int:
        """Bytes through a chip's links, up to one chip's share: a reduction to all is a scatter and a gather."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1)


def collectives_of(hlo: str) -> list[Collective]:
    """The collectives of a program, given as text of its optimised HLO.

    A loop whose length the compiler does not know counts once. A collective that a TPU carries out while it
    computes is written into each of the fusions beside which it runs, under one channel, and counts once, too.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    computations, entry = _computations(hlo)
    waiting, seen = [(entry, 1)], set()
    while waiting:
        name, times = waiting.pop()
        for line in computations.get(name, ()):
            if (found := _OP.search(line)) and (operation := _identity(found[2], line)) not in seen:
                seen.add(operation)
                counts[found[2]] += times
                names_operands = bool(found[3]) and found[2] != "all-reduce"
                sizes[found[2]] += times * _bytes(found[1], names_operands=names_operands)
            trips = int(found[1]) if (found := _TRIPS.search(line)) else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            waiting += [(inner, times * trips) for inner in called]
    return [Collective(kind=kind, count=counts[kind], bytes=sizes[kind]) for kind in _KINDS if counts[kind]]


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _identity(kind: str, line: str) -> object:
    """The same for all that is written of one operation; one without a channel is written once."""
    channel = _CHANNEL.search(line)
    return (kind, channel[1]) if channel else object()


def _bytes(shape: str, *, names_operands: bool) -> int:
    """Of all arrays that an operation results in; one that only starts names its operands, too, first."""
    *operands, results = shape.split("), (")
    sizes = [
        _width(kind) * math.prod(map(int, filter(None, axes.split(",")))) for kind, axes in _ARRAY.findall(results)
    ]
    return max(sizes, default=0) if names_operands and not operands else sum(sizes)


def _width(kind: str) -> int:
    return 1 if kind == "pred" else max(int(re.search(r"\d+", kind)[0]) // 8, 1)
