"""Stage 2a: video pretraining, 14 frames of 256x384. Temporal layers join the image model, and everything trains.

Command:   svdjax train configs/video_256x384.py
Hardware:  1.52 B parameters with AdamW and EMA in float32: 24 GB, divided over the chips, beside activations. The
           paper's whole training took about 200,000 hours of A100 80 GB, mostly on 384 of them.
Expected:  frames marked as images come out exactly as from stage 1b before the first step. Not run by us at full
           size.
Paper:     start from 1b with new temporal layers, all parameters trained, 150,000 steps, batch 1536, AdamW at 1e-4,
           ln(sigma) ~ N(-1.2, 1), text dropout 15 %.
Ours:      fps and motion enter from here on (the paper names them for 320x576), so that 2b continues with the same
           network; the last layer of their MLP starts at zero. EMA 0.9999. Frame rates uniform in 6 to 31. See
           `svdjax.training.recipes` for the optimizer and precision. Images among the videos: --unet.image-share
           0.2.
Data:      captioned clips.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, TEXT_DROP, adamw, clips, text_to_video_model
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/video_256x384"),
        init_from="./runs/image/unet/model.safetensors",
        init=Init(
            new=(
                "unet.*.temporal.*",
                "unet.*.frame_embed.*",
                "unet.*.mix_factor",
                "unet.vector_embed.linear1.*",
            ),
            zero=("unet.vector_embed.linear2.*",),
        ),
        model=text_to_video_model(256, 384),
        data=clips(14, 256, 384, captions=True),
        unet=DiffusionStage(
            steps=150_000,
            batch=1536,
            optim=adamw(1e-4),
            sigma=STAGES["video_256x384"],
            drop=TEXT_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
