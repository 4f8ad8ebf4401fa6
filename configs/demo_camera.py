"""The demo's UNet with attention at 8x8 as well as at 4x4: the model that the demo's camera LoRAs adapt.

Command:   python train.py configs/demo_camera.py
Hardware:  any computer; 67 minutes on one core of an EPYC beside other work.
Ours:      a LoRA of the temporal attention can move a camera only where there is such attention. The demo has it at
           4x4 alone, which is too coarse to move a picture by. Starts from the demo, with the new blocks adding
           nothing at first.
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sprites import World
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.transfer import Init

# One large thing on a busy ground. The camera pans to the left in half of the clips, so that this is what the model
# does of itself, and a LoRA has something to change. Slow: a picture that moves by half its width is invented anew.
WORLD = World(
    sprites=(1, 1),
    radius=(0.16, 0.24),
    spread=0.15,
    cameras=(1.0, 4.0, 1.0, 0.0, 0.0, 2.0, 0.0),
    sprite_step=0.015,
    pan_step=1 / 32,
    zoom_step=0.07,
    ground_contrast=0.2,
)


def model() -> SVDConfig:
    """The bundled model, with attention on one level more."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    return dataclasses.replace(demo, unet=dataclasses.replace(demo.unet, attention=(False, True, True)))


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_camera"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(new=("unet.down.1.attn.*", "unet.up.1.attn.*")),
        model=model(),
        data=DataConfig(
            train=Path("data/cameras/train"),
            validation=Path("data/cameras/validation"),
            sprites=3072,
            in_memory=True,
            world=WORLD,
        ),
        unet=DiffusionStage(
            steps=4500,
            batch=4,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            # Which way the camera goes is decided where the noise is strong.
            sigma=LogNormal(mean=1.5, std=1.6),
            drop=DropRates(context=0.02, concat=0.02, both=0.04),
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
