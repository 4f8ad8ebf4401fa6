"""Reading a photo and fitting it to the size of the video; pixels as numbers and back."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from svdjax.data.pictures import open_picture
from svdjax.typing import Float, UInt8, ndarray

Fit = Literal["crop", "letterbox"]


def read_image(path: str | Path, height: int, width: int, fit: Fit = "crop") -> Float[ndarray, "h w 3"]:
    """Read a picture, turn it upright, flatten transparency onto white, and fit it to a size.

    Args:
        path: any file that Pillow reads; the first frame of an animation is taken.
        height, width: size of the result in pixels.
        fit: ``crop`` fills the frame and cuts what hangs over; ``letterbox`` shows everything between bars.

    Returns:
        float32 in [-1, 1].

    Raises:
        UserError: the file is missing or is not a picture.
    """
    image = open_picture(Path(path))
    method = Image.Resampling.LANCZOS
    if fit == "crop":
        image = ImageOps.fit(image, (width, height), method)
    else:
        image = ImageOps.pad(image, (width, height), method, color="black")
    return from_uint8(np.asarray(image))


def from_uint8(pixels: UInt8[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    """Pixels 0..255 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(values: Float[ndarray, "*n 3"]) -> UInt8[ndarray, "*n 3"]:
    """Values in [-1, 1] to pixels 0..255; values outside are clipped."""
    return np.clip(np.round((np.asarray(values, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
