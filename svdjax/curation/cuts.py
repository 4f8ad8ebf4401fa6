"""Where scenes change: hard cuts, dissolves and fades, found by a cascade of three detectors (appendix C).

All three are PySceneDetect's `ContentDetector`, which compares the brightness of each pixel with that in the frame
before (not its hue, which is noise in the dark and would put hard cuts into every fade). The paper says that its
cascade runs at different frame rates and thresholds, but prints neither. Ours, chosen by measurement on real clips
that were joined by known cuts (docs/benchmarks.md):

1. every frame, threshold 27 (PySceneDetect's own): hard cuts;
2. a frame every 0.48 s, threshold 12: dissolves and fades of about half a second;
3. a frame each second, threshold 12: slower ones.

What the slow detectors find is a candidate, for motion changes a picture within half a second as much as a dissolve
does. A candidate counts if its frames are mixtures of the two at its ends, in a share that rises steadily, and the
two ends show different things. A pan over a soft picture is like that, too; but there the optical flow accounts for
most of what changes from frame to frame, and in dissolves and fades it does not.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from svdjax.data.motion import flow_fields
from svdjax.errors import require
from svdjax.typing import Float, UInt8, ndarray

SHORT_SIDE = 72  # of the frames that the detectors see
HARD = 27.0
SLOW = ((0.48, 12.0), (1.0, 12.0))  # seconds between the frames compared, and threshold
_FPS = 25.0  # PySceneDetect wants a rate to count by; it takes no part in what is found
_BLEND_SIZE = (32, 18)  # width and height at which mixtures are judged: most motion is smaller than a pixel
# What a dissolve is, for `judge_mixture`. The limits stand where true dissolves part from motion on the benchmark's
# clips: nearly all that motion makes changes less than 0.4, or does not rise steadily.
_LEAST_CHANGE = 0.4  # squared difference of the ends, beside their variances: 1 or more for unrelated pictures
_MOST_RESIDUAL = 0.2  # share of the squared difference that is no mixture
_MOST_BEND = 0.1  # of the share mixed, from a straight rise
_MOST_STEP = 0.3  # of the share mixed, from frame to frame: more is a hard cut
_LEAST_FRAMES = 3  # that are mixtures
_LEAST_UNMOVED = 0.5  # share of the change amid it that flow leaves: 0.6 or more in dissolves, mostly 0.1 in pans


@dataclass(frozen=True)
class Small:
    """A frame as the detectors see it: its time in seconds and uint8 RGB, `SHORT_SIDE` pixels on the short side."""

    time: float
    pixels: UInt8[ndarray, "h w 3"]


@dataclass(frozen=True, order=True)
class Cut:
    """A change of scene: one ends before frame ``end``, the next begins with frame ``start``.

    The two are the same for a hard cut. Frames in between are of neither scene.
    """

    end: int
    start: int

    @property
    def frame(self) -> int:
        """The cut as one frame number: the middle of a dissolve."""
        return (self.end + self.start) // 2


# How little it is one (0: not at all), and the numbers of the first and last frame of which 0.2 to 0.8 are mixed.
Dissolve = tuple[float, int, int]


def find_cuts(frames: Iterable[Small]) -> list[Cut]:
    """The cuts of a video, in order.

    Frames are looked at as they come, and those of the last few seconds are kept.

    Raises:
        UserError: PySceneDetect is not installed.
    """
    hard: list[int] = []
    slow: list[Dissolve] = []
    detector = _content_detector(HARD)
    cascade = [_Slow(interval, threshold) for interval, threshold in SLOW]
    for number, frame in enumerate(frames):
        if _changed(detector, number, frame):
            hard.append(number)
        grey = _grey(frame.pixels)
        for each in cascade:
            slow += each.add(number, frame, grey)
    for each in cascade:
        slow += each.end()
    return _chosen(hard, slow)


def _chosen(hard: list[int], slow: list[Dissolve]) -> list[Cut]:
    """The hard cuts, and of dissolves that overlap the clearest, unless a hard cut lies in it."""
    chosen = [Cut(number, number) for number in hard]
    for _, first, last in sorted(slow):
        ends = (last - first + 1 + 2) // 3  # frames before 0.2 and after 0.8 of a straight rise
        whole = Cut(max(0, first - ends), last + 1 + ends)
        if all(last < cut.end or cut.start < first for cut in chosen) and not any(
            whole.end < cut.start and cut.end < whole.start for cut in chosen
        ):
            chosen.append(whole)
    return sorted(chosen)


class _Slow:
    """One slow detector: compares a frame every ``interval`` seconds, and looks closely at what it finds."""

    def __init__(self, interval: float, threshold: float) -> None:
        self._interval, self._detector = interval, _content_detector(threshold)
        # Frames of the last intervals: number, frame, brightness.
        self._kept: deque[tuple[int, Small, ndarray]] = deque()
        self._sampled: float | None = None  # when a frame was last compared
        self._candidates: list[tuple[float, float]] = []

    def add(self, number: int, frame: Small, grey: Float[ndarray, " p"]) -> Iterator[Dissolve]:
        """Look at the next frame; gives each dissolve that is certain by now."""
        self._kept.append((number, frame, grey))
        while self._kept[0][1].time < frame.time - 4 * self._interval:
            self._kept.popleft()
        if self._sampled is None or frame.time >= self._sampled + self._interval - 1e-3:
            if _changed(self._detector, number, frame):
                self._candidates.append((self._sampled or 0.0, frame.time))
            self._sampled = frame.time
        while self._candidates and frame.time >= self._candidates[0][1] + self._interval:
            yield from self._judged(*self._candidates.pop(0))

    def end(self) -> Iterator[Dissolve]:
        """The dissolves that are left when the video ends."""
        for candidate in self._candidates:
            yield from self._judged(*candidate)

    def _judged(self, start: float, stop: float) -> Iterator[Dissolve]:
        """The dissolve between two times, or a little earlier or later, if there is one."""
        margins = (0.0, self._interval / 2, self._interval)
        found = []
        for before, after in itertools.product(margins, margins):
            window = [kept for kept in self._kept if start - before <= kept[1].time <= stop + after]
            mixture = judge_mixture(np.stack([grey for *_, grey in window])) if len(window) > 2 else None
            if mixture is not None:
                residual, first, last = mixture
                found.append((residual, window[first][0], window[last][0]))
        if found and not self._is_motion(best := min(found)):
            yield best

    def _is_motion(self, dissolve: Dissolve) -> bool:
        """Whether things that move, or the camera, make what looks like a dissolve."""
        _, first, last = dissolve
        middle, apart = (first + last) // 2, max(1, (last - first + 1) // 4)
        pixels = {number: frame.pixels for number, frame, _ in self._kept}
        return unmoved(pixels[middle - apart], pixels[middle + apart]) < _LEAST_UNMOVED


def judge_mixture(frames: Float[ndarray, "t p"]) -> Dissolve | None:
    """Whether frames pass from the first to the last one by mixing the two, as in a dissolve or a fade.

    Each frame is fitted by ``first + a (last - first)``. Of a dissolve, the share ``a`` rises from 0 to 1 along a
    straight line, and what the fit leaves is small beside ``last - first``.

    Args:
        frames: brightness of their pixels.

    Returns:
        The dissolve, or None if it is none.
    """
    offset = frames - frames[0]
    change = offset[-1]
    energy = float(change @ change)
    if energy <= _LEAST_CHANGE * (frames[0].var() + frames[-1].var()) * len(change):
        return None
    share = offset @ change / energy
    mixed = np.flatnonzero((share > 0.2) & (share < 0.8))
    together = len(mixed) >= _LEAST_FRAMES and mixed[-1] - mixed[0] == len(mixed) - 1
    if not together or np.abs(np.diff(share)).max() > _MOST_STEP:
        return None
    residual = float(((offset[mixed] - share[mixed, None] * change) ** 2).sum(1).mean() / energy)
    rise = np.clip(np.polyval(np.polyfit(mixed, share[mixed], 1), np.arange(len(share))), 0, 1)
    bend = float(np.sqrt(((share - rise) ** 2).mean()))
    if residual > _MOST_RESIDUAL or bend > _MOST_BEND:
        return None
    return residual + 2 * bend**2, int(mixed[0]), int(mixed[-1])


def unmoved(before: UInt8[ndarray, "h w 3"], after: UInt8[ndarray, "h w 3"]) -> float:
    """The share of the squared difference of two frames that is left when the second is moved back along the flow.

    0 where all that changes is that things move, about 1 where it is not motion at all.
    """
    height, width = before.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    flow = flow_fields(np.stack([before, after]))[0]
    cv2 = require("cv2", "curate")
    moved = cv2.remap(
        after,
        columns + flow[..., 0],
        rows + flow[..., 1],
        interpolation=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    change, left = (np.square(frame.astype(np.float32) - before).mean() for frame in (after, moved))
    return float(left / change) if change else 0.0


def _grey(pixels: UInt8[ndarray, "h w 3"]) -> Float[ndarray, " p"]:
    small = Image.fromarray(pixels).convert("L").resize(_BLEND_SIZE, Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def _content_detector(threshold: float) -> Any:
    return require("scenedetect.detectors", "curate").ContentDetector(
        threshold=threshold, min_scene_len=0, luma_only=True
    )


def _changed(detector: Any, number: int, frame: Small) -> bool:
    """Whether a detector sees a change from the frame that it was shown last."""
    timecode = require("scenedetect", "curate").FrameTimecode(number, _FPS)
    return bool(detector.process_frame(timecode, np.ascontiguousarray(frame.pixels[..., ::-1])))
