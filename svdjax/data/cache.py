"""A latent cache: what the frozen encoders make of each clip, as ArrayRecord shards, one index beside each.

A record is a safetensors file of the arrays of one training item. ``latents-00003.json`` says what is in
``latents-00003.array_record`` and appears after it: a shard with an index is whole. ``dataset.json``, written last,
holds ``format``, the ``shards``, and ``motion_measure`` and ``motion_thresholds`` of the clips; ``clips.npy``
[clips, 4] the frames, height and width of each clip, and how often it is drawn.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from svdjax.conversion.output import finished
from svdjax.data.drawing import Group
from svdjax.data.files import read_file
from svdjax.data.motion import MotionBuckets
from svdjax.data.shards import Records, record_writer
from svdjax.errors import UserError
from svdjax.typing import ndarray

FORMAT = "svdjax-latents-1"
SETTINGS = "cache.json"  # what the cache is made from; there from the start
INDEX = "dataset.json"
TABLE = "clips.npy"


class LatentCache:
    """The items of a finished cache: dicts of arrays, float32 whatever they are kept in.

    Attributes:
        buckets: the map from motion scores to the motion buckets that the items hold.
        motion_measure: the words that say what the scores are.
        groups: which items are drawn together, and how often.
    """

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            UserError: the cache is not finished, of another format, or a shard is missing, damaged or not read.
        """
        index = _read_json(directory / INDEX)
        if index.get("format") != FORMAT:
            raise UserError(f"{directory} holds no finished latent cache: run svdjax precompute again")
        self.buckets = MotionBuckets(thresholds=tuple(index["motion_thresholds"]))
        self.motion_measure = str(index.get("motion_measure", "not known"))
        self._directory = directory
        names = index["shards"]
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise UserError(f"{directory} lacks {', '.join(missing)}: copy the cache again")
        try:
            table = np.load(io.BytesIO(read_file(directory / TABLE) or b""))
            self._records = Records(directory, names)
        except (EOFError, ValueError, RuntimeError) as error:
            raise UserError(f"{directory} is damaged ({error}): copy the cache again") from None
        if len(self._records) != len(table):
            raise UserError(f"{directory} holds {len(self._records)} clips, not {len(table)}: copy the cache again")
        self.groups = _groups(table)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, ndarray]:
        """
        Raises:
            UserError: the record is damaged, or could not be read.
        """
        try:
            arrays = load(self._records[index])
        except (RuntimeError, SafetensorError) as error:
            raise UserError(
                f"clip {index} of {self._directory} is damaged ({error}): copy the cache again"
            ) from None
        return {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in arrays.items()}


def is_cache(directory: Path) -> bool:
    """Whether a directory holds a latent cache, finished or not."""
    return (directory / SETTINGS).exists()


def read_settings(directory: Path) -> dict[str, Any]:
    """What a cache says that it is made from; nothing where that is missing or damaged."""
    return _read_json(directory / SETTINGS)


def shard_name(number: int) -> str:
    return f"latents-{number:05d}.array_record"


def shard_files(directory: Path) -> Iterator[Path]:
    """Everything that belongs to shards, whole or not."""
    return directory.glob("latents-*")


def read_shard_index(directory: Path, number: int) -> dict[str, Any] | None:
    """What `write_shard` was told of a shard; None if that is not whole."""
    index = _read_json((directory / shard_name(number)).with_suffix(".json"))
    return index if "clips" in index and (directory / shard_name(number)).exists() else None


def write_shard(
    directory: Path, number: int, items: Iterable[Mapping[str, ndarray]], index: Mapping[str, Any]
) -> None:
    """Write the items of a shard, then its index, each under another name first.

    Args:
        items: the arrays of each clip. They may fill ``index`` while they are made.
        index: ``clips``, a row of ``clips.npy`` for each item; and whatever else is to be known of the shard.

    Raises:
        UserError: the disk is full, or the directory cannot be written.
    """
    path = directory / shard_name(number)
    partial = path.with_suffix(".partial")
    try:
        with record_writer(partial) as write:
            for item in items:
                write(save({name: np.array(value, order="C") for name, value in item.items()}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), index)


def finish(directory: Path, shards: int, buckets: MotionBuckets, motion_measure: str) -> bool:
    """Write the index of the whole cache if all its shards are there, and say whether they are."""
    indices = [read_shard_index(directory, number) for number in range(shards)]
    if None in indices:
        return False
    table = np.array([row for index in indices for row in index["clips"]], float).reshape(-1, 4)
    with finished(directory / TABLE, overwrite=True) as partial, partial.open("wb") as file:
        np.save(file, table)
    # An ArrayRecord without records cannot be opened.
    names = [shard_name(number) for number, index in enumerate(indices) if index["clips"]]
    motion = {"motion_measure": motion_measure, "motion_thresholds": list(buckets.thresholds)}
    write_json(directory / INDEX, {"format": FORMAT, "shards": names, **motion})
    return True


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file that several machines may write at once, each under a name of its own first."""
    with finished(path, overwrite=True) as partial:
        partial.write_text(json.dumps(value, indent=1))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path) or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _groups(table: ndarray) -> list[Group]:
    rows, group_of = np.unique(table, axis=0, return_inverse=True)
    groups = []
    for number, (*shape, weight) in enumerate(rows):
        indices = np.flatnonzero(group_of.ravel() == number)
        groups.append(Group(shape=tuple(map(int, shape)), indices=indices, weight=weight * len(indices)))
    return groups
