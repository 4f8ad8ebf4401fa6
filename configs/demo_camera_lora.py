"""A LoRA for one camera motion: rank 16 on a demo model's temporal blocks, trained on the built-in world.

Command:   svdjax train configs/demo_camera_lora.py          (the camera pans right; after configs/demo_camera.py)
Zoom in:   --data.world.cameras 0 0 0 0 0 1 0 --data.train data/zoom/train
           --data.validation data/zoom/validation --out runs/lora_zoom
Static:    --data.world.cameras 1 0 0 0 0 0 0 --data.train data/static/train
           --data.validation data/static/validation --out runs/lora_static
Use:       svdjax sample --checkpoint runs/demo_camera/model.safetensors --lora runs/lora_pan/lora.safetensors
Hardware:  any computer; 16 minutes on one core of an EPYC.
Measured:  python -m benchmarks.camera_lora (figures: docs/lora.md; zooming in is not learned in so many steps)
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sprites import CAMERAS, World
from svdjax.models.lora import LoRAConfig
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DropRates, LogNormal
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.optim import OptimConfig

BASE = "./runs/demo_camera/model.safetensors"
# Not the attention alone: the feed-forwards beside it, too, which are most of these small blocks.
TEMPORAL_BLOCKS = "unet.*attn*temporal.*"


def model() -> SVDConfig:
    """The model of configs/demo_camera.py."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    return dataclasses.replace(demo, unet=dataclasses.replace(demo.unet, attention=(False, True, True)))


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/lora_pan"),
        init_from=BASE,
        model=model(),
        data=DataConfig(
            train=Path("data/pan/train"),
            validation=Path("data/pan/validation"),
            sprites=1024,
            sprites_validation=32,
            in_memory=True,
            # The base's world (configs/demo_camera.py), with one kind of camera.
            world=World(
                sprite_step=0.035,
                pan_step=1 / 32,
                zoom_step=0.05,
                cameras=tuple(float(camera == "pan right") for camera in CAMERAS),
            ),
        ),
        unet=LoRAStage(
            base="demo_camera",
            lora=LoRAConfig(targets=TEMPORAL_BLOCKS, alpha=32.0),
            steps=1000,
            batch=8,
            optim=OptimConfig(rate=3e-3, b2=0.99, warmup=50, final=0.05, weight_decay=0.0),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=DropRates(context=0.05, concat=0.05, both=0.1),
            ema_decay=0.99,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
