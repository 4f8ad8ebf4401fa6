"""What the stages see of a clip, and what a stage is."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.data.decoding import VideoInfo, probe, walk
from svdjax.data.motion import score_times, working_size
from svdjax.typing import UInt8, ndarray

_STILL_SIDE = 720  # most pixels on the shorter side of a still


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """A few frames of one clip, upright uint8 RGB; memory does not grow with the clip.

    Attributes:
        name: unique in the data set: the video's name and the number of the first frame.
        stills: first, middle and last frame, at most 720 pixels on the shorter side.
        moving: frames at 2 per second from the first on, at most 64, at most 128 pixels on the shorter side. A
            clip shorter than half a second has its first and its last frame there.
        step: seconds between two frames of ``moving``; 0.5 but for such short clips.
        seconds: length of the clip. fps: its frames per second.
        caption: that came with the video, or "".
    """

    name: str
    stills: UInt8[ndarray, "3 h w 3"]
    moving: UInt8[ndarray, "t h2 w2 3"]
    step: float = 0.5
    seconds: float
    fps: float
    caption: str = ""


# A stage: what it adds to the clip's row. Values are what Parquet holds: numbers, text, bytes and lists of them.
Annotate = Callable[[ClipFrames], dict[str, Any]]


def look(path: Path, name: str, caption: str = "", info: VideoInfo | None = None) -> ClipFrames:
    """What the stages see of a clip file, in one pass of decoding.

    Args:
        name: of the clip. caption: that came with its video.
        info: of `probe`, where that is known already.

    Raises:
        UserError: it cannot be read.
    """
    info = info or probe(path, name)
    times = score_times(info.last)
    # Each wanted frame: when, at what size, and for which of the two; 0 stands before 1 where the time is the same.
    still, small = _still_size(info.height, info.width), working_size(info.height, info.width)
    wanted = [(time, 0, still) for time in (0.0, info.last / 2, info.last)] + [(time, 1, small) for time in times]
    wanted.sort()
    found: tuple[list[ndarray], list[ndarray]] = ([], [])
    left = iter(wanted)
    for picture, count in walk(path, [time for time, *_ in wanted], name):
        for _, kind, size in islice(left, count):
            found[kind].append(picture.rgb(size)[None])
    return ClipFrames(
        name=name,
        stills=np.concatenate(found[0]),
        moving=np.concatenate(found[1]),
        step=float(times[1] - times[0]) if len(times) > 1 else 0.5,
        seconds=info.last + 1 / info.fps,
        fps=info.fps,
        caption=caption,
    )


def _still_size(height: int, width: int) -> tuple[int, int]:
    zoom = min(1.0, _STILL_SIDE / min(height, width))
    return max(1, round(height * zoom)), max(1, round(width * zoom))
