"""What the stages see of a clip, and what a stage is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svdjax.typing import UInt8, ndarray


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
    """

    name: str
    stills: UInt8[ndarray, "3 h w 3"]
    moving: UInt8[ndarray, "t h2 w2 3"]
    step: float = 0.5
    seconds: float
    fps: float


# A stage: what it adds to the clip's row. Values are what Parquet holds: numbers, text, bytes and lists of them.
Annotate = Callable[[ClipFrames], dict[str, Any]]
