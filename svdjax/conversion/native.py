"""Our own two formats: one .safetensors file, and an orbax (v1) directory. Both carry their configuration.

=============  =================================================  ==================================================
               .safetensors                                       directory
=============  =================================================  ==================================================
parameters     under our dotted paths                             ``params`` of the pytree in ``weights/``
extras         under ``extras.`` and their original key           ``extras`` of the same pytree
configuration  ``config`` in the metadata                         ``config.json``
texts          ``files`` in the metadata                          ``files.json``
sizes                                                             ``contents.json``, of each file of ``weights/``
=============  =================================================  ==================================================
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from svdjax.conversion.checkpoint import Checkpoint, check_params
from svdjax.conversion.contents import CONTENTS, find_damage, write_contents
from svdjax.conversion.output import finished
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.tensors import Progressed, Tensor
from svdjax.errors import UserError
from svdjax.models.params import flat_params
from svdjax.models.svd import SVD, SVDConfig
from svdjax.typing import Array

FORMAT = "svdjax"
EXTRAS = "extras."
_WEIGHTS = "weights"
NATIVE_FILES = ("config.json", "files.json", CONTENTS, _WEIGHTS)  # of a directory
_CARRIED = re.compile(r"([a-z_]+/)?\w[\w.-]*")  # such texts are written later on: no path may lead elsewhere
# Bytes at a time. Orbax holds about four times as much while it reads; many small calls cost it time.
_WRITTEN_AT_ONCE, _READ_AT_ONCE = 256 * 2**20, 64 * 2**20


def _ignore(count: int) -> None:
    """No progress bar."""


def read_native_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> Checkpoint:
    """Read a .safetensors file whose metadata says ``format: svdjax``.

    Raises:
        UserError: the configuration is broken, or a parameter is missing, left over or of a wrong shape.
    """
    config = SVDConfig.from_json(metadata.get("config", ""), where=what)
    files = _texts(metadata.get("files", "{}"), what)
    params = {key: tensor for key, tensor in tensors.items() if not key.startswith(EXTRAS)}
    extras = {key.removeprefix(EXTRAS): tensor for key, tensor in tensors.items() if key.startswith(EXTRAS)}
    check_params(what, config, params)
    return Checkpoint(what=what, config=config, params=params, extras=extras, files=files)


def _texts(text: str, what: str) -> dict[str, str]:
    try:
        files = json.loads(text)
    except ValueError as error:
        raise UserError(f"{what}: its files are no valid JSON ({error})") from None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise UserError(f"{what}: its files should be an object of texts")
    if outside := [name for name in files if not _CARRIED.fullmatch(name)]:
        raise UserError(f"{what}: carries {outside[0]!r}, which is no file of a diffusers folder")
    return files


def write_native_file(checkpoint: Checkpoint, path: Path, progress: Progressed = _ignore) -> None:
    """Write one .safetensors file."""
    tensors = checkpoint.params | {EXTRAS + key: tensor for key, tensor in checkpoint.extras.items()}
    metadata = {"format": FORMAT, "config": checkpoint.config.to_json(), "files": json.dumps(checkpoint.files)}
    write_safetensors(path, tensors, metadata, progress)


def save_native(model: SVD, path: Path) -> None:
    """Save a model as our .safetensors file, or as an orbax directory if the path has no such suffix.

    What is at ``path`` already is replaced once the new file is complete.

    Raises:
        UserError: the path cannot be written.
    """
    params = {name: _on_device(name, value) for name, value in flat_params(model).items()}
    checkpoint = Checkpoint(what=str(path), config=model.config, params=params)
    write = write_native_file if path.suffix == ".safetensors" else write_native_folder
    with finished(path, overwrite=True) as partial:
        write(checkpoint, partial)


def _on_device(name: str, value: Array) -> Tensor:
    return Tensor(name, value.shape, np.dtype(value.dtype), lambda: np.asarray(value))


def is_native_folder(folder: Path) -> bool:
    """Whether :func:`write_native_folder` wrote it."""
    return (folder / "config.json").is_file() and (folder / _WEIGHTS).is_dir()


def write_native_folder(checkpoint: Checkpoint, folder: Path, progress: Progressed = _ignore) -> None:
    """Write an orbax directory, some 256 MiB at a time, so that the model is never whole in memory."""
    folder.mkdir(parents=True)
    weights = (folder / _WEIGHTS).absolute()
    groups = {"params": checkpoint.params, "extras": checkpoint.extras}
    with _context():
        for group, tensors in groups.items():
            for names in _batches(tensors, _WRITTEN_AT_ONCE):
                ocp.partial.save(weights, {group: {name: tensors[name].load() for name in names}})
                progress(sum(tensors[name].nbytes for name in names))
        ocp.partial.finalize(weights)
    (folder / "files.json").write_text(json.dumps(checkpoint.files), "utf-8")
    write_contents(folder / CONTENTS, folder / _WEIGHTS)
    (folder / "config.json").write_text(checkpoint.config.to_json(), "utf-8")


def _context(*, partial_load: bool = False) -> Any:
    context = ocp.Context()
    context.array.saving.use_compression = False  # random-looking bits: zstd costs time and saves 10 %
    context.pytree.loading.partial_load = partial_load
    return context


def _batches(tensors: Mapping[str, Tensor], most: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if batch and size + tensor.nbytes > most:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += tensor.nbytes
    if batch:
        yield batch


def read_native_folder(folder: Path) -> Checkpoint:
    """Read an orbax directory.

    Raises:
        UserError: the configuration or the checkpoint is damaged, or a parameter is missing or left over.
    """
    what = str(folder)
    try:
        config = SVDConfig.from_json((folder / "config.json").read_text("utf-8"), where=f"{what}/config.json")
        text = (folder / "files.json").read_text("utf-8") if (folder / "files.json").exists() else "{}"
        files = _texts(text, f"{what}/files.json")
        if damage := find_damage(folder / CONTENTS, folder / _WEIGHTS):
            raise UserError(f"{damage}: the checkpoint is damaged; copy it again")
        weights = (folder / _WEIGHTS).absolute()
        tree = ocp.metadata(weights).metadata
        leaves = {group: dict(tree.get(group) or {}) for group in ("params", "extras")}
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise UserError(f"{what}: a damaged checkpoint ({_first_line(error)}); copy it again") from None
    groups = {group: _Group(weights, group, found).tensors() for group, found in leaves.items()}
    check_params(what, config, groups["params"])
    return Checkpoint(what=what, config=config, params=groups["params"], extras=groups["extras"], files=files)


class _Group:
    """One half of the pytree. Orbax is far faster at many arrays than at one by one: neighbours come together."""

    def __init__(self, weights: Path, group: str, leaves: Mapping[str, Any]) -> None:
        self.weights, self.group, self.leaves = weights, group, leaves
        self.loaded: dict[str, np.ndarray] = {}
        self.batch_of: dict[str, list[str]] = {}
        self.lock = threading.Lock()

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name."""
        found = {name: self._tensor(name) for name in self.leaves}
        self.batch_of = {name: batch for batch in _batches(found, _READ_AT_ONCE) for name in batch}
        return found

    def _tensor(self, name: str) -> Tensor:
        leaf = self.leaves[name]
        return Tensor(name, tuple(leaf.shape), np.dtype(leaf.dtype), lambda: self._take(name))

    def _take(self, name: str) -> np.ndarray:
        with self.lock:
            return self._load(name)

    def _load(self, name: str) -> np.ndarray:
        if name not in self.loaded:
            self.loaded = {}  # frees the last batch before the next one is read
            wanted = {
                other: np.broadcast_to(np.zeros((), self.leaves[other].dtype), self.leaves[other].shape)
                for other in self.batch_of[name]
            }
            try:
                with _context(partial_load=True):
                    self.loaded = ocp.load(self.weights, {self.group: wanted})[self.group]
            except Exception as error:  # orbax and tensorstore raise many kinds
                raise UserError(f"{self.weights}: damaged ({_first_line(error)}); copy it again") from None
        return self.loaded.pop(name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
