"""The engine of conversion: tables of entries, read in both directions, every key used exactly once.

A *flat tree* maps dotted parameter paths (``unet.conv_in.kernel``) or PyTorch keys to NumPy arrays. A *table* is a
list of :class:`Entry`: which of our paths and which of their keys hold the same numbers, and in which layout.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from svdjax.conversion.tensors import Tensor
from svdjax.errors import UserError, check_keys

Arrays = tuple[np.ndarray, ...]
Leaf = TypeVar("Leaf", np.ndarray, Tensor)
Row = tuple[tuple[str, ...], tuple[str, ...], Callable[[Arrays], Arrays]]  # from, to, how


@dataclass(frozen=True)
class Layout:
    """How the same numbers are arranged on either side; ``to_theirs(to_ours(x)) == x`` bit for bit."""

    name: str
    to_ours: Callable[[Arrays], Arrays]
    to_theirs: Callable[[Arrays], Arrays]


def _transpose(name: str, axes: tuple[int, ...]) -> Layout:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Layout(name, lambda xs: (xs[0].transpose(axes),), lambda xs: (xs[0].transpose(inverse),))


SAME = Layout("same", lambda xs: xs, lambda xs: xs)
LINEAR = _transpose("linear", (1, 0))  # (out, in) <-> (in, out)
CONV2D = _transpose("conv2d", (2, 3, 1, 0))  # (out, in, kh, kw) <-> (kh, kw, in, out)
CONV3D = _transpose("conv3d", (2, 3, 4, 1, 0))  # (out, in, kt, kh, kw) <-> (kt, kh, kw, in, out)
# A linear layer that the original code wrote as a 1x1 convolution: (out, in, 1, 1) <-> (in, out)
CONV1X1_AS_LINEAR = Layout(
    "conv1x1 as linear",
    lambda xs: (xs[0][:, :, 0, 0].transpose(1, 0),),
    lambda xs: (xs[0].transpose(1, 0)[:, :, None, None],),
)
# Fused q, k, v projections of torch's MultiheadAttention: (3 out, in) <-> three of (in, out), and the biases.
FUSED_QKV = Layout(
    "fused qkv",
    lambda xs: tuple(part.transpose(1, 0) for part in np.split(xs[0], 3)),
    lambda xs: (np.concatenate([x.transpose(1, 0) for x in xs]),),
)
FUSED_QKV_BIAS = Layout("fused qkv bias", lambda xs: tuple(np.split(xs[0], 3)), lambda xs: (np.concatenate(xs),))


@dataclass(frozen=True)
class Entry:
    """One row of a table: the paths and the keys that hold the same numbers."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME


def entry(ours: str, theirs: str, layout: Layout = SAME) -> Entry:
    """A row with one path and one key."""
    return Entry((ours,), (theirs,), layout)


def linear(ours: str, theirs: str, *, bias: bool = True) -> list[Entry]:
    """Rows of an ``nnx.Linear`` and a ``torch.nn.Linear``."""
    rows = [entry(f"{ours}.kernel", f"{theirs}.weight", LINEAR)]
    return [*rows, entry(f"{ours}.bias", f"{theirs}.bias")] if bias else rows


def conv2d(ours: str, theirs: str, *, bias: bool = True) -> list[Entry]:
    """Rows of an ``nnx.Conv`` with a 2-D kernel and a ``torch.nn.Conv2d``."""
    rows = [entry(f"{ours}.kernel", f"{theirs}.weight", CONV2D)]
    return [*rows, entry(f"{ours}.bias", f"{theirs}.bias")] if bias else rows


def conv3d(ours: str, theirs: str) -> list[Entry]:
    """Rows of an ``nnx.Conv`` with a 3-D kernel and a ``torch.nn.Conv3d``."""
    return [entry(f"{ours}.kernel", f"{theirs}.weight", CONV3D), entry(f"{ours}.bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Entry]:
    """Rows of a group or layer norm with scale and bias."""
    return [entry(f"{ours}.scale", f"{theirs}.weight"), entry(f"{ours}.bias", f"{theirs}.bias")]


def prefixed(table: Iterable[Entry], *, ours: str = "", theirs: str = "") -> list[Entry]:
    """The same table with a prefix in front of our paths and in front of their keys."""
    return [
        Entry(tuple(ours + path for path in row.ours), tuple(theirs + key for key in row.theirs), row.layout)
        for row in table
    ]


def to_ours(table: list[Entry], tensors: Mapping[str, Leaf], *, what: str) -> dict[str, Leaf]:
    """Read a PyTorch state dict through a table.

    Args:
        table: rows that cover every key of ``tensors``.
        tensors: their keys and arrays, or :class:`Tensor` that are still in a file (the results are so too).
        what: name of the checkpoint, for error messages.

    Returns:
        Our paths and arrays, in the source's dtypes.

    Raises:
        UserError: a key is missing or left over, or a tensor's number of axes does not fit its row.
    """
    check_keys(what, tensors, (key for row in table for key in row.theirs))
    return _translate(((row.theirs, row.ours, row.layout.to_ours) for row in table), tensors, what)


def to_theirs(table: list[Entry], flat: Mapping[str, Leaf], *, what: str) -> dict[str, Leaf]:
    """Write a PyTorch state dict through a table: the inverse of :func:`to_ours`, and as strict."""
    check_keys(what, flat, (path for row in table for path in row.ours))
    return _translate(((row.ours, row.theirs, row.layout.to_theirs) for row in table), flat, what)


def _translate(rows: Iterable[Row], leaves: Mapping[str, Leaf], what: str) -> dict[str, Leaf]:
    result: dict[str, Leaf] = {}
    for sources, targets, rearrange in rows:
        inputs = tuple(leaves[name] for name in sources)
        try:
            lazy = any(isinstance(leaf, Tensor) for leaf in inputs)
            outputs = _deferred(rearrange, inputs) if lazy else rearrange(inputs)
        except (ValueError, IndexError):
            shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in zip(sources, inputs, strict=True))
            raise UserError(f"{what}: wrong shape: {shapes} cannot be {', '.join(targets)}") from None
        result.update(zip(targets, outputs, strict=True))
    return result


def _deferred(rearrange: Callable[[Arrays], Arrays], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Rearrange when loaded; shapes are known now, from arrays that take no memory."""
    dtypes = {leaf.dtype for leaf in inputs}
    if len(dtypes) > 1:
        names = ", ".join(leaf.name for leaf in inputs)
        raise UserError(f"{names}: are stored as one tensor but have several dtypes: choose one with --dtype")
    shapes = [out.shape for out in rearrange(tuple(np.broadcast_to(np.False_, leaf.shape) for leaf in inputs))]
    name = "+".join(dict.fromkeys(leaf.name for leaf in inputs))
    return tuple(
        Tensor(name, shape, inputs[0].dtype, partial(_rearranged, rearrange, inputs, index))
        for index, shape in enumerate(shapes)
    )


def _rearranged(rearrange: Callable[[Arrays], Arrays], inputs: tuple[Tensor, ...], index: int) -> np.ndarray:
    return rearrange(tuple(leaf.load() for leaf in inputs))[index]
