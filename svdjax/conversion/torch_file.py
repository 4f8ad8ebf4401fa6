"""Reading PyTorch's ``.ckpt`` files (the zip format of ``torch.save``) without PyTorch and without running code.

A ``.ckpt`` holds a pickle, which may call any function. This reader's unpickler knows only what a dictionary of
tensors needs; whatever else the pickle names is refused before it is looked up, let alone called.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from svdjax.conversion.safetensors_file import read_bytes
from svdjax.conversion.tensors import Tensor
from svdjax.errors import UserError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LOCAL_HEADER = 30  # bytes before the name in a zip member's own header


# What the unpickler hands to a pickle is immutable (strings, named tuples): a hostile one cannot edit it.
class _Storage(NamedTuple):
    dtype: np.dtype
    offset: int  # bytes from the start of the file
    size: int  # elements


def read_ckpt(path: Path) -> dict[str, Tensor]:
    """Open a ``.ckpt`` file.

    Returns:
        The tensors of its state dict by key; a state dict inside ``{"state_dict": ...}`` is found.

    Raises:
        UserError: the file is damaged, of another kind, or wants to run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _load(archive, path)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path}: a damaged zip archive ({error}); download it again") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no dictionary of tensors")
    tensors = {key: value for key, value in content.items() if isinstance(value, _View)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return {key: value.tensor(path, key) for key, value in tensors.items()}


def _load(archive: zipfile.ZipFile, path: Path) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path}: a zip archive, but not one that PyTorch wrote")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path}: was written on a big-endian machine: save it again as .safetensors")
    with archive.open(pickles[0]) as file:
        try:
            return _Unpickler(file, archive, root, path).load()
        except UserError:
            raise
        except Exception as error:  # a hostile pickle can raise nearly anything
            raise UserError(
                f"{path}: its pickle is damaged or not a plain dictionary of tensors ({error})"
            ) from None


class _View(NamedTuple):
    """A tensor as the pickle describes it: a strided window on a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self, path: Path, key: str) -> Tensor:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        sound = all(n >= 0 for n in self.shape) and all(s >= 0 for s in self.strides) and self.offset >= 0
        if not sound or (math.prod(self.shape) > 0 and last >= self.storage.size):
            raise UserError(f"{path}: {key} reaches beyond its storage: the file is damaged")
        return Tensor(key, self.shape, self.storage.dtype, lambda: self._read(path, last + 1 - self.offset))

    def _read(self, path: Path, span: int) -> np.ndarray:
        dtype = self.storage.dtype
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, dtype)
        flat = read_bytes(path, self.storage.offset + self.offset * dtype.itemsize, dtype, (span,))
        strides = tuple(s * dtype.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


def _view(storage: object, offset: object, shape: object, strides: object, *unused: object) -> _View:
    """Stands for ``torch._utils._rebuild_tensor_v2``; the rest of its arguments concern gradients."""
    del unused
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in numbers):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows ``OrderedDict``, tensors and storages; storages are described, not read."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(file)
        self.archive, self.root, self.path = archive, root, path

    def find_class(self, module: str, name: str) -> type | Callable | str:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _view(*args)  # a fresh one: a pickle may set attributes on what it is given
        if module == "torch" and name in _STORAGES:
            return name
        self._refuse(f"{module}.{name}")

    def _refuse(self, name: str) -> NoReturn:
        raise UserError(
            f"{self.path}: refused: it asks for {name}, which weights never need and which may run code; "
            "if you trust it, save its state dict as .safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _, size = pid
        if kind != "storage" or name not in _STORAGES or type(size) is not int:
            raise pickle.UnpicklingError("an unknown kind of storage")
        dtype = _STORAGES[name]
        member = self.archive.getinfo(f"{self.root}data/{key}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size < size * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is compressed or too short")
        with open(self.path, "rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return _Storage(dtype, member.header_offset + _LOCAL_HEADER + skip, size)
