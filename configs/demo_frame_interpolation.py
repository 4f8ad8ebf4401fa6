"""The demo of frame interpolation: three frames between two of the built-in world, from the bundled model.

Command:   python train.py configs/demo_frame_interpolation.py
Hardware:  any computer.
Measured:  python -m benchmarks.frame_interpolation runs/demo_frame_interpolation/model.safetensors
           (docs/frame_interpolation.md has the figures)
Ours:      it starts from the demo's UNet, which animates pictures, and keeps its autoencoder; so the level of noise
           stays a scalar. configs/demo_known_frames.py goes on from it, to any set of known frames.
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sampling import ClipSampling
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.transfer import Init


def model() -> SVDConfig:
    """The bundled model, with 8 + 8 latent channels and the mask as its input."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    defaults = dataclasses.replace(demo.defaults, frames=5, guidance=(1.0, 1.0), guidance_shape="constant")
    return dataclasses.replace(
        demo,
        task="frame_interpolation",
        unet=dataclasses.replace(demo.unet, in_channels=17),
        missing_frame=(16, 16, 8),
        defaults=defaults,
    )


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_frame_interpolation"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(new=("missing_frame",), widened=("unet.conv_in.kernel",)),
        model=model(),
        data=DataConfig(sprites=4096, in_memory=True, sampling=ClipSampling(frames=5)),
        unet=DiffusionStage(
            steps=3000,
            batch=8,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=DropRates(context=0.05, concat=0.05, both=0.1),
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
