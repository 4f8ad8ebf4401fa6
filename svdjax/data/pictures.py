"""Reads pictures: upright, with transparency on white. A picture is a clip of one frame, marked ``image_only``."""

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from svdjax.data.decoding import Frames, Video, resize_crop
from svdjax.data.files import PatientFile, unread
from svdjax.errors import Unread, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ON_ITS_SIDE = range(5, 9)  # values of EXIF's orientation


def open_picture(picture: Path | bytes, *, name: str = "") -> Image.Image:
    """Read a picture, turn it upright and flatten transparency onto white.

    Args:
        picture: any file that Pillow reads, or its bytes; the first frame of an animation is taken.
        name: what to call it in errors, if not by its path.

    Returns:
        RGB with 8 bits a channel.

    Raises:
        UserError: the file is missing or is not a picture.
    """
    with _opened(picture, name) as file:
        return _flatten(ImageOps.exif_transpose(file))


def open_cutout(path: Path) -> Image.Image | None:
    """A picture whose background is transparent, turned upright, as RGBA; None where no pixel is transparent.

    Raises:
        UserError: the file is missing or is not a picture.
    """
    with _opened(path, "") as file:
        if not file.has_transparency_data:
            return None
        image = ImageOps.exif_transpose(file).convert("RGBA")
    return image if image.getchannel("A").getextrema()[0] < 255 else None


def decode_picture(picture: Video, *, size: tuple[int, int] | None = None, name: str = "") -> Frames:
    """A picture as a video of one frame.

    Args:
        picture: a file path, the bytes of a file, or what this function gave before.
        size: (height, width) to which it is resized and centre-cropped, or None to keep its size.
        name: what to call it in errors.

    Raises:
        UserError: not a readable picture.
    """
    frames = picture.frames if isinstance(picture, Frames) else np.asarray(open_picture(picture, name=name))[None]
    return Frames(frames=frames if size is None else resize_crop(frames, size), times=np.zeros(1))


def measure_picture(picture: Path | bytes, name: str) -> dict[str, Any]:
    """The annotations of a picture, as of a video that shows one frame for one second. Only its header is read.

    Raises:
        UserError: it is not a picture.
    """
    with _opened(picture, name) as file:
        width, height = file.size
        exif = Image.Image.getexif(file)  # a PNG's own method decodes it all
        if exif.get(ExifTags.Base.Orientation) in _ON_ITS_SIDE:
            width, height = height, width
    shown = {"fps": 1.0, "seconds": 1.0, "height": height, "width": width}
    return {"name": name, **shown, "motion_score": 0.0, "image_only": True}


@contextmanager
def _opened(picture: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong inside becomes one line that names it."""
    label = name or (str(picture) if isinstance(picture, Path) else "picture")
    try:
        with (
            io.BufferedReader(PatientFile(picture)) if isinstance(picture, Path) else io.BytesIO(picture) as data,
            Image.open(data) as file,
        ):
            yield file
    except FileNotFoundError:
        raise Unread(f"{label}: no such picture") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EISDIR):  # Pillow's own have none
            raise unread(label, error) from None
        raise UserError(f"{label}: not a picture that can be read ({error})") from None


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
