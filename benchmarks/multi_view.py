"""Multi-view at toy scale: does a video model know more of views than an image model, or than nothing (Table 3)?

Command: python benchmarks/multi_view.py [--quick] [--seeds 0 1] [--steps N]   (needs `pip install -e ".[measure]"`)

Trains the decoder of `configs/demo_multi_view.py` once, and its UNet from three starts with the same steps, clips
and noise.
scratch: a random UNet. image: the demo's UNet with new temporal layers. video: the demo's UNet, trained on videos.
Then asks each for orbits around solids that no training run draws, and compares views with the true ones, all but
the one that was given. Prints one JSON object: PSNR in dB and SSIM of each start and seed; of the picture repeated
("picture"), and of the true views encoded and decoded ("autoencoder"), which no start can surpass by much.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx

from svdjax.cli import guard
from svdjax.compilation import keep_compiled
from svdjax.conversion.source import load_model
from svdjax.data.sprites import World, draw_clips
from svdjax.evaluation.reconstruction import psnr, ssim
from svdjax.models.svd import SVD
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training import RunConfig, load_config, run
from svdjax.training.run import Stopped
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import encode_video
from svdjax.typing import UInt8, ndarray

CONFIG = Path(__file__).parents[1] / "configs" / "demo_multi_view.py"
TEMPORAL = ("unet.*.temporal.*", "unet.*.frame_embed.*", "unet.*mix_factor")
STARTS = MappingProxyType(
    {
        "scratch": Init(new=("unet.*",), dropped=("unet.*",)),
        "image": Init(new=TEMPORAL, dropped=TEMPORAL),
        "video": Init(),
    }
)
SEED = 2  # of the solids and of the noise; training draws its clips with the seeds 0 and 1
AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        folder: for data and runs; what is finished there is not trained again.
        seeds: of training. samples: solids to go around.
        steps, decoder_steps: of each UNet and of the decoder, if not the configuration's.
        quick: a few steps and solids, to see everything work.
    """

    folder: Path = Path("runs/multi_view")
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    decoder_steps: int | None = None
    samples: int = 48
    quick: bool = False


def config_of(options: Options) -> RunConfig:
    """The demo's configuration, with the steps that are asked for."""
    config, folder = load_config([str(CONFIG)], default=CONFIG), options.folder
    data = dataclasses.replace(config.data, train=folder / "train", validation=folder / "validation")
    decoder = dataclasses.replace(config.decoder, steps=options.decoder_steps or config.decoder.steps)
    unet = dataclasses.replace(config.unet, steps=options.steps or config.unet.steps)
    return dataclasses.replace(config, data=data, decoder=decoder, unet=unet)


def trained(config: RunConfig) -> Path:
    """The model of a run, trained unless it is there."""
    finished = config.out / "model.safetensors"
    if not finished.exists() and isinstance(run(config), Stopped):
        raise KeyboardInterrupt
    return finished


def orbits(count: int) -> dict[str, Any]:
    """A batch of clips of solids, as inputs of a task are made of it: ``video`` as bytes."""
    clips = list(draw_clips(World(orbit_share=1.0), SEED, count))
    return {
        "video": np.stack([clip.frames for clip in clips]),
        "elevation": np.float32([clip.truth.elevation for clip in clips]),
        "azimuths": np.float32([clip.truth.azimuths for clip in clips]),
    }


def views(model: SVD, batch: Mapping[str, Any]) -> UInt8[ndarray, "n t h w 3"]:
    """The orbits that a model makes of the pictures and poses of a batch."""
    pipeline = Pipeline(model, Settings(defaults=model.config.defaults, seed=SEED, per_device=AT_ONCE))
    return pipeline(**pipeline.task.inputs_from_batch({**batch, "video": from_uint8(batch["video"])}))


def reconstructed(model: SVD, video: UInt8[ndarray, "n t h w 3"]) -> UInt8[ndarray, "n t h w 3"]:
    """Clips encoded and decoded."""
    graph, state = nnx.split(model.vae)

    @jax.jit
    def once(state: nnx.State, video: ndarray) -> jax.Array:
        vae = nnx.merge(graph, state)
        return vae.decode(encode_video(vae, video))

    return np.concatenate([to_uint8(once(state, from_uint8(clip[None]))) for clip in video])


def scores(made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"]) -> dict[str, float]:
    """Means over the views that were not given."""
    made, true = made[:, 1:], true[:, 1:]
    return {"psnr": round(float(psnr(made, true).mean()), 2), "ssim": round(float(ssim(made, true).mean()), 3)}


def multi_view(options: Options) -> dict[str, Any]:
    """Train and measure."""
    keep_compiled()  # the three trainings are one program
    if options.quick:
        options = dataclasses.replace(options, steps=40, decoder_steps=20, samples=AT_ONCE)
    config, batch = config_of(options), orbits(options.samples)
    true = batch["video"]
    decoder = trained(
        dataclasses.replace(config, out=options.folder / f"decoder_{config.decoder.steps}", unet=None)
    )
    found: dict[str, Any] = {
        "picture": scores(np.broadcast_to(true[:, :1], true.shape), true),
        "autoencoder": scores(reconstructed(load_model(decoder, dtype=np.float32), true), true),
    }
    for seed in options.seeds:
        for start, init in STARTS.items():
            out = options.folder / f"{start}_{config.unet.steps}_{seed}"
            ours = {"out": out, "seed": seed, "init_from": str(decoder), "init": init, "decoder": None}
            model = load_model(trained(dataclasses.replace(config, **ours)), dtype=np.float32)
            found.setdefault(start, {})[f"seed {seed}"] = scores(views(model, batch), true)
            print(json.dumps(found), file=sys.stderr, flush=True)
    return {"samples": options.samples, "steps": config.unet.steps, **found}


if __name__ == "__main__":
    sys.exit(guard(lambda: print(json.dumps(multi_view(tyro.cli(Options)), indent=1))))
