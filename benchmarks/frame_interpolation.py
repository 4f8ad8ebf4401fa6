"""Frame interpolation, measured: how near are the frames between two to the true ones, and what would be simpler?

Command: python -m benchmarks.frame_interpolation [CHECKPOINT] [--known 0 4]   (needs ".[measure]")

The first and the last of 5 frames of clips of the built-in world are given, or those of other numbers (``--known``,
the last of which ends the clip), of clips that no training run draws (seed 2), to the bundled model by default.
Prints one JSON object with the mean PSNR in dB of the frames between against the true ones, of the model (over all
seeds), of linear blending and of repeating the nearer frame (the one before for the middle); for all clips
and for the half in which most moves. ``pixels`` compares what each method gives; ``after_vae`` compares what the
autoencoder makes of it, for the model's frames come out of the decoder, which costs them detail; ``vae`` is what
remains of the true frames, the most that a model of these latents can reach. Infinite means are null.
"""

import argparse
import json
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, filled_in, psnr, reconstruct
from benchmarks.runs import known_frames
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.sprites import World, draw_clips
from svdjax.sampling.bundled import CHECKPOINTS
from svdjax.sampling.images import from_uint8, to_uint8

BUNDLED = (CHECKPOINTS["frame_interpolation"],)
QUICK = MappingProxyType({"clips": 16, "seeds": 1, "steps": 12})
KNOWN = (0, 4)
train = known_frames


def interpolations(video: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """The simple ways to fill in what is between the known frames of clips [b t h w 3]; the ends are known."""
    frames = np.arange(video.shape[1])
    after = np.searchsorted(known, frames).clip(1)
    first, last = known[after - 1], known[after]
    part = ((frames - first) / (last - first))[:, None, None, None]
    first, last = video[:, first], video[:, last]
    return {"blending": (1 - part) * first + part * last, "repetition": np.where(part <= 0.5, first, last)}


def measure(
    checkpoint: Path, *, known: tuple[int, ...] = KNOWN, clips: int = 64, seeds: int = 3, **defaults: Any
) -> dict[str, Any]:
    """Sample, and compare with the truth and with what is simpler; see `pipeline_of`."""
    model = load_model(checkpoint, dtype=np.float32)
    drawn = list(draw_clips(World(), SEED, clips))
    truth = from_uint8(np.stack([clip.frames[: known[-1] + 1] for clip in drawn]))
    moving = np.argsort([clip.truth.motion for clip in drawn])[clips // 2 :]
    shown = np.isin(np.arange(truth.shape[1]), known)
    made, simple = filled_in(model, truth, shown, seeds, **defaults), interpolations(truth, np.array(known))

    def between(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """PSNR of the frames of each clip that are not known."""
        return psnr(made[:, ~shown].astype(np.float64), truth[:, ~shown])

    pixels = {name: between(as_bytes(video), truth) for name, video in simple.items()}
    decoded = {name: between(reconstruct(model, video), truth) for name, video in simple.items()}
    ours = np.mean([between(video, truth) for video in made], axis=0)
    ceiling = between(reconstruct(model, truth), truth)

    def means(values: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
        return {name: [rounded(x), rounded(x[moving])] for name, x in values.items()}

    return {
        "checkpoint": str(checkpoint),
        "known": known,
        "clips": clips,
        "seed": SEED,
        "seeds": list(range(seeds)),
        **defaults,
        "columns": ["all clips", "the half that moves most"],
        "pixels": means({"model": ours, **pixels}),
        "after_vae": means({"model": ours, **decoded, "vae": ceiling}),
    }


def rounded(decibels: np.ndarray) -> float | None:
    """The mean; none where a simple way is exact, as it is for a clip in which nothing moves."""
    mean = float(decibels.mean())
    return round(mean, 2) if np.isfinite(mean) else None


def as_bytes(video: np.ndarray) -> np.ndarray:
    """As a file would hold it: rounded to bytes."""
    return from_uint8(to_uint8(video))


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the model is nearer to the truth than repetition, after the VAE and where most moves.

    PSNR favours blending, which hedges: the bundled model is not above it (docs/frame_interpolation.md).
    """
    return found["after_vae"]["model"][1] > found["after_vae"]["repetition"][1]


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    model, *others = (f"{name} {values[1]:.2f} dB" for name, values in found["after_vae"].items())
    return f"where most moves, after the VAE: {model}", ", ".join(others)


def main() -> None:
    """Print the figures of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED[0])
    parser.add_argument("--known", type=int, nargs="+", default=KNOWN, help="numbers of known frames, besides 0")
    args = parser.parse_args()
    print(json.dumps(measure(args.checkpoint, known=tuple(sorted({0, *args.known}))), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
