"""Stage 3, long: SVD-XT, image to video, 25 frames of 576x1024.

Command:   svdjax train configs/svd_xt.py
Hardware:  as SVD, with 1.8 times the activations; docs/tpu_plans.md says which slices hold it.
Expected:  as SVD. Not run by us at full size.
Paper:     50,000 steps, batch 768, 3e-5, ln(sigma) ~ N(1, 1.6^2), EMA 0.9999. The paper has it start where the
           model of 14 frames starts, its model card from that model.
Ours:      the card's start, for the card describes the released weights. Otherwise as SVD.
Data:      clips of at least 25 frames; the picture is the first one.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, image_to_video_model


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/svd_xt"),
        init_from="./runs/svd/unet/model.safetensors",
        model=image_to_video_model(25, 576, 1024),
        data=clips(25, 576, 1024),
        unet=DiffusionStage(
            steps=50_000,
            batch=768,
            optim=adamw(3e-5),
            sigma=STAGES["image_to_video_576x1024"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
