"""Stage 3, text to video: the pretrained video model is finetuned on clips of high quality, at 576x1024.

Command:   svdjax train configs/text_to_video_576x1024.py
Sampling:  svdjax sample --checkpoint runs/text_to_video_576x1024/model.safetensors --prompt "a sailing boat"
Hardware:  as stage 2b, with three and a half times the activations per clip; 9,216 tokens a frame.
Expected:  nothing changes but size and data: the first step's loss is that of 2b on larger clips. Not run by us at
           full size.
Paper:     start from 2b, 14 frames, 50,000 steps, batch 768, 3e-5, ln(sigma) ~ N(0.5, 1.4^2), EMA 0.9999, text
           dropout 15 %, about 1 M clips of high quality.
Ours:      frame rates uniform in 6 to 31; see `svdjax.training.recipes` for the optimizer and precision.
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
        out=Path("runs/text_to_video_576x1024"),
        init_from="./runs/video_320x576/unet/model.safetensors",
        model=text_to_video_model(576, 1024),
        data=clips(14, 576, 1024, captions=True),
        unet=DiffusionStage(
            steps=50_000,
            batch=768,
            optim=adamw(3e-5),
            sigma=STAGES["text_to_video_576x1024"],
            drop=TEXT_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
