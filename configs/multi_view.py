"""SVD-MV: views all around an object from one picture of it, 21 of 576x576, from SVD-XT.

Command:   svdjax train configs/multi_view.py --init-from svd_xt.safetensors --data.train DIR --data.validation DIR
Hardware:  the paper: 8 A100 of 80 GB for 16 hours. docs/tpu_plans.md says which slices hold it.
Expected:  PSNR 16.83, LPIPS 0.14, CLIP-S 0.89 on 50 objects of GSO. Not run by us at full size.
Paper:     start from the 25-frame model, 12,000 steps, batch 16, 1e-5, elevation as a further scalar (section 4.5).
Ours:      elevation in degrees, embedded as the other scalars are; its inputs of the scalars' MLP start at zero.
           ln(sigma) ~ N(1, 1.6^2), dropout 10 % each and 10 % both, EMA 0.9999: those of the model that goes on.
           The picture is the first view, as it is the first frame there.
Data:      orbits with their elevation, one turn of 21 frames each: see docs/multi_view.md.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, multi_view_model, orbits
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/multi_view"),
        init_from="./svd_xt.safetensors",
        init=Init(widened=("unet.vector_embed.linear1.kernel",)),
        model=multi_view_model(),
        data=orbits(21, 576, 576),
        unet=DiffusionStage(
            steps=12_000,
            batch=16,
            optim=adamw(1e-5),
            sigma=STAGES["image_to_video_576x1024"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
