"""What chips send each other in a compiled program: the collectives in its HLO, by kind, with their bytes."""

import math
import re
from collections import Counter
from dataclasses import dataclass

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OP = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
# One that a TPU carries out while it computes is written into what starts it, into each fusion beside which it
# runs, and into what ends it: only the first is counted.
_REPEATED = re.compile(r"^\s*(?:ROOT )?%?async-collective-done[.\d]* =|calls=%?async_collective_fusion")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+)")
_LIMIT = re.compile(r"(%[\w.-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(%[\w.-]+, (%[\w.-]+)\), direction=LT")
# The ways to write groups: all of their members, the axes of a mesh, and their number and size.
_MEMBERS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_SIZE = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind in a step.

    Attributes:
        kind: of the operation. count: how often it happens, loops counted by their length.
        bytes: of its results on one chip; of a reduce-scatter, of what it adds up.
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

    A loop whose length is not to be seen counts once.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    computations, entry = _computations(hlo)
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for line in computations.get(name, ()):
            if _REPEATED.search(line):
                continue
            if found := _OP.search(line):
                # Within such a fusion, of which each chip keeps its part.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else found[2]
                counts[kind] += times
                names_operands = bool(found[3]) and found[2] != "all-reduce"
                whole = _group_size(line) if found[2] == "reduce-scatter" else 1
                sizes[kind] += times * whole * _bytes(found[1], names_operands=names_operands)
            trips = _trips(line, computations)
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


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often what an instruction calls is carried out: of a loop that counts from 0, its limit."""
    if known := _TRIPS.search(line):
        return int(known[1])
    if found := _WHILE.search(line):
        condition = "\n".join(computations.get(found[1], ()))
        limits, below = dict(_LIMIT.findall(condition)), _BELOW.search(condition)
        return int(limits.get(below[1], 1)) if below else 1
    return 1


def _group_size(line: str) -> int:
    """How many chips take part in a collective together."""
    if found := _MEMBERS.search(line):
        return found[1].count(",") + 1
    if found := _AXES.search(line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", found[2]))
    return int(found[1]) if (found := _SIZE.search(line)) else 1


def _bytes(shape: str, *, names_operands: bool) -> int:
    """Of all arrays that an operation results in; one that only starts names its operands, too, first."""
    *operands, results = shape.split("), (")
    sizes = [
        _width(kind) * math.prod(map(int, filter(None, axes.split(",")))) for kind, axes in _ARRAY.findall(results)
    ]
    return max(sizes, default=0) if names_operands and not operands else sum(sizes)


def _width(kind: str) -> int:
    return 1 if kind == "pred" else max(int(re.search(r"\d+", kind)[0]) // 8, 1)
