"""A LoRA for one camera motion: rank 16 on a demo model's temporal attention, trained on the built-in world.

Command:   svdjax train configs/demo_camera_lora.py          (the camera pans right; after configs/demo_camera.py)
Zoom in:   --data.world.cameras 0 0 0 0 0 1 0 --data.train data/zoom/train
           --data.validation data/zoom/validation --out runs/lora_zoom
Static:    --data.world.cameras 1 0 0 0 0 0 0 --data.train data/static/train
           --data.validation data/static/validation --out runs/lora_static
Use:       svdjax sample --checkpoint runs/demo_camera/model.safetensors --lora runs/lora_pan/lora.safetensors
Hardware:  any computer.
Measured:  python -m benchmarks.camera_lora (docs/lora.md has the figures, which are small)
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sprites import CAMERAS, World
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DropRates, LogNormal
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.optim import OptimConfig

BASE = "./runs/demo_camera/model.safetensors"


def model() -> SVDConfig:
    """The model of configs/demo_camera.py."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    return dataclasses.replace(demo, unet=dataclasses.replace(demo.unet, attention=(False, True, True)))


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/lora_pan"),
        init_from=BASE,
        export_dtype="float32",
        model=model(),
        data=DataConfig(
            train=Path("data/pan/train"),
            validation=Path("data/pan/validation"),
            sprites=512,
            sprites_validation=32,
            in_memory=True,
            world=World(cameras=tuple(float(camera == "pan right") for camera in CAMERAS)),
        ),
        unet=LoRAStage(
            base="demo_camera",
            steps=300,
            batch=8,
            optim=OptimConfig(rate=3e-3, b2=0.99, warmup=20, final=0.05, weight_decay=0.0),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=DropRates(context=0.05, concat=0.05, both=0.1),
            ema_decay=0.98,
            cache_latents=True,
            validate_every=100,
            checkpoint_every=100,
        ),
    )
