"""Opening any checkpoint: what SRC can be, and how each kind is recognised, by content rather than by name."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.typing import DTypeLike

from svdjax.conversion.checkpoint import Checkpoint, Options, check_said, shapes_of
from svdjax.conversion.diffusers import read_diffusers
from svdjax.conversion.native import FORMAT, is_native_folder, read_native_file, read_native_folder
from svdjax.conversion.remote import fetch_address, fetch_repo, is_address, is_repo
from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.conversion.sgm import read_sgm
from svdjax.conversion.tensors import Tensor, contiguous
from svdjax.conversion.torch_file import read_ckpt
from svdjax.errors import UserError
from svdjax.models.params import load_flat
from svdjax.models.svd import SVD

_AT_ONCE = 8  # tensors that are read side by side
KINDS = "a diffusers folder, a .safetensors or .ckpt file, or a checkpoint of svdjax"


def open_checkpoint(source: str | Path, options: Options | None = None) -> Checkpoint:
    """Open a checkpoint; no weights are read yet.

    Args:
        source: a local path, ``owner/name`` or ``owner/name/file`` on the Hugging Face Hub, or ``gs://...``.
        options: what the files cannot say.

    Raises:
        UserError: the source does not exist, is of no known kind, or is incomplete.
    """
    options = options or Options()
    path = locate(source, options.variant)
    if options.variant and not (path / "unet").is_dir():
        raise UserError(f"--variant {options.variant}: {path} is no diffusers folder: leave it out")
    return _open_folder(path, options) if path.is_dir() else _open_file(path, options)


def locate(source: str | Path, variant: str | None = None) -> Path:
    """The local file or folder of a source; what is elsewhere is downloaded first.

    Args:
        source: as of :func:`open_checkpoint`.
        variant: files of a repository's diffusers folder to take, e.g. ``fp16``.

    Raises:
        UserError: there is no such source, or it cannot be downloaded.
    """
    text = str(source)
    if is_address(text):
        return fetch_address(text)
    if Path(text).exists():
        return Path(text)
    if is_repo(text) and not text.startswith((".", "~")):
        return fetch_repo(text, variant)
    raise UserError(f"{text}: no such file or folder: give {KINDS}")


def _open_folder(folder: Path, options: Options) -> Checkpoint:
    if is_native_folder(folder):
        checkpoint = read_native_folder(folder)
        check_said(checkpoint.what, checkpoint.config, options)
        return checkpoint
    if (folder / "model_index.json").is_file() or (folder / "unet").is_dir():
        return read_diffusers(folder, options)
    raise UserError(f"{folder}: not a checkpoint: give {KINDS}")


def _open_file(path: Path, options: Options) -> Checkpoint:
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise UserError(f"{path}: is empty: download it again")
    if head.startswith(b"PK\x03\x04"):
        return read_sgm(read_ckpt(path), {}, options, str(path))
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: only a pointer of Git LFS: run `git lfs pull` in its repository")
    if head[8:9] != b"{":  # a .safetensors file begins with the length of its JSON header, in any bytes
        if head.startswith(b"\x80"):
            raise UserError(
                f"{path}: an old PyTorch file (before 1.6), which only code can read: save it as .safetensors"
            )
        raise UserError(f"{path}: not a checkpoint: give {KINDS}")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") == FORMAT:
        checkpoint = read_native_file(tensors, metadata, str(path))
        check_said(checkpoint.what, checkpoint.config, options)
        return checkpoint
    return read_sgm(tensors, metadata, options, str(path))


def read_arrays(params: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of parameters, read in threads and a few ahead of the one that is taken."""
    waiting = list(params.items())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(waiting), _AT_ONCE):
            names, tensors = zip(*waiting[start : start + _AT_ONCE], strict=True)
            arrays = pool.map(lambda tensor: contiguous(tensor.load()), tensors)
            yield from zip(names, arrays, strict=True)


def load_model(
    source: str | Path | Checkpoint, *, dtype: DTypeLike | None = None, options: Options | None = None
) -> SVD:
    """Load a model of any format onto the default device, a few parameters at a time.

    Args:
        source: an open checkpoint, or what :func:`open_checkpoint` opens.
        dtype: cast to this; None keeps what is stored.
        options: what the files cannot say.

    Returns:
        The model, ready to call; its configuration is ``model.config``.

    Raises:
        UserError: the checkpoint is missing, damaged or of another architecture.
    """
    opened = source if isinstance(source, Checkpoint) else open_checkpoint(source, options)
    checkpoint = opened.cast(None if dtype is None else np.dtype(dtype))
    # Only NumPy works in the threads: JAX's settings (x64, the default device) are this thread's own.
    params = {name: jax.device_put(array) for name, array in read_arrays(checkpoint.params)}
    return load_flat(shapes_of(checkpoint.config), params, what=checkpoint.what)
