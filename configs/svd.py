"""Stage 3: Stable Video Diffusion, image to video, 14 frames of 576x1024.

Command:   svdjax train configs/svd.py
Hardware:  1.52 B parameters with AdamW and EMA in float32: 24 GB, divided over the chips, beside the activations of
           9,216 tokens a frame. docs/tpu_plans.md says which slices hold it.
Expected:  with noise around sigma 2.7 the loss says little; judge samples. The paper's authors chose their
           checkpoint by eye, too. Not run by us at full size.
Paper:     start from the base model, 50,000 steps, batch 768, 3e-5, ln(sigma) ~ N(1, 1.6^2), EMA 0.9999, noise on
           the picture ln(sigma) ~ N(-3, 0.5^2), about 1 M clips of high quality.
Ours:      dropout of the picture's conditions 10 % each and 10 % both; frame rates uniform in 6 to 31; see
           `svdjax.training.recipes` for the optimizer and precision.
Data:      clips; the picture is the first frame.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, image_to_video_model


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/svd"),
        init_from="./runs/image_to_video_320x576/unet/model.safetensors",
        model=image_to_video_model(14, 576, 1024),
        data=clips(14, 576, 1024),
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
