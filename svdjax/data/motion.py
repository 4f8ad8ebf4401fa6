"""How much moves: the Farneback score of a clip, and its place among all clips as a bucket of 1..255.

SVD is conditioned on a "motion bucket" in 1..255 whose relation to the optical flow was never published.
Ours: the bucket is the share of the data set's clips that move less, in 255 equal parts. The 254 thresholds
are saved with the data set, so a bucket means the same in training, sampling and evaluation.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from svdjax.data.decoding import Video, VideoInfo, decode, probe
from svdjax.errors import UserError, require
from svdjax.typing import Float, UInt8, ndarray

MEASURE = "Farneback, 2 fps, % of short side"  # what `motion_score` gives; data sets say it with their scores
STILL = "none, pictures"  # what data sets without videos say
SCORE_FPS = 2.0  # the paper measures flow at 2 frames per second (section 5.1)
_WORKING_SIDE = 128
# OpenCV adds 1e-3 to a determinant that grows with the fourth power of the contrast: on smooth or enlarged
# pictures of 8-bit brightness that pulls the flow towards 0 (to a third of the truth on the built-in world).
_CONTRAST = 8.0
_MAX_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class MotionBuckets:
    """The map score -> bucket: ``thresholds`` are the 1/255, 2/255, ... 254/255 quantiles of all scores."""

    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array(self.thresholds)
        if values.shape != (254,) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise UserError("motion buckets need 254 finite, ascending thresholds: write the data set again")

    @classmethod
    def fit(cls, scores: Sequence[float] | Float[ndarray, " n"]) -> "MotionBuckets":
        """The map that spreads ``scores`` evenly over the buckets.

        Raises:
            UserError: no scores.
        """
        if not len(scores):
            raise UserError("no motion scores to make buckets from: the data set is empty")
        return cls(thresholds=tuple(np.quantile(np.asarray(scores, float), np.arange(1, 255) / 255).tolist()))

    @classmethod
    def union(cls, maps: Sequence["MotionBuckets"], weights: Sequence[float]) -> "MotionBuckets":
        """The map of several data sets together, clips of each drawn with its weight, from their maps alone.

        A threshold of the union is the lowest of all thresholds below which the data sets have the right share of
        their clips, on weighted average; so it is off by at most 1/255 of them.
        """
        values = np.sort(np.concatenate([each.thresholds for each in maps]))
        below = sum(
            weight / sum(weights) * np.searchsorted(each.thresholds, values, side="right")
            for each, weight in zip(maps, weights, strict=True)
        )
        return cls(thresholds=tuple(values[np.searchsorted(below, np.arange(1, 255) - 1e-6)].tolist()))

    def bucket(self, score: float) -> int:
        """Bucket 1..255 of a score: 1 + the number of thresholds below it. Equal scores share the lowest."""
        return 1 + int(np.searchsorted(self.thresholds, score, side="left"))


def flow_fields(frames: UInt8[ndarray, "t h w 3"]) -> Float[ndarray, "pairs h w 2"]:
    """Farneback's dense optical flow (x, y) from each frame to the next, in pixels of the given frames.

    Small frames are enlarged first, large ones reduced, to a shorter side of 128 pixels, for which the filter's
    window is chosen. Needs OpenCV (``pip install 'svdjax[measure]'``).
    """
    cv2 = require("cv2", "measure")
    height, width = frames.shape[1:3]
    zoom = _WORKING_SIDE / min(height, width)
    working = (round(width * zoom), round(height * zoom))
    grey = [_brightness(frame, working) for frame in frames]
    flows = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in itertools.pairwise(grey)
    ]
    rows = (np.arange(height) + 0.5) * working[1] // height
    columns = (np.arange(width) + 0.5) * working[0] // width
    picked = [f[rows.astype(int)[:, None], columns.astype(int)] for f in flows]
    return np.stack(picked) / np.float32(zoom) if picked else np.zeros((0, height, width, 2), np.float32)


def _brightness(frame: UInt8[ndarray, "H W 3"], size: tuple[int, int]) -> Float[ndarray, "h w"]:
    """Luma (BT.601) at ``size`` (width, height), not rounded to 8 bits."""
    luma = frame @ np.array([0.299, 0.587, 0.114], np.float32) * np.float32(_CONTRAST)
    return np.asarray(Image.fromarray(luma).resize(size, Image.Resampling.BICUBIC))


def flow_magnitude(frames: UInt8[ndarray, "t h w 3"]) -> float:
    """Mean length of the Farneback flow over pixels and frame pairs, in pixels per frame; 0 for one frame."""
    flow = flow_fields(frames)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) if len(flow) else 0.0


def motion_score(video: Video, *, name: str = "", info: VideoInfo | None = None) -> float:
    """The motion score of a clip: `flow_magnitude` at 2 frames per second, in percent of the shorter side.

    The paper's score is the same mean, over a reduced map of the magnitudes, in unpublished units (section 5.1).
    Only the first 32 s count. Clips shorter than 0.5 s are measured from first to last frame and scaled.

    Args:
        name: what to call the video in errors. info: what `probe` says of it, if that is known.

    Raises:
        UserError: not a readable video, or OpenCV is not installed.
    """
    info = info or probe(video, name)
    times = score_times(info.last)
    size = working_size(info.height, info.width)
    frames = decode(video, times, size=size, name=name)
    return flow_magnitude(frames) * score_unit(size, times)


def score_times(last: float) -> Float[ndarray, " t"]:
    """When a clip's motion is measured, in seconds from its first frame; ``last`` is the time of its last one."""
    count = min(int(last * SCORE_FPS + 1e-3) + 1, _MAX_FRAMES)
    return np.arange(count) / SCORE_FPS if count > 1 else np.array([0.0, last] if last > 0 else [0.0])


def score_unit(size: tuple[int, int], times: Float[ndarray, " t"]) -> float:
    """What a flow of one pixel per frame counts in the score, of frames of (height, width) at `score_times`."""
    return 100 / min(size) / SCORE_FPS / float(times[1] - times[0]) if len(times) > 1 else 0.0


def working_size(height: int, width: int) -> tuple[int, int]:
    """The size that keeps proportions and has the working shorter side, at most the given one."""
    zoom = min(1.0, _WORKING_SIDE / min(height, width))
    return max(1, round(height * zoom)), max(1, round(width * zoom))
