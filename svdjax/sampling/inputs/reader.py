"""What a task asks the user for on the command line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.options import Sample
from svdjax.typing import Int, UInt8, ndarray


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a user gave, one entry for each file to write.

    Attributes:
        inputs: of the task's ``request``, one entry for each video, or a text for all; several videos may make up a
            file. Long ones may be made only when `some` asks for them (`known_frames.SparseVideos`).
        names: of the files, without suffix; some may be equal.
        notes: what to write into each file beside the settings.
        pieces: how many videos make up each file, joined at the frame that neighbours share; empty where it is
            one each.
        before: frames to put before those that are made; empty for none.
        rates: frames per second to play at; empty for those that the videos are conditioned on.
    """

    inputs: dict[str, Any]
    names: Sequence[str]
    notes: Sequence[dict[str, str]]
    pieces: Sequence[int] = ()
    before: Sequence[UInt8[ndarray, "n h w 3"]] = ()
    rates: Sequence[float] = ()

    def rows(self, copies: int) -> Int[ndarray, " n"]:
        """Which entries of the inputs to sample, in order, for so many copies of each file."""
        pieces = self.pieces or [1] * len(self.names)
        of_files = np.split(np.arange(sum(pieces)), np.cumsum(pieces)[:-1])
        return np.concatenate([np.tile(rows, copies) for rows in of_files])

    def some(self, rows: Int[ndarray, " n"]) -> dict[str, Any]:
        """The inputs of these videos."""
        return {name: _entries(value, rows) for name, value in self.inputs.items()}

    def files(
        self, videos: Iterator[UInt8[ndarray, "t h w 3"]], copies: int
    ) -> Iterator[Iterator[UInt8[ndarray, "h w 3"]]]:
        """The frames of each file, as they are made; those of one are to be taken before the next file's."""
        for index in range(len(self.names) * copies):
            entry = index // copies
            pieces = islice(videos, self.pieces[entry] if self.pieces else 1)
            before = self.before[entry] if self.before else ()
            joined = chain.from_iterable(video[1:] if piece else video for piece, video in enumerate(pieces))
            yield chain(before, joined)


def _entries(value: Any, rows: Int[ndarray, " n"]) -> Any:
    if isinstance(value, str):
        return value
    return [value[row] for row in rows] if isinstance(value, list) else value[rows]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one task is asked for.

    Attributes:
        models: tasks of the checkpoints that can be asked so.
        options: fields of `Sample` that are read here, of those that not every task reads.
        read: reads them, given the size of the videos; raises UserError where one is missing or unusable.
        photos: what to take of the bundled files where the user names none.
        frames: of a video by a model that was trained for another task; None is the model's own number.
    """

    models: tuple[str, ...]
    options: tuple[str, ...]
    read: Callable[[Sample, SamplingDefaults], Given]
    photos: tuple[Path, ...] = ()
    frames: int | None = None
