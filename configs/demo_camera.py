"""The demo's UNet with attention at 8x8 as well as at 4x4: the model that the demo's camera LoRAs adapt.

Command:   python train.py configs/demo_camera.py
Hardware:  any computer; 40 minutes on one core of an EPYC.
Ours:      a LoRA of the temporal attention can move a camera only where there is such attention. The demo has it at
           4x4 alone, which is too coarse to move a picture by. Starts from the demo, with the new blocks adding
           nothing at first, so a fraction of its steps is enough.
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

# Less than half as fast as the demo's world. A picture that moves by half its width has to be invented anew.
WORLD = World(sprite_step=0.035, pan_step=1 / 32, zoom_step=0.05)


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
            train=Path("data/slow_sprites/train"),
            validation=Path("data/slow_sprites/validation"),
            sprites=2048,
            in_memory=True,
            world=WORLD,
        ),
        unet=DiffusionStage(
            steps=1500,
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
