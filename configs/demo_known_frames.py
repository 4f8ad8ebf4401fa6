"""The demo of known frames: of 8 frames of the built-in world any may be given; one model for all such tasks.

Command:   python train.py configs/demo_known_frames.py
Hardware:  any computer; an hour on one core of an EPYC beside other work.
Measured:  python -m benchmarks.video_prediction runs/demo_known_frames/model.safetensors: not yet as near to the
           true frames as the last one repeated (docs/frame_interpolation.md). Not bundled for that.
Ours:      it starts from the bundled demo of frame interpolation, which has seen 5 frames with the first and last
           of them known. 40 % of the clips show these two, 40 % some first frames, 20 % any.
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import ASSETS
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig

START = ASSETS / "demo_frame_interpolation.safetensors"


def model() -> SVDConfig:
    """The bundled model of interpolation, with other frames known and more of them."""
    start = open_checkpoint(START).config
    return dataclasses.replace(start, task="known_frames", defaults=dataclasses.replace(start.defaults, frames=8))


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_known_frames"),
        init_from=str(START),
        model=model(),
        data=DataConfig(sprites=4096, in_memory=True),
        unet=DiffusionStage(
            steps=3000,
            batch=8,
            optim=OptimConfig(rate=7e-4, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=DropRates(context=0.05, concat=0.05, both=0.1),
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
