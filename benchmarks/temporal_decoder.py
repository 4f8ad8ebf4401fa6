"""The temporal decoder, measured: is what it decodes nearer to the clips than the image decoder's?

Command: python -m benchmarks.temporal_decoder [FOLDER] [--out OUT]   (needs `pip install -e ".[measure]"`)

Trains an image autoencoder on single frames (`configs/demo_image_decoder.py`), and from it four decoders with the
same steps: the image decoder itself, further, and the temporal one, each on reconstruction alone and with a
discriminator that sees whole clips (`configs/demo_temporal_decoder.py`). FOLDER holds videos in ``train`` and
``held``; without it, clips are those of the built-in world. Prints one JSON object with the means over held-out
clips of PSNR (dB), SSIM, flicker (`evaluation.reconstruction.flicker`, in steps of 8-bit brightness) and detail,
the share of the true clips' absolute differences between neighbouring pixels that is left.
"""

import argparse
import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, reconstruct
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.opening import open_source
from svdjax.data.pipeline import fixed_clips
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World, draw_clips
from svdjax.evaluation.reconstruction import flicker, psnr, ssim
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.training import RunConfig
from svdjax.training.vae_stage import DecoderStage

BUNDLED = ()  # what is measured is training, so that there is no quick way
QUICK = MappingProxyType({})
IMAGE, TEMPORAL = "image decoder", "temporal decoder"
IMAGE_ADVERSARIAL, TEMPORAL_ADVERSARIAL = f"{IMAGE}, discriminator", f"{TEMPORAL}, discriminator"
NAMES = ("image autoencoder", IMAGE, IMAGE_ADVERSARIAL, TEMPORAL, TEMPORAL_ADVERSARIAL)


def runs(out: Path, films: Path | None, *, seed: int, steps: int | None) -> tuple[RunConfig, ...]:
    """The image autoencoder's run, and those of the decoders that start from it, in the order of NAMES."""
    made = []
    for name in ("demo_image_decoder", "demo_temporal_decoder"):
        config = demo_run(name, out, seed=seed, steps=steps)
        if films is not None:
            data = dataclasses.replace(config.data, train=films / "train", validation=films / "held", sprites=0)
            config = dataclasses.replace(config, data=data)
        made.append(config)
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
    """The five models, in the order of NAMES.

    Args:
        folder: for the runs. films: videos in ``train`` and ``held``, in place of the built-in world's clips.
        seed: of training. steps: of each of them, if not the configurations'.
    """
    return tuple(trained(config) for config in runs(folder, films, seed=seed, steps=steps))


def measure(*checkpoints: Path, films: Path | None = None, samples: int = 64) -> dict[str, Any]:
    """Means over clips that are encoded and decoded by each of the five models."""
    if films is None:
        clips = np.stack([clip.frames for clip in draw_clips(World(), SEED, samples)])
    else:
        held = fixed_clips(open_source(films / "held"), ClipSampling())
        clips = np.stack([item["video"] for item in islice(held, samples)])
    found = {name: quality(path, clips) for name, path in zip(NAMES, checkpoints, strict=True)}
    source = f"the built-in world, seed {SEED}" if films is None else str(films)
    return {"checkpoints": [str(path) for path in checkpoints], "clips": len(clips), "source": source, **found}


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
    """Whether the discriminator brings back detail: no more than there was (noise would be), nor at any price."""
    plain, adversarial = found[TEMPORAL], found[TEMPORAL_ADVERSARIAL]
    return plain["detail"] < adversarial["detail"] <= 1 and adversarial["psnr"] > plain["psnr"] - 3


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    *others, ours = ("{detail:.3f} ({psnr:.2f} dB, flicker {flicker:.2f})".format(**found[name]) for name in NAMES)
    beside = ", ".join(f"{name} {values}" for name, values in zip(NAMES, others, strict=False))
    return f"detail with the discriminator: {ours}", beside


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("films", metavar="FOLDER", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/temporal_decoder_benchmark"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each training, to see everything work")
    args = parser.parse_args()
    models = train(args.out, args.films, seed=args.seed, steps=args.steps)
    print(json.dumps({"training_seed": args.seed, **measure(*models, films=args.films)}, indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
