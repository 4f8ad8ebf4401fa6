"""Where clips come from: a directory of ArrayRecord shards, a folder of videos or pictures, or several mixed.

A source is a sequence of `ClipRecord` with `motion.MotionBuckets`; all kinds, and `InMemory` around any, feed the
same pipeline. `opening.open_source` chooses by what is in the directory.
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from svdjax.data import pictures
from svdjax.data.decoding import SUFFIXES, Video, decode_all, probe
from svdjax.data.files import caption_beside, read_file
from svdjax.data.measuring import Measurable, measure_all
from svdjax.data.motion import MEASURE, STILL, MotionBuckets, motion_score
from svdjax.data.records import FORMAT, GEOMETRY, GEOMETRY_FILE, ClipRecord, unpack
from svdjax.data.sampling import ClipSampling
from svdjax.data.shards import Records
from svdjax.errors import UserError
from svdjax.typing import Float, Int, ndarray

ANNOTATIONS = "svdjax-annotations.json"
PICTURES = "svdjax-pictures.json"
_VERSION = 2  # of what `measure` says of a file: 1 took all pixels for square

log = logging.getLogger(__name__)


@runtime_checkable
class ClipSource(Protocol):
    """Random access to clips.

    Attributes:
        buckets: the map from the clips' motion scores to motion buckets.
        motion_measure: the words that say what the scores are.
        has_pictures: whether some of the clips are pictures (see `ClipRecord.is_picture`).
    """

    buckets: MotionBuckets
    motion_measure: str
    has_pictures: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> ClipRecord: ...

    def geometry(self) -> Float[ndarray, "n 4"]:
        """Frames per second, seconds, height and width of each clip, without reading the clips."""
        ...


class ShardSource:
    """The clips of `records.write_shards`."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            UserError: no data set there, another format, or a shard is missing.
        """
        found = read_file(directory / "dataset.json")
        if found is None:
            raise UserError(f"{directory} holds no dataset.json: write it with write_shards")
        try:
            index = json.loads(found)
        except ValueError:
            raise UserError(f"{directory}/dataset.json is not JSON: write the data set again") from None
        if index.get("format") != FORMAT:
            raise UserError(f"{directory}/dataset.json is not of format {FORMAT}: write the data set again")
        names = sorted(index["shards"])
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise UserError(f"{directory} lacks {', '.join(missing)}: copy the data set again")
        self.buckets = MotionBuckets(thresholds=tuple(index["motion_thresholds"]))
        self.motion_measure = str(index["motion_measure"])
        self.has_pictures = index.get("pictures", 0) > 0
        self._directory = directory
        try:
            self._records = Records(directory, names)
        except RuntimeError as error:
            raise UserError(f"{directory} holds a damaged shard ({error}): copy the data set again") from None
        if len(self._records) != index["clips"]:
            raise UserError(f"{directory} holds {len(self._records)} clips, not {index['clips']}: copy it again")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        """
        Raises:
            UserError: the record is damaged, or could not be read.
        """
        try:
            return unpack(self._records[index])
        except RuntimeError as error:
            raise UserError(
                f"clip {index} of {self._directory} is damaged ({error}): copy the data set again"
            ) from None

    def geometry(self) -> Float[ndarray, "n 4"]:
        """
        Raises:
            UserError: the clips were written without their sizes.
        """
        try:
            return np.load(io.BytesIO(read_file(self._directory / GEOMETRY_FILE) or b""))
        except (EOFError, ValueError):
            raise UserError(
                f"{self._directory} holds no {GEOMETRY_FILE}, by which clips are sorted into buckets: write the "
                "data set again, with the height and width of every clip"
            ) from None


class FolderSource:
    """The videos in a folder and its subfolders, or the pictures where there are no videos, in order of names.

    Each file is measured once (length, frame rate, Farneback motion score), bad ones noted; the results are kept in
    ``svdjax-annotations.json`` in the folder where that can be written, and used again while a file's size and time
    of change stay the same. The motion buckets are made from the files that are there the first time, kept in the
    same file, and stay when files are added. ``clip.txt`` beside ``clip.mp4`` holds its caption.

    Of pictures, only the header is read (``svdjax-pictures.json``); one that breaks off is found when it is drawn.
    """

    def __init__(self, directory: Path, *, max_bad: float = 0.1) -> None:
        """
        Args:
            max_bad: unreadable files are skipped and logged by name; more than this share of them is an error.

        Raises:
            UserError: no folder, no videos or pictures, none that can be read, or too many that cannot;
                or videos that were not measured yet, without OpenCV; or the results that were kept are damaged.
        """
        files, self.has_pictures = _clips_in(directory)
        self.motion_measure = STILL if self.has_pictures else MEASURE
        found = measure_all(
            [_measurable(file, file.relative_to(directory).as_posix(), self.has_pictures) for file in files],
            directory / (PICTURES if self.has_pictures else ANNOTATIONS),
            what=f"files in {directory}",
            max_bad=max_bad,
        )
        self.buckets = found.buckets
        self._records = [_record(directory / name, entry) for name, entry in found.annotations.items()]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        return self._records[index]

    def geometry(self) -> Float[ndarray, "n 4"]:
        return geometry_of([record.annotations for record in self._records])


class Mixture:
    """Several sources as one, from which clips are drawn in the proportions of the sources' weights.

    All clips are on one map of motion buckets, fitted to the union of the sources as it is drawn: a bucket means
    the same motion in every source. So their scores must be of the same kind. Sources of pictures have no part in
    the map; their clips have bucket 1.
    """

    def __init__(self, sources: Sequence[ClipSource], weights: Sequence[float]) -> None:
        """
        Raises:
            UserError: not one positive weight for each source, or the motion scores are of different kinds.
        """
        if len(weights) != len(sources) or not all(0 < weight < np.inf for weight in weights):
            given = ", ".join(f"{weight:g}" for weight in weights) or "none"
            raise UserError(
                f"{len(sources)} sources are mixed with the weights {given}: give one positive weight for each one"
            )
        moving = [i for i, source in enumerate(sources) if source.motion_measure != STILL]
        scored = moving or range(len(sources))
        measures = sorted({sources[i].motion_measure for i in scored})
        if len(measures) > 1:
            raise UserError(
                f"the sources' motion scores are of different kinds ({'; '.join(measures)}): mix those of one kind"
            )
        self.motion_measure = measures[0]
        self.has_pictures = any(source.has_pictures for source in sources)
        self.weights = tuple(weights)
        self.buckets = MotionBuckets.union([sources[i].buckets for i in scored], [weights[i] for i in scored])
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        index = range(len(self))[index]
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part][index - int(self._starts[part])]

    def geometry(self) -> Float[ndarray, "n 4"]:
        return np.concatenate([source.geometry() for source in self._sources])

    @property
    def parts(self) -> list[Int[ndarray, " n"]]:
        """The places of each source's clips."""
        return [np.arange(*ends) for ends in zip(self._starts[:-1], self._starts[1:], strict=True)]


