"""Reads video files: which frame is on show when, decoding, turning upright, making pixels square, resizing.

A video is a file path, the bytes of a file, or `Frames` that were decoded before. All pixels are uint8 RGB.
"""

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

from svdjax.data.files import PatientFile, unread
from svdjax.errors import Unread, UserError
from svdjax.typing import Float, Int, UInt8, ndarray

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".ogv", ".gif")

_SMALL = 512 * 512  # pixels of a video for which threads cost more than they save

# A frame counts as shown from a thousandth of a second before its time stamp: containers round them.
_EARLY = 1e-3
_WORTH_SEEKING = 1.0  # seconds from the first frame; what lies nearer is reached by decoding
_GUESSED = 2.0  # seconds in which MPEG-PS has no time stamps of its own after a seek; the standard allows 0.7


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A decoded video: ``times`` are seconds from the first frame, ascending."""

    frames: UInt8[ndarray, "t h w 3"]
    times: Float[ndarray, " t"]


Video = Path | bytes | Frames


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video as it is shown, upright, with square pixels; ``last`` is when its last frame appears, in seconds."""

    height: int
    width: int
    fps: float
    last: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded frame of any pixel format and bit depth; ``aspect`` is the width of a pixel over its height."""

    frame: av.VideoFrame
    aspect: float

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as it is shown: upright, with square pixels, of as many rows as were coded."""
        height, width = self.frame.height, max(1, round(self.frame.width * self.aspect))
        return (width, height) if self._turns % 2 else (height, width)

    @property
    def _turns(self) -> int:
        return round(self.frame.rotation / 90) % 4 if self.frame.rotation else 0

    def rgb(self, size: tuple[int, int] | None = None) -> UInt8[ndarray, "h w 3"]:
        """Its pixels as it is shown, resized and centre-cropped to ``size`` (height, width) if that is given."""
        pixels = self.frame.to_ndarray(format="rgb24")
        turned = np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels
        return resize_crop(turned[None], size or self.size, shown=self.size)[0]


def probe(video: Video, name: str = "") -> VideoInfo:
    """Measure a video without decoding more than its first frame.

    The packets' time stamps are read, so the length is right even where the header lies or is silent.

    Raises:
        UserError: not a readable video; the message has the file's name, or ``name`` for bytes.
    """
    if isinstance(video, Frames):
        _, height, width, _ = video.frames.shape
        return VideoInfo(height=height, width=width, fps=frame_rate(video.times), last=float(video.times[-1]))
    with opened(video, name) as container:
        stream = container.streams.video[0]
        height, width = next(pictures_of(container.decode(stream), stream)).size
        container.seek(0)
        ticks = sorted(
            p.dts if p.pts is None else p.pts
            for p in container.demux(stream)
            if p.dts is not None or p.pts is not None
        )
        if not ticks:  # raw streams carry no time stamps
            return VideoInfo(height=height, width=width, fps=float(nominal_rate(stream)), last=0.0)
        times = np.array([float((tick - ticks[0]) * stream.time_base) for tick in ticks])
        return VideoInfo(height=height, width=width, fps=frame_rate(times), last=float(times[-1]))


def decode(
    video: Video,
    times: Sequence[float] | Float[ndarray, " n"],
    *,
    size: tuple[int, int] | None = None,
    name: str = "",
) -> UInt8[ndarray, "n h w 3"]:
    """The frames on show at given times.

    Decoding starts at the key frame before the first time and ends at the last one, and only the frames asked for
    are converted and kept: memory grows with ``times``, not with the video.

    Args:
        times: ascending seconds from the video's first frame.
        size: (height, width) to which each frame is resized and centre-cropped, or None for that of `probe`.
        name: what to call the video in errors.

    Raises:
        UserError: not a readable video, or it ends before the last time.
    """
    if isinstance(video, Frames):
        frames = video.frames[on_show(video.times, np.asarray(times, float))]
        return frames if size is None else resize_crop(frames, size)
    shown = []
    for picture, count in walk(video, [float(t) for t in times], name):
        shown += [picture.rgb(size)[None]] * count
    return np.concatenate(shown)


def decode_all(video: Video, *, size: tuple[int, int] | None = None, name: str = "") -> Frames:
    """Every frame of a short video, with its time.

    Raises:
        UserError: not a readable video.
    """
    if isinstance(video, Frames):
        return video if size is None else Frames(frames=resize_crop(video.frames, size), times=video.times)
    frames, times = [], []
    with opened(video, name) as container:
        for picture, time in timed(frames_of(container), container.streams.video[0]):
            frames.append(picture.rgb(size)[None])
            times.append(time)
    return Frames(frames=np.concatenate(frames), times=np.array(times) - times[0])


