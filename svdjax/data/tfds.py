"""Clips of TensorFlow Datasets, without TensorFlow: of data sets in ArrayRecord files with one video a record."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, SupportsIndex
from urllib.parse import parse_qsl

import numpy as np

from svdjax.data.decoding import Frames
from svdjax.data.measuring import Measurable, measure_all
from svdjax.data.motion import MEASURE
from svdjax.data.records import ClipRecord
from svdjax.data.sources import geometry_of, measure
from svdjax.errors import UserError, require
from svdjax.typing import Float, UInt8, ndarray

PREFIX = "tfds:"
# Frame rates are not among what these data sets keep; this one's clips all have the same.
_FPS = MappingProxyType({"ucf101": 25.0})
_OPTIONS = ("data_dir", "split", "fps")


class TFDSSource:
    """The videos of one split of a data set that `tfds build` has prepared with ``--file_format=array_record``.

    Each clip is measured once (Farneback motion score); the results are kept in the data set's folder.
    """

    motion_measure = MEASURE
    has_pictures = False

    def __init__(self, spec: str, *, max_bad: float = 0.1) -> None:
        """
        Args:
            spec: ``tfds:NAME``, with options as in a URL: ``tfds:ucf101?data_dir=DIR&split=train&fps=25``. NAME may
                hold a configuration and a version; ``data_dir`` is where it was built (TFDS's own place if left
                out), ``split`` is "train" if left out, ``fps`` is needed where the frame rate is not known.
            max_bad: share of the clips that may be unusable.

        Raises:
            UserError: an unknown option or data set, no files in ArrayRecord format, no video in a record, or a
                frame rate that is not known.
        """
        name, _, query = spec.removeprefix(PREFIX).partition("?")
        options = dict(parse_qsl(query))
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise UserError(f"{spec}: unknown option {unknown[0]}: choose from {', '.join(_OPTIONS)}")
        self._fps = _rate(spec, name, options)
        self._split = options.get("split", "train")
        builder = _builder(spec, name, options.get("data_dir"))
        try:
            self._data = builder.as_data_source(split=self._split)
        except Exception as error:  # each kind of missing data set has an exception of its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{spec}: cannot be read ({reason}): build it with --file_format=array_record and name its data_dir"
            ) from None
        self._key = _video_key(spec, builder.info.features)
        self._name = builder.name
        kept = re.sub(r"[^A-Za-z0-9.]+", "-", f"{builder.info.full_name}-{self._split}-{self._fps:g}fps")
        found = measure_all(
            [self._measurable(place) for place in range(len(self._data))],
            Path(options.get("data_dir", builder.data_dir)) / f"svdjax-{kept}.json",
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
        name = f"{self._name}-{self._split}-{place}"
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
