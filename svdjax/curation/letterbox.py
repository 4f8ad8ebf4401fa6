"""Black bars: films that were put into a frame of another shape."""

from typing import Any

import numpy as np

from svdjax.curation.clip import ClipFrames
from svdjax.typing import UInt8, ndarray

BLACK = 24  # of 255: brighter pixels are no bar; broadcast black is 16
_SPECKS = 0.01  # share of a row that may be brighter, for noise and logos' edges


def letterbox(clip: ClipFrames) -> dict[str, Any]:
    """The share of the picture that is black bars in the first, the middle and the last frame alike.

    Returns:
        ``letterbox``, 0..1; 1 where all three are black.
    """
    return {"letterbox": bars(clip.stills)}


def bars(frames: UInt8[ndarray, "t h w 3"]) -> float:
    """The share of the area that lies in black rows and columns at the edges of all frames."""
    bright = (frames.max(-1) > BLACK).mean(0)
    rows = np.flatnonzero(bright.mean(1) > _SPECKS)
    columns = np.flatnonzero(bright.mean(0) > _SPECKS)
    if not len(rows) or not len(columns):
        return 1.0
    inside = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1 - float(inside / bright.size)
