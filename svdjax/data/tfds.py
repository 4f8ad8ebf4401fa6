"""Clips of TensorFlow Datasets, without TensorFlow: of data sets in ArrayRecord files with one video a record.

The video is either a feature of the kind ``Video``, whose frames are measured here, or a file with its annotations,
as `tfds_builder` writes them.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, SupportsIndex
from urllib.parse import parse_qsl

import numpy as np

from svdjax.data.decoding import Frames
from svdjax.data.measuring import Measurable, measure_all
from svdjax.data.motion import MEASURE, MotionBuckets
from svdjax.data.records import ClipRecord
from svdjax.data.sources import ClipSource, geometry_of, measure
from svdjax.errors import UserError, require
from svdjax.typing import Float, UInt8, ndarray

PREFIX = "tfds:"
NAME = "svdjax_clips"  # of the data sets that `tfds_builder` makes; each is a configuration
ANNOTATIONS, VIDEO = "annotations", "video"  # their features
METADATA = "clips"  # what they know of each split
# Frame rates are not among what these data sets keep; this one's clips all have the same.
_FPS = MappingProxyType({"ucf101": 25.0})
_OPTIONS = ("data_dir", "split", "fps")


def open_tfds(spec: str, *, max_bad: float = 0.1) -> ClipSource:
    """The clips of one split of a data set that was prepared in ArrayRecord files.

    Args:
        spec: ``tfds:NAME``, with options as in a URL: ``tfds:ucf101?data_dir=DIR&split=train&fps=25``. NAME may
            hold a configuration and a version; ``data_dir`` is where it was built (TFDS's own place if left out),
            ``split`` is "train" if left out, ``fps`` is needed where the frame rate is not known.
        max_bad: share of the clips that may be unusable.

    Raises:
        UserError: an unknown option, data set or split, no files in ArrayRecord format, no video in a record, or a
            frame rate that is not known.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query))
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise UserError(f"{spec}: unknown option {unknown[0]}: choose from {', '.join(_OPTIONS)}")
    builder = _builder(spec, name, options.get("data_dir"))
    split = options.get("split", "train")
    try:
        records = builder.as_data_source(split=split)
    except Exception as error:  # each kind of missing data set has an exception of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{spec}: cannot be read ({reason}): build it with --file_format=array_record and name its data_dir"
        ) from None
    if set(builder.info.features) == {ANNOTATIONS, VIDEO}:
        known = builder.info.metadata[METADATA]
        if split not in known:
            raise UserError(f"{spec}: no split {split}: choose from {', '.join(known)}")
        return TFDSClips(records, known[split])
    fps, key = _rate(spec, name, options), _video_key(spec, builder.info.features)
    kept = re.sub(r"[^A-Za-z0-9.]+", "-", f"{builder.info.full_name}-{split}-{fps:g}fps")
    cache = Path(options.get("data_dir", builder.data_dir)) / f"svdjax-{kept}.json"
    return TFDSSource(
        records, key, fps=fps, name=f"{builder.name}-{split}", cache=cache, spec=spec, max_bad=max_bad
    )


class TFDSClips:
    """The clips of a data set that `tfds_builder` made."""

    def __init__(self, records: Sequence[Mapping[str, bytes]], known: Mapping[str, Any]) -> None:
        """
        Args:
            records: with the features ``annotations`` and ``video``.
            known: of all together: ``motion_measure``, ``motion_thresholds``, ``pictures`` (whether there are any)
                and ``geometry``, a row for each clip.
        """
        self.buckets = MotionBuckets(thresholds=tuple(known["motion_thresholds"]))
        self.motion_measure, self.has_pictures = known["motion_measure"], known["pictures"]
        self._records, self._geometry = records, np.array(known["geometry"], float)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        record = self._records[index]
        return ClipRecord(video=bytes(record[VIDEO]), annotations=json.loads(record[ANNOTATIONS]))

    def geometry(self) -> Float[ndarray, "n 4"]:
        """Frames per second, seconds, height and width of each clip."""
        return self._geometry


class TFDSSource:
    """The clips of a data set whose records have a feature of the kind ``Video``.

    Each clip is measured once (Farneback motion score); the results are kept in the data set's folder.
    """

    motion_measure = MEASURE
    has_pictures = False

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        key: str,
        *,
        fps: float,
        name: str,
        cache: Path,
        spec: str,
        max_bad: float,
    ) -> None:
        """
        Args:
            records: of the data set. key: of the video in them. fps: frames per second of all.
            name: of the data set and its split. cache: where the scores are kept. spec: what errors call it.
            max_bad: share of the clips that may be unusable.

        Raises:
            UserError: too many are.
        """
        self._data, self._key, self._fps, self._name = records, key, fps, name
        found = measure_all(
            [self._measurable(place) for place in range(len(records))],
            cache,
            what=f"clips of {spec}",
            max_bad=max_bad,
        )
        self.buckets = found.buckets
        self._annotations = list(found.annotations.values())

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        notes = self._annotations[index]
        return ClipRecord(video=self._frames(notes["place"]), annotations=notes)

    def geometry(self) -> Float[ndarray, "n 4"]:
        """Frames per second, seconds, height and width of each clip."""
        return geometry_of(self._annotations)

    def _frames(self, place: int) -> Frames:
        frames = _rgb(self._data[place][self._key])
        return Frames(frames=frames, times=np.arange(len(frames)) / self._fps)

    def _measurable(self, place: int) -> Measurable:
        name = f"{self._name}-{place}"
        return Measurable(
            name=name,
            stamp={"place": place},
            measure=lambda: measure(self._frames(place), name) | {"fps": self._fps},
        )


def _rate(spec: str, name: str, options: Mapping[str, str]) -> float:
    try:
        fps = float(options["fps"]) if "fps" in options else _FPS[re.split("[/:]", name)[0]]
    except (KeyError, ValueError):
        fps = 0.0
    if not 0 < fps < np.inf:
        raise UserError(f"{spec}: its frame rate is not known: add ?fps=RATE")
    return fps


def _builder(spec: str, name: str, data_dir: str | None) -> Any:
    tfds = _without_tensorflow(require("tensorflow_datasets", "tfds"))
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, FileNotFoundError) as error:  # of a name: no such data set
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{spec}: no such data set ({reason}): give a name that TensorFlow Datasets knows"
        ) from None


def _without_tensorflow(tfds: ModuleType) -> ModuleType:
    """Have the feature ``Video`` constructed without TensorFlow, of which it needs one function of data types."""
    importlib.import_module("tensorflow_datasets.video")  # its builders are not found before they are imported
    if importlib.util.find_spec("tensorflow") is None:
        feature = importlib.import_module("tensorflow_datasets.core.features.video_feature")
        feature.tf = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
    return tfds


def _video_key(spec: str, features: Any) -> str:
    keys = [key for key, feature in features.items() if type(feature).__name__ == "Video"]
    if len(keys) != 1:
        raise UserError(
            f"{spec}: holds {len(keys)} videos a record ({', '.join(features)}): choose another data set"
        )
    return keys[0]


def _rgb(video: UInt8[ndarray, "t h w c"]) -> UInt8[ndarray, "t h w 3"]:
    return np.ascontiguousarray(np.broadcast_to(video, (*video.shape[:3], 3)))
