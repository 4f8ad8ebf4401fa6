"""Tensors that are still in a file: name, shape and dtype now, numbers when asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import ml_dtypes
import numpy as np

from svdjax.errors import UserError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# A float is NaN or infinite exactly when all bits of its exponent are set.
_EXPONENTS = {
    np.dtype(np.float64): (np.uint64, 0x7FF0000000000000),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}
_CHUNK = 1 << 20
_BLOCK = 64  # rows of the source that are read side by side: their lines stay in the cache until all is used

Progressed = Callable[[int], None]  # called with the number of bytes done since the last call


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
        name: the key that it has in the source file, for messages.
        shape, dtype: what ``load`` will return; bfloat16 is ``ml_dtypes.bfloat16``.
        load: reads the numbers; every call reads them again, so nothing stays in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> "Tensor":
        """A tensor that is in memory already."""
        return cls(name, array.shape, array.dtype, lambda: array)


def is_floating(dtype: np.dtype) -> bool:
    """Whether weights can have this dtype."""
    return dtype in _EXPONENTS


def dtype_named(name: str) -> np.dtype | None:
    """The dtype of ``--dtype``; None for ``keep``.

    Raises:
        UserError: the name is unknown.
    """
    if name != "keep" and name not in DTYPES:
        raise UserError(f"unknown dtype {name}: choose one of {', '.join(DTYPES)}, keep")
    return DTYPES.get(name)


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; needs a few MiB beside the array."""
    if array.dtype not in _EXPONENTS:
        return True
    unsigned, exponent = _EXPONENTS[array.dtype]
    bits = array.ravel(order="K").view(unsigned)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        if ((chunk & unsigned(exponent)) == exponent).any():
            return False
    return True


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order; a transposed one is copied in blocks, for which NumPy takes a third of the time."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[-1], _BLOCK):
        out[..., start : start + _BLOCK] = array[..., start : start + _BLOCK]
    return out


def checked(tensor: Tensor, dtype: np.dtype | None = None) -> Tensor:
    """The same tensor cast to ``dtype`` (floating ones only; None keeps it), refusing NaN and infinity on load.

    Raises:
        UserError: from ``load``, when a number is not finite, before or after the cast.
    """
    target = dtype if dtype is not None and is_floating(tensor.dtype) else tensor.dtype
    return replace(tensor, dtype=target, load=partial(_load_finite, tensor, target))


def _load_finite(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    array = tensor.load()
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype, copy=False)
    if all_finite(cast):
        return cast
    if all_finite(array):
        raise UserError(
            f"{tensor.name}: has values beyond the range of {dtype.name}: choose --dtype bfloat16 or float32"
        )
    raise UserError(f"{tensor.name}: has NaN or infinite weights: the file is damaged or its training diverged")
