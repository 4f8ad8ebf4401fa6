"""Longer videos, measured: how well do windows join?

Command: python -m benchmarks.longer_videos [CHECKPOINT] [--quick]

Pictures of the built-in world are animated for three windows. Prints one JSON object with, for each way to go on,

seam_error: the mean difference of the two frames at a seam, over that of neighbouring frames elsewhere in the same
    videos; 1 is no seam, and below it the motion halts;
jerk: the same of the second difference over frames, in which a jump of the velocity shows.

``picture`` animates the last frame of a window anew, which keeps the picture but not the motion. ``overlap k`` is
``--windows 3 --overlap k``. ``--quick`` exits with 1 unless the longest overlap has less jerk than ``picture``.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.sprites import World, draw_clips
from svdjax.models.svd import SVD
from svdjax.sampling.images import from_uint8
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.sampling.pipeline import Pipeline, Settings

WINDOWS = 3
SEED = 2
AT_ONCE = 16
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


def measure(model: SVD, *, videos: int, overlaps: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Seam error and jerk of each way to go on."""
    images = from_uint8(np.stack([clip.frames[0] for clip in draw_clips(World(), SEED, videos)]))
    defaults = dataclasses.replace(model.config.defaults, motion_bucket=BUCKET)
    frames, found = defaults.frames, {}

    def judge(name: str, made: np.ndarray, step: int) -> None:
        seams = [frames - 1 + step * number for number in range(WINDOWS - 1)]
        found[name] = {
            "seam_error": round(seam_error(made, seams, 1), 3),
            "jerk": round(seam_error(made, seams, 2), 3),
        }

    alone = Settings(defaults=defaults, seed=SEED, per_device=AT_ONCE)
    judge("picture", again(Pipeline(model, alone), images), frames - 1)
    for overlap in overlaps:
        settings = dataclasses.replace(alone, windows=WINDOWS, overlap=overlap)
        judge(f"overlap {overlap}", from_uint8(Pipeline(model, settings)(images=images)), frames - overlap)
    return found


def main() -> int:
    """Print the figures of a checkpoint, the bundled one by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO_CHECKPOINT)
    parser.add_argument("--quick", action="store_true", help="16 videos and one overlap, and check the direction")
    args = parser.parse_args()
    model = load_model(args.checkpoint, dtype=np.float32)
    overlaps = (4,) if args.quick else (1, 2, 4)
    found = measure(model, videos=16 if args.quick else 32, overlaps=overlaps)
    print(json.dumps({"checkpoint": str(args.checkpoint), "windows": WINDOWS, **found}, indent=1))
    return int(args.quick and found[f"overlap {overlaps[-1]}"]["jerk"] >= found["picture"]["jerk"])


if __name__ == "__main__":
    sys.exit(guard(main))
