"""A LoRA for one camera motion: rank 16 on blocks of a demo model, trained on the built-in world.

Command:   svdjax train configs/demo_camera_lora.py          (the camera pans right; from the bundled demo_camera)
Zoom in:   --data.world.cameras 0 0 0 0 0 1 0 --unet.lora.targets "unet.*attn*"
           --data.train data/zoom/train --data.validation data/zoom/validation --out runs/lora_zoom
Static:    --data.world.cameras 1 0 0 0 0 0 0 --unet.lora.targets "unet.*.temporal.attn?.*" --unet.steps 600
           --data.sprites 512
           --data.train data/static/train --data.validation data/static/validation --out runs/lora_static
Use:       svdjax sample --lora runs/lora_pan/lora.safetensors
Hardware:  any computer; 16 minutes on one core of an EPYC.
Measured:  python -m benchmarks.camera_lora (figures: docs/lora.md)
"""

from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sprites import CAMERAS, World
from svdjax.models.lora import LoRAConfig
from svdjax.sampling.options import ASSETS
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DropRates, LogNormal
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.optim import OptimConfig

BASE = ASSETS / "demo_camera.safetensors"
# Not the attention alone: the feed-forwards beside it, too, which are most of these small blocks.
TEMPORAL_BLOCKS = "unet.*attn*temporal.*"
# The base's world (configs/demo_camera.py), with one kind of camera.
WORLD = World(
    sprites=(1, 1),
    radius=(0.16, 0.24),
    spread=0.15,
    cameras=tuple(float(camera == "pan right") for camera in CAMERAS),
    sprite_step=0.015,
    pan_step=1 / 32,
    zoom_step=0.07,
    ground_contrast=0.2,
)


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/lora_pan"),
        init_from=str(BASE),
        model=open_checkpoint(BASE).config,
        data=DataConfig(
            train=Path("data/pan/train"),
            validation=Path("data/pan/validation"),
            sprites=1024,
            sprites_validation=32,
            in_memory=True,
            world=WORLD,
        ),
        unet=LoRAStage(
            base="demo_camera",
            lora=LoRAConfig(targets=TEMPORAL_BLOCKS, alpha=32.0),
            steps=1200,
            batch=4,
            optim=OptimConfig(rate=3e-3, b2=0.99, warmup=50, final=0.05, weight_decay=0.0),
            sigma=LogNormal(mean=1.5, std=1.3),
            drop=DropRates(context=0.02, concat=0.02, both=0.04),
            ema_decay=0.99,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
