"""SV3D_p from SV3D_u: the same orbits, now along a given path of the camera (arXiv 2403.12008).

Command:   svdjax train configs/sv3d.py --init-from sv3d_u.safetensors --data.train DIR --data.validation DIR
Finetune:  --init-from sv3d_p.safetensors --init.widened
Hardware:  the paper: 4 nodes of 8 A100 of 80 GB. docs/tpu_plans.md says which slices hold it.
Expected:  PSNR 21.26 on static orbits of 300 objects of GSO. Not run by us at full size.
Paper:     50,000 steps after 55,000 without poses, batch 64, 21 views of 576x576.
Ours:      rate 1e-5 and everything else as in configs/multi_view.py; polar angle and azimuth start with weights of
           zero. The noise on the picture is 1e-5 always, which is what released weights are sampled with.
Data:      orbits with elevation and azimuths, the picture last: see docs/multi_view.md.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, orbits, sv3d_model
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/sv3d"),
        init_from="./sv3d_u.safetensors",
        init=Init(widened=("unet.vector_embed.linear1.kernel",)),
        model=sv3d_model(),
        data=orbits(21, 576, 576),
        unet=DiffusionStage(
            steps=50_000,
            batch=64,
            optim=adamw(1e-5),
            sigma=STAGES["image_to_video_576x1024"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
