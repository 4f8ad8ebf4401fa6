"""What is cut out of a video: when it starts, how fast it runs, and which of the allowed shapes it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdjax.data.decoding import decode, on_show, sample_times
from svdjax.data.pictures import decode_picture
from svdjax.data.records import GEOMETRY, ClipRecord
from svdjax.errors import UserError
from svdjax.typing import Float, Int, UInt8, ndarray

Shape = tuple[int, int, int]  # frames, height, width
# How often a clip with several captions shows each (paper, section 3.1: CoCa's, V-BLIP's, the merged one).
CAPTION_WEIGHTS = {"image": 0.5, "video": 0.25, "merged": 0.25}


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """What is cut out of a video.

    Attributes:
        frames: frames per clip.
        fps: lowest and highest frame rate; drawn uniformly from the part of it that the video can give.
        size: (height, width) after resizing and centre-cropping.
        buckets: (frames, height, width) of several shapes to use instead of ``frames`` and ``size``. Each video
            takes the one that it has frames enough for and whose aspect ratio is nearest to its own, then one that
            does not enlarge it, then the longest and largest; a picture first of all one with the fewest frames.
            A batch has one shape.
        flip: mirror half of the clips left to right. Captions that name a side then lie.
        captions: whether clips carry ``caption`` (see `caption_of`).
        views: whether clips carry where the camera stood (see `views_of`), for orbits around an object.
    """

    frames: int = 8
    fps: tuple[float, float] = (7.0, 7.0)
    size: tuple[int, int] = (64, 64)
    buckets: tuple[Shape, ...] = ()
    flip: bool = False
    captions: bool = False
    views: bool = False

    def __post_init__(self) -> None:
        for frames, *size in self.shapes:
            if min(frames, *size) < 1 or not 0 < self.fps[0] <= self.fps[1]:
                raise UserError(
                    f"no clip can have {frames} frames of {size} at {self.fps} fps: use positive values"
                )
        if self.captions and self.flip:
            raise UserError("mirrored clips contradict captions that name a side: turn off flip or captions")
        if self.views and self.flip:
            raise UserError("mirrored orbits turn the other way than their azimuths: turn off flip or views")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every (frames, height, width) that a clip can have."""
        return self.buckets or ((self.frames, *self.size),)

    def shape_of(self, annotations: Mapping[str, Any]) -> Shape:
        """The shape that a video with these annotations takes."""
        if not self.buckets:
            return self.shapes[0]
        geometry = np.array([[annotations[name] for name in GEOMETRY]], float)
        return self.shapes[self.nearest(geometry)[0]]

    def nearest(self, geometry: Float[ndarray, "n 4"]) -> Int[ndarray, " n"]:
        """Which of ``shapes`` each video takes.

        Args:
            geometry: fps, seconds, height and width of each video.
        """
        fps, seconds, height, width = geometry.T
        frames, rows, columns = (np.array(axis)[:, None] for axis in zip(*self.shapes, strict=True))
        lowest, highest = self.rates(frames, fps, seconds)
        lacking = np.maximum(lowest - highest, 0)  # frames per second that the video cannot give
        off = np.abs(np.log(columns / rows) - np.log(width / height))
        enlarged = np.maximum(rows / height, columns / width) > 1
        keys = np.broadcast_arrays(-rows * columns, -frames, enlarged, off.round(6), lacking)
        return np.lexsort(keys, axis=0)[0]

    def rates(
        self, frames: int | ndarray, fps: float | ndarray, seconds: float | ndarray
    ) -> tuple[float | ndarray, float | ndarray]:
        """Lowest and highest frame rate at which a clip fits into a video and no frame is shown twice.

        The lowest is above the highest where there is no such rate.
        """
        last = np.maximum(np.asarray(seconds) - 1 / np.asarray(fps), 1e-9)
        # The thousandth forgives rounded time stamps.
        return np.maximum(self.fps[0], 0.999 * (frames - 1) / last), np.minimum(
            self.fps[1], 1.001 * np.asarray(fps)
        )


