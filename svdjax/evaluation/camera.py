"""The camera's motion in a clip: a translation and a zoom fitted to the optical flow, and a name for it.

Flow (Farneback, see `svdjax.data.motion`) is fitted by ``u(p) = t + s (p - centre)`` with the least sum of absolute
deviations, by iteratively reweighted least squares: moving things in front of the background are outliers, which a
mean would follow.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from svdjax.data.motion import flow_fields
from svdjax.typing import Float, UInt8, ndarray

Camera = Literal["static", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out"]
CAMERAS: tuple[str, ...] = get_args(Camera)
# Percent of the shorter side per frame. On the built-in world the fit of a resting camera stays below this; 99 % of
# the moving ones of at least a quarter of the full speed are named rightly (94 % of the worst kind, zoom in).
STATIC = 0.5
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class GlobalMotion:
    """What the whole picture does from one frame to the next.

    Attributes:
        x, y: translation at the centre in percent of the shorter side per frame, to the right and down.
        zoom: growth in percent per frame: 1 is that of a camera that approaches by a hundredth.
    """

    x: float
    y: float
    zoom: float

    @property
    def camera(self) -> Camera:
        """The camera's motion: the largest of the three components names it, or it is static.

        A camera that pans to the right moves the picture to the left. A zoom counts by what it moves at the edges,
        half a shorter side from the centre.
        """
        names = {"pan left": self.x, "pan right": -self.x, "pan up": self.y, "pan down": -self.y}
        names |= {"zoom in": self.zoom / 2, "zoom out": -self.zoom / 2}
        camera = max(names, key=names.__getitem__)
        return camera if names[camera] > STATIC else "static"


def global_motion(frames: UInt8[ndarray, "t h w 3"]) -> GlobalMotion:
    """Fit the motion of a clip: the median over its pairs of neighbouring frames; of one frame, none.

    Raises:
        UserError: OpenCV is not installed.
    """
    return motion_of_flow(flow_fields(frames))


def motion_of_flow(flow: Float[ndarray, "pairs h w 2"]) -> GlobalMotion:
    """Fit the motion of a clip whose optical flow is known, in pixels of the flow's own size."""
    fits = np.array([_fit(each) for each in flow]).reshape(-1, 3)
    x, y, zoom = np.median(fits, axis=0) if len(fits) else np.zeros(3)
    side = min(flow.shape[1:3])
    return GlobalMotion(x=float(100 * x / side), y=float(100 * y / side), zoom=float(100 * zoom))


def _fit(flow: Float[ndarray, "h w 2"]) -> Float[ndarray, "3"]:
    """Translation (x, y) in pixels and growth of the background."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5 - np.array([height, width])[:, None, None] / 2
    one, zero = np.ones(flow.shape[:2]), np.zeros(flow.shape[:2])
    # Two equations for each pixel, one for each component of its flow.
    design = np.stack([np.stack([one, zero, x], -1), np.stack([zero, one, y], -1)], 2).reshape(-1, 3)
    target = flow.reshape(-1)
    fit = np.linalg.lstsq(design, target, rcond=None)[0]
    for _ in range(_ROUNDS):
        length = np.hypot(*(target - design @ fit).reshape(-1, 2).T)
        weights = np.repeat(1 / np.maximum(length, 0.02), 2)[:, None]
        fit = np.linalg.lstsq(design.T @ (weights * design), design.T @ (weights[:, 0] * target), rcond=None)[0]
    return fit
