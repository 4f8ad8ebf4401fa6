"""The temporal decoder, measured: is what it decodes nearer to the clips than the image decoder's?

Command: python -m benchmarks.temporal_decoder [FOLDER] [--out OUT] [--quick]   (pip install -e ".[measure]")

Trains an image autoencoder on single frames (`configs/demo_image_decoder.py`), and from it three decoders with the
same steps: the image decoder itself, further; the temporal one on reconstruction alone; and the temporal one with a
discriminator (`configs/demo_temporal_decoder.py`). FOLDER holds videos in ``train`` and ``held``; without it, clips
are those of the built-in world. Prints one JSON object with the means over held-out clips of PSNR (dB), SSIM,
flicker (`evaluation.reconstruction.flicker`, in steps of 8-bit brightness) and detail, the share of the true clips'
absolute differences between neighbouring pixels that is left. ``--quick`` makes few steps, to see everything work.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.demo import reconstruct
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.opening import open_source
from svdjax.data.pipeline import fixed_clips
from svdjax.evaluation.reconstruction import flicker, psnr, ssim
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.training import RunConfig, load_config, run
from svdjax.training.vae_stage import DecoderStage

CONFIGS = Path(__file__).parents[1] / "configs"
CLIPS = 64


def runs(folder: Path | None, out: Path, *, steps: int | None, seed: int) -> dict[str, RunConfig]:
    """The image autoencoder's run, and those of the decoders that start from it."""
    made = {}
    for name in ("demo_image_decoder", "demo_temporal_decoder"):
        config = load_config([str(CONFIGS / f"{name}.py")], default=CONFIGS)
        data = config.data
        if folder is not None:
            data = dataclasses.replace(data, train=folder / "train", validation=folder / "held", sprites=0)
        made[name] = dataclasses.replace(config, seed=seed, data=data, out=out / f"{name}_{seed}")
    image, temporal = made.values()
    if steps:
        image = dataclasses.replace(image, vae=dataclasses.replace(image.vae, steps=steps))
        temporal = dataclasses.replace(temporal, decoder=dataclasses.replace(temporal.decoder, steps=steps))
    start = str(image.out / "model.safetensors")
    temporal = dataclasses.replace(temporal, init_from=start)
    shared = {field.name: getattr(temporal.decoder, field.name) for field in dataclasses.fields(DecoderStage)}
    plain = DecoderStage(**shared)
    further = dataclasses.replace(image, vae=None, decoder=plain, init_from=start, init=type(image.init)())
    return {
        "image autoencoder": image,
        "image decoder": dataclasses.replace(further, out=out / f"further_{seed}"),
        "temporal decoder": dataclasses.replace(temporal, decoder=plain, out=out / f"plain_{seed}"),
        "temporal decoder, discriminator": temporal,
    }


def measure(checkpoint: Path, clips: np.ndarray) -> dict[str, float]:
    """Means over clips [n t h w 3] of bytes, encoded and decoded."""
    model = load_model(checkpoint, dtype=np.float32)
    made = to_uint8(reconstruct(model, from_uint8(clips)))
    return {
        "psnr": round(float(psnr(made, clips).mean()), 2),
        "ssim": round(float(ssim(made, clips).mean()), 4),
        "flicker": round(float(flicker(made, clips).mean()), 3),
        "detail": round(detail(made) / detail(clips), 3),
    }


def detail(video: np.ndarray) -> float:
    """Mean absolute difference between neighbouring pixels of a row."""
    return float(np.abs(np.diff(video.astype(np.float64), axis=3)).mean())


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/temporal_decoder_benchmark"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="60 steps and 8 clips")
    args = parser.parse_args()
    configs = runs(args.folder, args.out, steps=60 if args.quick else None, seed=args.seed)
    checkpoints = {name: run(config) for name, config in configs.items()}
    data = configs["image autoencoder"].data
    held = fixed_clips(open_source(data.validation), data.sampling)
    clips = np.stack([item["video"] for item, _ in zip(held, range(8 if args.quick else CLIPS), strict=False)])
    found = {name: measure(path, clips) for name, path in checkpoints.items()}
    steps = {name: next(iter(config.stages())).steps for name, config in configs.items()}
    print(json.dumps({"clips": len(clips), "seed": args.seed, "steps": steps, **found}, indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