def on_show(times: Float[ndarray, " t"], targets: Float[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Index of the frame on show at each target time: the last one that has appeared."""
    return np.clip(np.searchsorted(times, targets + _EARLY, side="right") - 1, 0, len(times) - 1)


def resize_crop(
    frames: UInt8[ndarray, "t H W 3"], size: tuple[int, int], shown: tuple[int, int] | None = None
) -> UInt8[ndarray, "t h w 3"]:
    """Resize so that ``size`` (height, width) is just covered, keeping proportions, and cut out the centre.

    Args:
        shown: (height, width) that the frames have where their pixels are square, if not their own.
    """
    height, width = size
    rows, columns = frames.shape[1:3]
    shown_height, shown_width = shown or (rows, columns)
    if (rows, columns) == (height, width) == (shown_height, shown_width):
        return frames
    zoom = max(height / shown_height, width / shown_width)
    top = (shown_height - height / zoom) / 2 * (rows / shown_height)
    left = (shown_width - width / zoom) / 2 * (columns / shown_width)
    box = (max(left, 0.0), max(top, 0.0), min(columns - left, columns), min(rows - top, rows))
    resized = [Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC, box=box) for f in frames]
    return np.stack([np.asarray(image) for image in resized])


@contextmanager
def opened(video: Path | bytes, name: str) -> Iterator[InputContainer]:
    """Open a video; whatever goes wrong inside becomes one line that names it.

    Raises:
        UserError: it is no video that can be read; `Unread` where nothing is known to be wrong with it.
    """
    label = name or (str(video) if isinstance(video, Path) else "video")
    try:
        with (
            PatientFile(video) if isinstance(video, Path) else io.BytesIO(video) as file,
            av.open(file) as container,
        ):
            if not container.streams.video:
                raise UserError(f"{label} holds no pictures: give a video file")
            context = container.streams.video[0].codec_context
            context.thread_count = threads(context.width * context.height)
            context.thread_type = "AUTO"  # frames side by side, too: few videos are coded in slices
            yield container
    except FileNotFoundError:
        raise Unread(f"{label} does not exist: check the path") from None
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError | IsADirectoryError):
            raise unread(label, error) from None
        reason = getattr(error, "strerror", None) or str(error).split(":")[0].strip() or "it holds no frame"
        raise UserError(f"{label} cannot be read as a video ({reason}): replace or remove it") from None


def threads(pixels: int) -> int:
    """How many threads decode a video with so many pixels; 0 is one for each core.

    Worker processes, of data loading or of curation, read a video each.
    """
    return 1 if pixels <= _SMALL or multiprocessing.parent_process() is not None else 0


@contextmanager
def opened_at(
    video: Path | bytes,
    name: str,
    place: Callable[[av.VideoStream], int],
    read: Callable[[InputContainer], Iterator[Any]],
) -> Iterator[tuple[InputContainer, Iterator[Any]]]:
    """A video, and what is read of it from the last key frame up to a time stamp, or from the video's beginning.

    Containers that do not list their key frames, such as MPEG-PS and MPEG-TS, seek too far.

    Args:
        place: gives the time stamp, in the stream's time base.
        read: what is read: `frames_of` or `packets_of`.
    """
    with opened(video, name) as container:
        found = _sought(container, place(container.streams.video[0]), read)
        if found is not None:
            yield container, found
            return
    with opened(video, name) as container:
        yield container, read(container)


def _sought(
    container: InputContainer, stamp: int, read: Callable[[InputContainer], Iterator[Any]]
) -> Iterator[Any] | None:
    """What `opened_at` reads, or None where the first of it comes after the time stamp."""
    stream = container.streams.video[0]
    if container.format.name == "mpeg":
        stamp -= int(_GUESSED / stream.time_base)
    if stamp <= (stream.start_time or 0):
        return read(container)
    container.seek(stamp, stream=stream)
    found = read(container)
    first = next((each for each in found if each.pts is not None), None)
    return chain([first], found) if first is not None and first.pts <= stamp else None


def frames_of(container: InputContainer) -> Iterator[av.VideoFrame]:
    return container.decode(container.streams.video[0])


def packets_of(container: InputContainer) -> Iterator[av.Packet]:
    return container.demux(container.streams.video[0])


def walk(video: Path | bytes, targets: list[float], name: str) -> Iterator[tuple[Picture, int]]:
    """The frames on show at ascending targets, each with how many of the targets it serves, as they are decoded.

    Raises:
        UserError: not a readable video, or it ends before the last target.
    """
    label = name or (str(video) if isinstance(video, Path) else "video")

    def place(stream: av.VideoStream) -> int:
        ahead = targets[0] + _EARLY if targets[0] > _WORTH_SEEKING else 0.0
        return (stream.start_time or 0) + int(ahead / stream.time_base)

    with opened_at(video, name, place, frames_of) as (container, frames):
        stream = container.streams.video[0]
        start = float((stream.start_time or 0) * stream.time_base)
        shown, shown_at, step, done = None, 0.0, 0.0, 0
        for picture, time in timed(frames, stream):
            ready = sum(target + _EARLY < time - start for target in targets[done:])
            if ready and shown is not None:
                yield shown, ready
                done += ready
            if done == len(targets):
                return
            step = max(step, time - shown_at) if shown is not None else 0.0
            shown, shown_at = picture, time
        if shown is None or targets[-1] > shown_at - start + max(1.5 * step, 1.5 / nominal_rate(stream)):
            raise UserError(f"{label} ends before second {targets[-1]:.2f}: replace it, it may be truncated")
        yield shown, len(targets) - done


def timed(frames: Iterable[av.VideoFrame], stream: av.VideoStream) -> Iterator[tuple[Picture, float]]:
    """Frames with their times in seconds; one without a time stamp gets the nominal rate's."""
    rate = nominal_rate(stream)
    for index, picture in enumerate(pictures_of(frames, stream)):
        yield picture, index / rate if picture.frame.time is None else picture.frame.time


def pictures_of(frames: Iterable[av.VideoFrame], stream: av.VideoStream) -> Iterator[Picture]:
    aspect = float(stream.sample_aspect_ratio or 1)
    return (Picture(frame=frame, aspect=aspect) for frame in frames)


def nominal_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def frame_rate(times: Float[ndarray, " t"]) -> float:
    """Frames per second: the inverse of the median step, which one long pause does not bend."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(1 / np.median(steps)) if len(steps) else 1.0


def sample_times(start: float, fps: float, frames: int) -> Float[ndarray, " t"]:
    """Times of ``frames`` frames at ``fps`` from ``start`` on, in seconds."""
    return start + np.arange(frames) / fps