class InMemory:
    """A source whose clips are decoded once, at their final size, and kept: for data that fits into memory.

    Needs frames x height x width x 3 bytes per clip (4,000 clips of 8x64x64: 393 MB). Every worker process would
    hold its own copy; threads share one.
    """

    def __init__(self, source: ClipSource, sampling: ClipSampling) -> None:
        """
        Args:
            sampling: says which size each clip has.
        """
        self.buckets, self.motion_measure = source.buckets, source.motion_measure
        self.has_pictures = source.has_pictures
        self._source, self._sampling = source, sampling
        self._kept: dict[int, ClipRecord] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        key = index.__index__()
        if key not in self._kept:
            record = self._source[key]
            _, *size = self._sampling.shape_of(record.annotations)
            read = pictures.decode_picture if record.is_picture else decode_all
            frames = read(record.video, size=(size[0], size[1]), name=record.annotations["name"])
            self._kept[key] = ClipRecord(video=frames, annotations=record.annotations)
        return self._kept[key]

    def geometry(self) -> Float[ndarray, "n 4"]:
        return self._source.geometry()


def geometry_of(annotations: Sequence[dict[str, Any]]) -> Float[ndarray, "n 4"]:
    """What `ClipSource.geometry` says of clips with these annotations."""
    return np.array([[entry[name] for name in GEOMETRY] for entry in annotations], float)


def _clips_in(directory: Path) -> tuple[list[Path], bool]:
    """The files that a folder's clips are in, and whether they are pictures."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: give a folder of videos or pictures, or a data set")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    videos = [file for file in files if file.suffix.lower() in SUFFIXES]
    stills = [file for file in files if file.suffix.lower() in pictures.SUFFIXES]
    if videos and stills:  # previews of the videos, more often than not
        log.warning("%s: %d pictures beside videos are left out: give them a folder", directory, len(stills))
    if not videos and not stills:
        endings = " ".join((*SUFFIXES, *pictures.SUFFIXES))
        raise UserError(f"{directory} holds no videos or pictures ({endings}): give another folder")
    return videos or stills, not videos


def _measurable(file: Path, name: str, is_picture: bool) -> Measurable:
    stat = file.stat()
    stamp = {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
    if is_picture:
        return Measurable(name=name, stamp=stamp, measure=lambda: pictures.measure_picture(file, name))
    return Measurable(name=name, stamp=stamp | {"version": _VERSION}, measure=lambda: measure(file, name))


def _record(file: Path, annotations: dict[str, Any]) -> ClipRecord:
    caption = caption_beside(file)
    return ClipRecord(video=file, annotations=annotations | ({"caption": caption} if caption else {}))


def measure(video: Video, name: str) -> dict[str, Any]:
    """The annotations of a video about which nothing is known.

    Raises:
        UserError: it cannot be read, or OpenCV is not installed.
    """
    info = probe(video, name)
    return {
        "name": name,
        "fps": info.fps,
        "seconds": info.last + 1 / info.fps,
        "height": info.height,
        "width": info.width,
        "motion_score": motion_score(video, name=name, info=info),
    }
