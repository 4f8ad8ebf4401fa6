"""Reads video files: which frame is on show when, decoding, turning upright, resizing.

A video is a file path, the bytes of a file, or `Frames` that were decoded before. All pixels are uint8 RGB.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

from svdjax.errors import UserError
from svdjax.typing import Float, Int, UInt8, ndarray

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".ogv", ".gif")

# That decode a video, of more than 512 x 512 pixels; 0 is one for each core. Worker processes set 1.
THREADS: ContextVar[int] = ContextVar("THREADS", default=0)

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
    """A video as it is shown, rotation applied; ``last`` is when its last frame appears, in seconds."""

    height: int
    width: int
    fps: float
    last: float


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
        first = next(container.decode(stream))
        height, width = (first.width, first.height) if first.rotation % 180 else (first.height, first.width)
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
        size: (height, width) to which each frame is resized and centre-cropped, or None to keep its size.
        name: what to call the video in errors.

    Raises:
        UserError: not a readable video, or it ends before the last time.
    """
    if isinstance(video, Frames):
        frames = video.frames[on_show(video.times, np.asarray(times, float))]
        return frames if size is None else resize_crop(frames, size)
    shown = []
    for frame, count in walk(video, [float(t) for t in times], name):
        pixels = to_rgb(frame)[None]
        shown += [pixels if size is None else resize_crop(pixels, size)] * count
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
        for frame, time in timed(frames_of(container), container.streams.video[0]):
            pixels = to_rgb(frame)[None]
            frames.append(pixels if size is None else resize_crop(pixels, size))
            times.append(time)
    return Frames(frames=np.concatenate(frames), times=np.array(times) - times[0])


def on_show(times: Float[ndarray, " t"], targets: Float[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Index of the frame on show at each target time: the last one that has appeared."""
    return np.clip(np.searchsorted(times, targets + _EARLY, side="right") - 1, 0, len(times) - 1)


def resize_crop(frames: UInt8[ndarray, "t H W 3"], size: tuple[int, int]) -> UInt8[ndarray, "t h w 3"]:
    """Resize so that ``size`` (height, width) is just covered, keeping proportions, and cut out the centre."""
    height, width = size
    rows, columns = frames.shape[1:3]
    if (rows, columns) == (height, width):
        return frames
    zoom = max(height / rows, width / columns)
    top, left = (rows - height / zoom) / 2, (columns - width / zoom) / 2
    box = (max(left, 0.0), max(top, 0.0), min(columns - left, columns), min(rows - top, rows))
    resized = [Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC, box=box) for f in frames]
    return np.stack([np.asarray(image) for image in resized])


@contextmanager
def opened(video: Path | bytes, name: str) -> Iterator[InputContainer]:
    """Open a video; whatever goes wrong inside becomes one line that names it."""
    label = name or (str(video) if isinstance(video, Path) else "video")
    try:
        with av.open(video if isinstance(video, Path) else io.BytesIO(video)) as container:
            if not container.streams.video:
                raise UserError(f"{label} holds no pictures: give a video file")
            context = container.streams.video[0].codec_context
            # Threads cost more than they save on small pictures; data loading runs videos side by side anyway.
            context.thread_count = 1 if context.width * context.height <= 512 * 512 else THREADS.get()
            yield container
    except FileNotFoundError:
        raise UserError(f"{label} does not exist: check the path") from None
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or str(error).split(":")[0].strip() or "it holds no frame"
        raise UserError(f"{label} cannot be read as a video ({reason}): replace or remove it") from None


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


def walk(video: Path | bytes, targets: list[float], name: str) -> Iterator[tuple[av.VideoFrame, int]]:
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
        for frame, time in timed(frames, stream):
            ready = sum(target + _EARLY < time - start for target in targets[done:])
            if ready and shown is not None:
                yield shown, ready
                done += ready
            if done == len(targets):
                return
            step = max(step, time - shown_at) if shown is not None else 0.0
            shown, shown_at = frame, time
        if shown is None or targets[-1] > shown_at - start + max(1.5 * step, 1.5 / nominal_rate(stream)):
            raise UserError(f"{label} ends before second {targets[-1]:.2f}: replace it, it may be truncated")
        yield shown, len(targets) - done


def timed(frames: Iterable[av.VideoFrame], stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames with their times in seconds; one without a time stamp gets the nominal rate's."""
    rate = nominal_rate(stream)
    for index, frame in enumerate(frames):
        yield frame, index / rate if frame.time is None else frame.time


def nominal_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def frame_rate(times: Float[ndarray, " t"]) -> float:
    """Frames per second: the inverse of the median step, which one long pause does not bend."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(1 / np.median(steps)) if len(steps) else 1.0


def to_rgb(frame: av.VideoFrame) -> UInt8[ndarray, "h w 3"]:
    """RGB of a frame of any pixel format and bit depth, turned upright."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4 if frame.rotation else 0
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def sample_times(start: float, fps: float, frames: int) -> Float[ndarray, " t"]:
    """Times of ``frames`` frames at ``fps`` from ``start`` on, in seconds."""
    return start + np.arange(frames) / fps
