"""Reading a photo and fitting it to the size of the video; pixels as numbers and back."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from svdjax.data.pictures import open_cutout, open_picture
from svdjax.errors import UserError
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


def read_object(
    path: Path, height: int, width: int, fit: Fit = "crop", *, ratio: float = 0.917
) -> Float[ndarray, "h w 3"]:
    """Read a picture of an object: where its background is transparent, put the object onto white, centred.

    Args:
        path: any file that Pillow reads.
        height, width: size of the result in pixels.
        fit: for a picture without transparency, which is taken as :func:`read_image` does.
        ratio: how much of the height or width, whichever is tighter, the object takes.

    Returns:
        float32 in [-1, 1].

    Raises:
        UserError: the file is missing or no picture, or nothing in it is visible.
    """
    image = open_cutout(path)
    if image is None:
        return read_image(path, height, width, fit)
    box = image.getchannel("A").getbbox()
    if box is None:
        raise UserError(f"{path}: all of it is transparent: give a picture of an object")
    shown = image.crop(box)
    scale = max(shown.width / width, shown.height / height) / ratio
    columns, rows = (max(int(scale * side), least) for side, least in zip((width, height), shown.size, strict=True))
    canvas = Image.new("RGBA", (columns, rows))
    canvas.paste(shown, (columns // 2 - shown.width // 2, rows // 2 - shown.height // 2))
    canvas = canvas.resize((width, height), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", canvas.size, "white")
    return from_uint8(np.asarray(Image.alpha_composite(white, canvas).convert("RGB")))


def from_uint8(pixels: UInt8[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    """Pixels 0..255 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(values: Float[ndarray, "*n 3"]) -> UInt8[ndarray, "*n 3"]:
    """Values in [-1, 1] to pixels 0..255; values outside are clipped."""
    return np.clip(np.round((np.asarray(values, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
