"""How a clip moves: the flow map, the score that filters, and what the camera does (section 3.1, appendix C)."""

from typing import Any

import numpy as np
from PIL import Image

from svdjax.curation.clip import ClipFrames
from svdjax.data.motion import flow_fields, score_unit
from svdjax.evaluation.camera import motion_of_flow
from svdjax.typing import Float, ndarray

MAP_SIDE = 16  # pixels on the shorter side of the stored map
_CAMERA_STRIDE = 4  # the camera's three numbers don't need every pixel


def motion(clip: ClipFrames) -> dict[str, Any]:
    """Farneback's flow at 2 frames per second.

    Returns:
        ``motion_score`` as `data.motion.motion_score` has it; ``flow_map`` [pairs, h, w], the flow's length in the
        score's unit, reduced to 16 pixels on the shorter side, as bytes of float16, with ``flow_map_shape``; and
        ``camera``, one of `evaluation.camera.CAMERAS`.

    Raises:
        UserError: OpenCV is not installed.
    """
    flow = flow_fields(clip.moving)
    unit = score_unit(clip.moving.shape[1:3], np.arange(len(clip.moving)) * clip.step)
    length = np.hypot(flow[..., 0], flow[..., 1]) * np.float32(unit)
    reduced = _reduced(length).astype(np.float16)
    coarse = flow[:, ::_CAMERA_STRIDE, ::_CAMERA_STRIDE] / _CAMERA_STRIDE
    return {
        "motion_score": float(length.mean()) if len(length) else 0.0,
        "flow_map": reduced.tobytes(),
        "flow_map_shape": list(reduced.shape),
        "camera": motion_of_flow(coarse).camera,
    }


def _reduced(length: Float[ndarray, "pairs h w"]) -> Float[ndarray, "pairs h2 w2"]:
    """Area averages."""
    height, width = length.shape[1:]
    zoom = min(1.0, MAP_SIDE / min(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    maps = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in length]
    return np.stack(maps) if maps else np.zeros((0, size[1], size[0]), np.float32)
