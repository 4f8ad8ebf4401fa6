"""Stage 2b: video pretraining goes on at 320x576, with more noise.

Command:   svdjax train configs/video_320x576.py
Hardware:  as stage 2a, with twice the activations per clip.
Expected:  the text-to-video base model, from which all others are finetuned. Not run by us at full size.
Paper:     start from 2a, 14 frames, 100,000 steps, batch 768, 1e-4, ln(sigma) ~ N(0, 1), conditioned on fps and
           motion, text dropout 15 %.
Ours:      EMA 0.9999; frame rates uniform in 6 to 31; see `svdjax.training.recipes` for the optimizer and
           precision.
Data:      captioned clips.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, TEXT_DROP, adamw, clips, text_to_video_model


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/video_320x576"),
        init_from="./runs/video_256x384/unet/model.safetensors",
        model=text_to_video_model(320, 576),
        data=clips(14, 320, 576, captions=True),
        unet=DiffusionStage(
            steps=100_000,
            batch=768,
            optim=adamw(1e-4),
            sigma=STAGES["video_320x576"],
            drop=TEXT_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
