"""The demo of known frames: of 8 frames of the built-in world any may be given; one model for all such tasks.

Command:   python train.py configs/demo_frame_interpolation.py
           python train.py configs/demo_known_frames.py
Hardware:  any computer; 100 minutes on one core of an EPYC beside other work, after 38 for the first.
Measured:  python -m benchmarks.frame_interpolation runs/demo_known_frames/model.safetensors
           python -m benchmarks.video_prediction runs/demo_known_frames/model.safetensors
           (docs/frame_interpolation.md has the figures; the bundled checkpoint is this one)
Ours:      it starts from a model that has seen 5 frames with the first and last of them known. 40 % of the clips
           show these two, 40 % some first frames, 20 % any.
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.transfer import Init


def model() -> SVDConfig:
    """That of configs/demo_frame_interpolation.py, with attention on one level more."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    return dataclasses.replace(
        demo,
        task="known_frames",
        unet=dataclasses.replace(demo.unet, in_channels=17, attention=(False, True, True)),
        missing_frame=(16, 16, 8),
        defaults=dataclasses.replace(demo.defaults, guidance=(1.0, 1.0), guidance_shape="constant"),
    )


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_known_frames"),
        init_from="./runs/demo_frame_interpolation/model.safetensors",
        init=Init(new=("unet.down.1.attn.*", "unet.up.1.attn.*")),
        model=model(),
        data=DataConfig(sprites=4096, in_memory=True),
        unet=DiffusionStage(
            steps=4500,
            batch=8,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            # More noise than for two known frames: a guess that where things go is decided there.
            sigma=LogNormal(mean=1.5, std=1.6),
            drop=DropRates(context=0.02, concat=0.02, both=0.04),
            ema_decay=0.998,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
