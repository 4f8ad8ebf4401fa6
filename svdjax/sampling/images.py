"""Reading a photo: orientation, transparency, and fitting it to the size of the video."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
    try:
        with Image.open(path) as file:
            image = _flatten(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a picture that can be read ({error})") from None
    method = Image.Resampling.LANCZOS
    if fit == "crop":
        image = ImageOps.fit(image, (width, height), method)
    else:
        image = ImageOps.pad(image, (width, height), method, color="black")
    return from_uint8(np.asarray(image))


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with transparency laid over white (converting alone would show what hides under it)."""
    if image.mode in ("I;16", "I", "F"):  # 16-bit greyscale: Pillow would clip it instead of scaling it
        values = np.asarray(image, np.float64)
        values *= 255 / (65535 if values.max() > 255 else 255)
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_uint8(pixels: UInt8[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    """Pixels 0..255 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(values: Float[ndarray, "*n 3"]) -> UInt8[ndarray, "*n 3"]:
    """Values in [-1, 1] to pixels 0..255; values outside are clipped."""
    return np.clip(np.round((np.asarray(values, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
