"""Writes videos: .mp4, .gif, .webp, PNG files in a folder or a single one, with the settings inside."""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from svdjax.conversion.output import process_name
from svdjax.errors import UserError
from svdjax.typing import UInt8, ndarray

_EXIF_DESCRIPTION = 0x010E
_PNG_KEY = "svdjax"


def write_video(
    path: Path,
    frames: Iterable[UInt8[ndarray, "h w 3"]],
    fps: float,
    *,
    metadata: Mapping[str, Any] | None = None,
    ending: str | None = None,
) -> None:
    """Write a video; the file appears, or replaces an older one, when it is complete.

    Args:
        path: ends in .mp4 (H.264, 4:2:0, BT.709, plays in browsers; an odd side gets one more row or column,
            a copy of the last), .gif, .webp (animated, lossy), .png (of one frame), or without an ending: a folder
            of exact PNG files.
        frames: at least one; an iterator's are asked for one by one, so that a long video need not be in memory.
        fps: frames per second; .gif keeps it to a hundredth of a second per frame, a folder only in its metadata.
        metadata: JSON-ready settings, kept inside the file; `read_metadata` gives them back.
        ending: the kind of file by its ending ("" for a folder), where the path's own does not tell.

    Raises:
        UserError: unknown ending, no frames, or the path cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower() if ending is None else ending)
    if writer is None:
        raise UserError(
            f"{path} ends in {path.suffix}: name it .mp4, .gif or .webp, or without an ending for PNG files"
        )
    frames = iter(frames)
    start = list(islice(frames, 2))
    if not start or not 0 < fps < math.inf:
        what = f"frames at {fps:g} fps" if start else "0 frames"
        raise UserError(f"{path}: {what} make no video: give at least one frame, and a rate above 0")
    if writer is _write_picture and len(start) > 1:
        raise UserError(f"{path}: several frames make no picture: leave out the ending for a folder of them")
    try:
        with _finished(path, folder=writer is _write_folder) as partial:
            writer(partial, map(np.ascontiguousarray, chain(start, frames)), fps, json.dumps(dict(metadata or {})))
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another place") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """The settings that `write_video` put into a file or folder; empty if there are none.

    Raises:
        UserError: no such file, or not a video or picture.
    """
    try:
        text = (_read_folder if path.is_dir() else _READERS.get(path.suffix.lower(), _read_mp4))(path)
    except (OSError, av.FFmpegError, UnidentifiedImageError, StopIteration) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): check it") from None
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def encode_lossless(frames: UInt8[ndarray, "t h w 3"], fps: float) -> bytes:
    """A .mov file of PNG frames: exact, small for drawn pictures, and the fastest lossless codec to decode."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("png", rate=_as_fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _as_fraction(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(60_000)


@contextmanager
def _finished(path: Path, *, folder: bool) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes it at the end, or vanishes after a failure."""
    partial = path.with_name(f".{path.name}.{process_name()}.partial")
    try:
        check_replaceable(path, folder=folder)
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def check_replaceable(path: Path, *, folder: bool) -> None:
    """Check that what a video would replace is nothing, an older file, or a folder of frames like our own.

    Args:
        path: of the video.
        folder: whether it is going to be a folder of frames.

    Raises:
        UserError: it is a folder with other files in it, or a file where a folder is to be.
    """
    if folder and path.is_file():
        raise UserError(f"{path} is a file, where a folder is to be: choose another place")
    try:
        inside = list(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): choose another place") from None
    foreign = [p.name for p in inside if not (p.name.startswith("frame_") and p.suffix == ".png")]
    if foreign:
        raise UserError(f"{path} holds other files ({foreign[0]}): choose another place")


def _write_mp4(path: Path, frames: Iterator[UInt8[ndarray, "h w 3"]], fps: float, text: str) -> None:
    first = next(frames)
    height, width, _ = first.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    # `faststart`: browsers play before the end is loaded.
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=_as_fraction(fps), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        for frame in chain([first], frames):
            picture = av.VideoFrame.from_ndarray(np.pad(frame, odd, "edge"), format="rgb24")
            container.mux(
                stream.encode(
                    picture.reformat(
                        format="yuv420p",
                        dst_colorspace=Colorspace.ITU709,
                        dst_color_range=ColorRange.MPEG,
                    )
                )
            )
        container.mux(stream.encode(None))


def _read_mp4(path: Path) -> str:
    with av.open(path) as container:
        return container.metadata.get("comment", "")


def _write_gif(path: Path, frames: Iterator[UInt8[ndarray, "h w 3"]], fps: float, text: str) -> None:
    rest = map(Image.fromarray, frames)
    first = next(rest)
    duration = 10 * round(100 / fps)
    first.save(
        path, "GIF", save_all=True, append_images=rest, duration=duration, loop=0, comment=text.encode(), disposal=1
    )


def _read_gif(path: Path) -> str:
    with Image.open(path) as image:
        comment = image.info.get("comment", b"")
    return comment.decode(errors="replace") if isinstance(comment, bytes) else comment


def _write_webp(path: Path, frames: Iterator[UInt8[ndarray, "h w 3"]], fps: float, text: str) -> None:
    rest = map(Image.fromarray, frames)
    first = next(rest)
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = text
    first.save(
        path, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=90, exif=exif
    )


def _read_webp(path: Path) -> str:
    with Image.open(path) as image:
        return str(image.getexif().get(_EXIF_DESCRIPTION, ""))


def _write_folder(path: Path, frames: Iterator[UInt8[ndarray, "h w 3"]], fps: float, text: str) -> None:
    path.mkdir()
    for index, frame in enumerate(frames):
        _write_picture(path / f"frame_{index:04d}.png", iter([frame]), fps, text)


def _write_picture(path: Path, frames: Iterator[UInt8[ndarray, "h w 3"]], fps: float, text: str) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text(_PNG_KEY, text)
    note.add_text("fps", f"{fps:g}")
    Image.fromarray(next(frames)).save(path, "PNG", pnginfo=note)


def _read_folder(path: Path) -> str:
    with Image.open(path if path.is_file() else next(iter(sorted(path.glob("frame_*.png"))))) as image:
        return image.text.get(_PNG_KEY, "")


_WRITERS: dict[str, Callable[[Path, Iterator[np.ndarray], float, str], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": _write_picture,
    "": _write_folder,
}
_READERS: dict[str, Callable[[Path], str]] = {
    ".mp4": _read_mp4,
    ".gif": _read_gif,
    ".webp": _read_webp,
    ".png": _read_folder,
    "": _read_folder,
}