def cut_clip(
    record: ClipRecord, sampling: ClipSampling, rng: np.random.Generator
) -> tuple[UInt8[ndarray, "t h w 3"], float, Float[ndarray, " t"]]:
    """A random clip of a video, its frame rate, and the times of its frames in the video, in seconds.

    Of a picture, the picture in every frame.

    Raises:
        UserError: the video cannot be read, or is too short or too slow for the frames and rates asked for.
    """
    video, fps, times = (_repeated if record.is_picture else _cut)(record, sampling, rng)
    return (video[:, :, ::-1] if sampling.flip and rng.random() < 0.5 else video), fps, times


def views_of(record: ClipRecord, times: Float[ndarray, " t"]) -> dict[str, ndarray]:
    """Where the camera stood, from annotations as `sprites.Truth` has them of orbits.

    Args:
        record: its ``azimuths`` hold one number for each frame of the video, its ``elevation`` as many or one.
        times: of the frames that are shown, in seconds.

    Returns:
        ``azimuths`` and ``elevation``, both float32 [t], in degrees. An elevation that all frames share is
        repeated, so that batches have one shape on every host, whichever kinds of orbits are in them.

    Raises:
        UserError: the annotations do not say, or give elevations of another number.
    """
    notes = record.annotations
    azimuths, elevation = notes.get("azimuths"), notes.get("elevation")
    if azimuths is None or elevation is None:
        raise UserError(
            f"{notes['name']} is no orbit: its annotations lack azimuths or elevation: add them, or turn off views"
        )
    if np.ndim(elevation) and len(elevation) != len(azimuths):
        raise UserError(
            f"{notes['name']} has {len(azimuths)} azimuths and {len(elevation)} elevations: annotate it with one "
            "elevation, or one for each azimuth"
        )
    shown = on_show(np.arange(len(azimuths)) / notes["fps"], times)
    poses = {"azimuths": azimuths, "elevation": np.broadcast_to(elevation, len(azimuths))}
    return {name: np.asarray(values, np.float32)[shown] for name, values in poses.items()}


def caption_of(record: ClipRecord, rng: np.random.Generator) -> str:
    """The caption of a clip: one of its ``captions`` by `CAPTION_WEIGHTS`, or its ``caption``, or "".

    Args:
        record: ``captions`` holds texts under any of the names of the weights; one that is missing leaves its share
            to the others, in their proportions.
    """
    captions = record.annotations.get("captions") or {}
    names = [name for name in CAPTION_WEIGHTS if captions.get(name)]
    if not names:
        return record.annotations.get("caption") or ""
    weights = np.array([CAPTION_WEIGHTS[name] for name in names])
    return captions[names[int(rng.choice(len(names), p=weights / weights.sum()))]]


def _repeated(
    record: ClipRecord, sampling: ClipSampling, rng: np.random.Generator
) -> tuple[UInt8[ndarray, "t h w 3"], float, Float[ndarray, " t"]]:
    """A picture in every frame, at any of the rates, which so does not tell pictures from videos."""
    frames, *size = sampling.shape_of(record.annotations)
    picture = decode_picture(record.video, size=(size[0], size[1]), name=record.annotations["name"])
    return np.repeat(picture.frames, frames, axis=0), float(rng.uniform(*sampling.fps)), np.zeros(frames)


def _cut(
    record: ClipRecord, sampling: ClipSampling, rng: np.random.Generator
) -> tuple[UInt8[ndarray, "t h w 3"], float, Float[ndarray, " t"]]:
    notes = record.annotations
    name, native, seconds = notes["name"], notes["fps"], notes["seconds"]
    frames, *size = sampling.shape_of(notes)
    lowest, highest = sampling.rates(frames, native, seconds)
    last = seconds - 1 / native
    if lowest > highest:
        raise UserError(
            f"{name} is too short or slow ({last:.2f} s at {native:.4g} fps) for {frames} frames "
            f"at {sampling.fps[0]:g} to {sampling.fps[1]:g} fps: replace it or ask for fewer frames"
        )
    fps = float(rng.uniform(lowest, highest))
    start = float(rng.uniform(0, max(0.0, last - (frames - 1) / fps)))
    times = sample_times(start, fps, frames)
    return decode(record.video, times, size=(size[0], size[1]), name=name), fps, times
