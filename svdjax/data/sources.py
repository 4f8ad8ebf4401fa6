"""Where clips come from: a directory of ArrayRecord shards, or a folder of video files.

A source is a sequence of `ClipRecord` with `motion.MotionBuckets`; both kinds, and `InMemory` around either, feed
the same pipeline. `open_source` chooses by what is in the directory.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import grain

from svdjax.data.decoding import SUFFIXES, decode_all, probe
from svdjax.data.motion import MotionBuckets, motion_score
from svdjax.data.records import FORMAT, ClipRecord, unpack
from svdjax.errors import UserError, require

log = logging.getLogger(__name__)
ANNOTATIONS = "svdjax-annotations.json"


@runtime_checkable
class ClipSource(Protocol):
    """Random access to clips."""

    buckets: MotionBuckets

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> ClipRecord: ...


def open_source(directory: Path) -> ClipSource:
    """The clips in a directory: shards where there is a ``dataset.json``, else video files.

    Raises:
        UserError: no such directory, or no clips in it.
    """
    return ShardSource(directory) if (directory / "dataset.json").exists() else FolderSource(directory)


class ShardSource:
    """The clips of `records.write_shards`."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            UserError: no data set there, another format, or a shard is missing.
        """
        try:
            index = json.loads((directory / "dataset.json").read_text())
        except FileNotFoundError:
            raise UserError(f"{directory} holds no dataset.json: write it with write_shards") from None
        except ValueError:
            raise UserError(f"{directory}/dataset.json is not JSON: write the data set again") from None
        if index.get("format") != FORMAT:
            raise UserError(f"{directory}/dataset.json is not of format {FORMAT}: write the data set again")
        shards = [directory / name for name in sorted(index["shards"])]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise UserError(f"{directory} lacks {', '.join(missing)}: copy the data set again")
        self.buckets = MotionBuckets(thresholds=tuple(index["motion_thresholds"]))
        self._directory = directory
        try:
            self._records = grain.sources.ArrayRecordDataSource([str(shard) for shard in shards])
        except RuntimeError as error:
            raise UserError(f"{directory} holds a damaged shard ({error}): copy the data set again") from None
        if len(self._records) != index["clips"]:
            raise UserError(f"{directory} holds {len(self._records)} clips, not {index['clips']}: copy it again")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        """
        Raises:
            UserError: the record is damaged.
        """
        try:
            return unpack(self._records[index])
        except RuntimeError as error:
            raise UserError(
                f"clip {index} of {self._directory} is damaged ({error}): copy the data set again"
            ) from None


class FolderSource:
    """The video files in a folder and its subfolders, in order of their names.

    Each file is measured once (length, frame rate, Farneback motion score); the results are kept in
    ``svdjax-annotations.json`` in the folder where that can be written, and used again while a file's size and time
    of change stay the same. ``clip.txt`` beside ``clip.mp4`` holds its caption.
    """

    def __init__(self, directory: Path, *, max_bad: float = 0.1) -> None:
        """
        Args:
            max_bad: unreadable files are skipped and logged by name; more than this share of them is an error.

        Raises:
            UserError: no folder, no videos, none that can be read, or too many that cannot.
        """
        files = sorted(p for p in _listing(directory) if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{directory} holds no videos ({' '.join(SUFFIXES)}): give another folder")
        cache = _read_cache(directory)
        if not cache:
            require("cv2", "measure")  # or every file would seem to be bad
        bad = BadClips(max_share=max_bad, what=f"files in {directory}")
        measured: dict[str, dict[str, Any]] = {}
        for file in files:
            key = file.relative_to(directory).as_posix()
            try:
                measured[key] = _measure(file, key, cache.get(key))
            except UserError as error:
                bad.skip(key, error)
        bad.judge(len(files))
        _write_cache(directory, measured)
        self.buckets = MotionBuckets.fit([entry["motion_score"] for entry in measured.values()])
        self._records = [
            ClipRecord(video=directory / key, annotations=entry | _caption(directory / key))
            for key, entry in measured.items()
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        return self._records[index]


class InMemory:
    """A source whose clips are decoded once, at their final size, and kept: for data that fits into memory.

    Needs frames x height x width x 3 bytes per clip (4,000 clips of 8x64x64: 393 MB). Every worker process would
    hold its own copy; threads share one.
    """

    def __init__(self, source: ClipSource, size: tuple[int, int]) -> None:
        self.buckets = source.buckets
        self._source, self._size = source, size
        self._kept: dict[int, ClipRecord] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        key = index.__index__()
        if key not in self._kept:
            record = self._source[key]
            frames = decode_all(record.video, size=self._size, name=record.annotations["name"])
            self._kept[key] = ClipRecord(video=frames, annotations=record.annotations)
        return self._kept[key]


class BadClips:
    """Counts and logs clips that cannot be used, and gives up when they are too many."""

    def __init__(self, *, max_share: float, what: str) -> None:
        self.keys: set[int | str] = set()
        self._max_share, self._what = max_share, what
        self._lock = threading.Lock()

    def skip(self, key: int | str, error: UserError) -> None:
        """Note a clip, by a key of its own: a clip that fails again counts once."""
        with self._lock:
            if key not in self.keys:
                self.keys.add(key)
                log.warning("skipped: %s", error)

    def judge(self, total: int) -> None:
        """
        Raises:
            UserError: no clip of ``total`` is left, or more than the set share is bad.
        """
        bad = len(self.keys)
        if bad and (bad >= total or bad > self._max_share * total):
            raise UserError(
                f"{bad} of {total} {self._what} cannot be used, more than the {self._max_share:.0%} allowed: "
                "see the log for their names, remove or replace them"
            )


def _listing(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: give a folder of videos or a data set")
    return [path for path in directory.rglob("*") if path.is_file()]


def _measure(file: Path, key: str, known: dict[str, Any] | None) -> dict[str, Any]:
    stat = file.stat()
    stamp = {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
    if known is not None and stamp.items() <= known.items():
        return known
    info = probe(file)
    return stamp | {
        "name": key,
        "fps": info.fps,
        "seconds": info.last + 1 / info.fps,
        "height": info.height,
        "width": info.width,
        "motion_score": motion_score(file),
    }


def _caption(file: Path) -> dict[str, str]:
    text = file.with_suffix(".txt")
    return {"caption": text.read_text().strip()} if text.is_file() else {}


def _read_cache(directory: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((directory / ANNOTATIONS).read_text())
    except (OSError, ValueError):
        return {}


def _write_cache(directory: Path, measured: dict[str, dict[str, Any]]) -> None:
    partial = directory / (ANNOTATIONS + ".partial")
    try:
        partial.write_text(json.dumps(measured, indent=1))
        partial.replace(directory / ANNOTATIONS)
    except OSError as error:
        log.warning(
            "%s is not kept (%s): the videos will be measured again", directory / ANNOTATIONS, error.strerror
        )
