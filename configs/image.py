"""Stage 1b: the image model, all of it, at the size of the first videos.

Command:   svdjax train configs/image.py
Hardware:  866 M parameters with AdamW and EMA in float32: 14 GB, divided over the chips, beside activations.
Expected:  the loss goes on from where stage 1a ended. Not run by us at full size.
Paper:     start from 1a, 256x384, 31,000 steps with those of 1a, ln(sigma) ~ N(-1.2, 1).
Ours:      batch 2048 and rate 1e-4 (SD 2.1's own), EMA 0.9999, text dropout 15 %; see `svdjax.training.recipes` for
           the optimizer and precision.
Data:      captioned pictures: see docs/data.md.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, TEXT_DROP, adamw, clips, image_model


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/image"),
        init_from="./runs/image_time_embed/unet/model.safetensors",
        model=image_model(256, 384),
        data=clips(1, 256, 384, captions=True),
        unet=DiffusionStage(
            steps=30_000,
            batch=2048,
            optim=adamw(1e-4),
            sigma=STAGES["image"],
            drop=TEXT_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
