"""Multi-view at toy scale: does a video model know more of views than an image model, or than nothing (Table 3)?

Command: python -m benchmarks.multi_view [CHECKPOINT | --seeds 0 1 --steps N]   (`pip install -e ".[measure]"`)

Asks for orbits around solids that no training run draws, and compares views with the true ones, all but the one
that was given. Prints one JSON object: PSNR in dB and SSIM of the model; of the picture repeated ("picture"), and
of the true views encoded and decoded ("autoencoder"), which no model can surpass by much.

Without a checkpoint it trains the decoder of `configs/demo_multi_view.py` once, and its UNet from three starts with
the same steps, clips and noise, and has figures of each start and seed.
scratch: a random UNet. image: the demo's UNet with new temporal layers. video: the demo's UNet, trained on videos.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.demo import SEED, pipeline_of, reconstruct
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.compilation import keep_compiled
from svdjax.conversion.source import load_model
from svdjax.data.sprites import World, draw_clips
from svdjax.evaluation.reconstruction import psnr, ssim
from svdjax.models.svd import SVD
from svdjax.sampling.bundled import CHECKPOINTS
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.training.transfer import Init
from svdjax.typing import UInt8, ndarray

BUNDLED = (CHECKPOINTS["multi_view"],)
QUICK = MappingProxyType({"samples": 8, "steps": 12})
CONFIG = "demo_multi_view"
TEMPORAL = ("unet.*.temporal.*", "unet.*.frame_embed.*", "unet.*mix_factor")
STARTS = MappingProxyType(
    {
        "scratch": Init(new=("unet.*",), dropped=("unet.*",)),
        "image": Init(new=TEMPORAL, dropped=TEMPORAL),
        "video": Init(),
    }
)


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path]:
    """The model of the committed configuration."""
    return (trained(demo_run(CONFIG, folder, seed=seed, steps=steps)),)


def measure(checkpoint: Path, *, samples: int = 48, **defaults: Any) -> dict[str, Any]:
    """Go around solids, and compare with the truth and with the picture repeated; see `pipeline_of`."""
    model, batch = load_model(checkpoint, dtype=np.float32), orbits(samples)
    true = batch["video"]
    return {
        "checkpoint": str(checkpoint),
        "samples": samples,
        "seed": SEED,
        **defaults,
        "model": scores(views(model, batch, **defaults), true),
        "picture": scores(np.broadcast_to(true[:, :1], true.shape), true),
        "autoencoder": scores(to_uint8(reconstruct(model, from_uint8(true))), true),
    }


def orbits(count: int) -> dict[str, Any]:
    """A batch of clips of solids, as inputs of a task are made of it: ``video`` as bytes."""
    clips = list(draw_clips(World(orbit_share=1.0), SEED, count))
    return {
        "video": np.stack([clip.frames for clip in clips]),
        "elevation": np.float32([clip.truth.elevation for clip in clips]),
        "azimuths": np.float32([clip.truth.azimuths for clip in clips]),
    }


def views(model: SVD, batch: Mapping[str, Any], **defaults: Any) -> UInt8[ndarray, "n t h w 3"]:
    """The orbits that a model makes of the pictures and poses of a batch."""
    pipeline = pipeline_of(model, **defaults)
    return pipeline(**pipeline.task.inputs_from_batch({**batch, "video": from_uint8(batch["video"])}))


def scores(made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"]) -> dict[str, float]:
    """Means over the views that were not given."""
    made, true = made[:, 1:], true[:, 1:]
    return {"psnr": round(float(psnr(made, true).mean()), 2), "ssim": round(float(ssim(made, true).mean()), 3)}


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the model's views are nearer to the true ones than the picture repeated."""
    return found["model"]["psnr"] > found["picture"]["psnr"]


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    model, picture, most = (
        f"{found[name]['psnr']:.2f} dB, SSIM {found[name]['ssim']:.3f}"
        for name in ("model", "picture", "autoencoder")
    )
    return f"views: {model}", f"the picture repeated: {picture}; at most: {most}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        checkpoint: to measure alone; if left out, the three starts are trained and compared.
        folder: for data and runs; what is finished there is not trained again.
        seeds: of training. samples: solids to go around.
        steps: of each UNet and of the decoder, if not the configuration's.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    folder: Path = Path("runs/multi_view")
    seeds: tuple[int, ...] = (0,)
    samples: int = 48
    steps: int | None = None


def starts(options: Options) -> dict[str, Any]:
    """Train from each start, and measure."""
    keep_compiled()  # the three trainings are one program
    config, found = demo_run(CONFIG, options.folder, steps=options.steps), {}
    decoder = trained(
        dataclasses.replace(config, out=options.folder / f"decoder_{config.decoder.steps}", unet=None)
    )
    for seed in options.seeds:
        for start, init in STARTS.items():
            out = options.folder / f"{start}_{config.unet.steps}_{seed}"
            ours = {"out": out, "seed": seed, "init_from": str(decoder), "init": init, "decoder": None}
            measured = measure(trained(dataclasses.replace(config, **ours)), samples=options.samples)
            # The decoder is the same in all of them, and with it what is beside the models.
            found |= {name: measured[name] for name in ("picture", "autoencoder")}
            found.setdefault(start, {})[f"seed {seed}"] = measured["model"]
            print(json.dumps(found), file=sys.stderr, flush=True)
    return {"samples": options.samples, "steps": config.unet.steps, **found}


def main() -> None:
    """Print the figures of a checkpoint, or of each start."""
    options = tyro.cli(Options, description=__doc__.split("\n")[0])
    found = starts(options) if options.checkpoint is None else measure(options.checkpoint, samples=options.samples)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
