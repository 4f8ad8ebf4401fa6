"""Reading and writing ``.safetensors`` files tensor by tensor, with plain reads instead of a memory map.

Pages of a map count as resident memory for as long as the file is open; a plain read is freed with its array.
Format: https://huggingface.co/docs/safetensors (8 bytes length, a JSON header, then the tensors' bytes).
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np

from svdjax.conversion.tensors import Progressed, Tensor, contiguous
from svdjax.errors import UserError

_MAX_HEADER = 100_000_000  # the reference implementation's limit
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_bytes(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read one little-endian array at a byte offset.

    Raises:
        UserError: the file ends too early or is unreadable.
    """
    array = np.empty(shape, dtype)
    view = memoryview(array.reshape(-1).view(np.uint8))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if done < len(view):
        raise UserError(f"{path}: truncated: {len(view) - done} bytes are missing; download it again")
    return array


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Open a file.

    Returns:
        Its tensors by key, and its metadata.

    Raises:
        UserError: the file is no safetensors file, is truncated, or holds a dtype that weights never have.
    """
    header, start = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: not a safetensors file: its metadata is no JSON object")
    try:
        tensors = {key: _tensor(path, key, row, start) for key, row in header.items()}
        spans = sorted(tuple(row["data_offsets"]) for row in header.values())
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a safetensors file: its header is malformed") from None
    if any(end != following for (_, end), (following, _) in pairwise(spans)):
        raise UserError(f"{path}: not a safetensors file: its tensors overlap or leave gaps")
    missing = start + (spans[-1][1] if spans else 0) - path.stat().st_size
    if missing > 0:
        raise UserError(f"{path}: truncated: {missing} bytes are missing; download it again")
    return tensors, metadata


def _read_header(path: Path) -> tuple[dict, int]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            raise UserError(f"{path}: not a safetensors file: it does not begin with a header")
        if 8 + length > size:
            raise UserError(f"{path}: truncated inside its header, or not a safetensors file; download it again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"{path}: not a safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file: its header is no JSON object")
    return header, 8 + length


def _tensor(path: Path, key: str, row: dict, start: int) -> Tensor:
    if row["dtype"] not in _DTYPES:
        raise UserError(f"{path}: {key} has dtype {row['dtype']}, which is not supported: give unquantised weights")
    dtype, shape, (begin, end) = _DTYPES[row["dtype"]], tuple(row["shape"]), row["data_offsets"]
    tensor = Tensor(key, shape, dtype, lambda: read_bytes(path, start + begin, dtype, shape))
    if tensor.nbytes != end - begin or begin < 0:
        raise ValueError(key)
    return tensor


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    progress: Progressed = lambda count: None,
) -> None:
    """Write a file, holding one tensor in memory at a time.

    Args:
        path: where to write; the caller renames it when it is complete.
        tensors: keys and tensors; written in this order, but the widest dtype first, which keeps all aligned.
        metadata: strings for the header.
        progress: called with the number of bytes of each tensor written.

    Raises:
        UserError: from the tensors' ``load``.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    text = json.dumps({"__metadata__": dict(metadata), **dict(_rows(ordered))}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered.values():
            array = contiguous(tensor.load())
            file.write(memoryview(array.reshape(-1).view(np.uint8)))
            progress(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _rows(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict]]:
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.nbytes
        yield key, {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
