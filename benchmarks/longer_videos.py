"""Longer videos, measured: how well do windows join?

Command: python -m benchmarks.longer_videos [CHECKPOINT] [--videos N] [--overlaps K ...]   (by default the demo)

Pictures of the built-in world are animated for three windows; a model of known frames is given as many true frames
as windows share instead, and a model of texts the captions of the world that the demo of texts knows. Prints one
JSON object with, for each way to go on,

seam_error: the mean difference of the two frames at a seam, over that of neighbouring frames elsewhere in the same
    videos; 1 is no seam, and below it the motion halts;
jerk: the same of the second difference over frames, in which a jump of the velocity shows.

``picture`` animates the last frame of a window anew, which keeps the picture but not the motion (for a model of
known frames that is ``overlap 1``; texts have none). ``overlap k`` is ``--windows 3 --overlap k``.
"""

import argparse
import json
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, pipeline_of, shown
from benchmarks.runs import demo_run
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.sprites import World, draw_clips
from svdjax.sampling.images import from_uint8
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.sampling.pipeline import Pipeline

BUNDLED = (DEMO_CHECKPOINT,)
QUICK = MappingProxyType({"videos": 8, "overlaps": (1,), "steps": 12})
WINDOWS, OVERLAPS = 3, (1, 2, 4)
BUCKET = 190.0  # enough motion for a seam to show


def seam_error(videos: np.ndarray, seams: list[int], order: int) -> float:
    """Differences of an order over frames at the seams, over those elsewhere.

    Args:
        videos: [b t h w 3] in [-1, 1].
        seams: index of the last frame of each window but the last one.
        order: 1 for differences of neighbours, 2 for the change of these.
    """
    size = np.abs(np.diff(videos, order, axis=1)).mean(axis=(0, 2, 3, 4))
    # A difference of order 2 that starts at i is of frames i, i + 1, i + 2: two of them span a seam.
    at = sorted({seam - back for seam in seams for back in range(order)})
    return float(size[at].mean() / np.delete(size, at).mean())


def again(pipeline: Pipeline, images: np.ndarray) -> np.ndarray:
    """Windows that know nothing of each other but the last frame."""
    made = []
    for number in range(WINDOWS):
        window = from_uint8(pipeline(images=images))
        made.append(window[:, 1:] if number else window)
        images = window[:, -1]
    return np.concatenate(made, axis=1)


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path]:
    """The bundled demo: going on takes no training."""
    del folder, seed, steps
    return BUNDLED


def measure(
    checkpoint: Path, *, videos: int = 32, overlaps: tuple[int, ...] = OVERLAPS, **defaults: Any
) -> dict[str, Any]:
    """Seam error and jerk of each way to go on; see `pipeline_of`."""
    model = load_model(checkpoint, dtype=np.float32)
    frames, ways = model.config.defaults.frames, {}
    texts = model.text_encoder is not None
    pictures = not texts and model.missing_frame is None
    world = demo_run("demo_text_to_video", Path()).data.world if texts else World(frames=frames)
    drawn = list(draw_clips(world, SEED, videos))
    clips = from_uint8(np.stack([clip.frames for clip in drawn]))

    def start(overlap: int) -> dict[str, Any]:
        if texts:
            return {"prompts": [clip.truth.caption for clip in drawn]}
        return {"images": clips[:, 0]} if pictures else shown(clips, np.arange(frames) < overlap)

    def judge(name: str, made: np.ndarray, step: int) -> None:
        seams = [frames - 1 + step * number for number in range(WINDOWS - 1)]
        ways[name] = {
            "seam_error": round(seam_error(made, seams, 1), 3),
            "jerk": round(seam_error(made, seams, 2), 3),
        }

    how = {"motion_bucket": BUCKET, **defaults}
    if pictures:
        judge("picture", again(pipeline_of(model, **how), clips[:, 0]), frames - 1)
    for overlap in overlaps:
        pipeline = pipeline_of(model, windows=WINDOWS, overlap=overlap, **how)
        judge(f"overlap {overlap}", from_uint8(pipeline(**start(overlap))), frames - overlap)
    about = {"checkpoint": str(checkpoint), "videos": videos, "seed": SEED, "windows": WINDOWS, **defaults}
    return {**about, "ways": ways}


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the shortest overlap joins windows with less jerk than animating the last picture anew."""
    picture, shortest, *_ = (way["jerk"] for way in found["ways"].values())
    return shortest < picture


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    picture, *overlaps = (f"{name} {way['jerk']:.3f}" for name, way in found["ways"].items())
    return f"jerk at the seams: {', '.join(overlaps)}", picture


def main() -> None:
    """Print the figures of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO_CHECKPOINT)
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--overlaps", type=int, nargs="+", default=OVERLAPS, help="frames that windows share")
    args = parser.parse_args()
    print(json.dumps(measure(args.checkpoint, videos=args.videos, overlaps=tuple(args.overlaps)), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
