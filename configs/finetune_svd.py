"""Finetune the released SVD on your own clips: the whole UNet, or its temporal layers only.

Command:   svdjax train configs/finetune_svd.py --init-from svd.safetensors --data.train DIR --data.validation DIR
Temporal:  add --unet.part temporal: 656 M of 1,525 M parameters, so less than half of the gradients and moments.
SVD-XT:    --init-from svd_xt.safetensors --data.sampling.frames 25 --model.defaults.frames 25
           --model.defaults.steps 30 --model.defaults.guidance 1.5 3.0
Smaller:   --data.sampling.size 320 576 --model.defaults.height 320 --model.defaults.width 576 --unet.sigma.mean 0.7
Images:    --unet.image-share 0.2 takes the frames of every fifth clip as images, without the temporal layers.
Hardware:  24 GB of parameters, moments and EMA beside activations: several chips for full training;
           docs/tpu_plans.md says which (the row of svd).
Expected:  the loss of a released model hardly falls; judge samples. Motion that fades as training goes on is a
           known failing of finetunes that train on other conditions than they sample with. Not run by us at full
           size.
Paper:     nothing on finetuning the image-to-video model; noise levels and EMA are of the training that is
           continued.
Ours:      rate 1e-5, which open finetunes agree on; batch 16 and 5,000 steps, for data sets of thousands of clips;
           dropout 10 % each and 10 % both. See `svdjax.training.recipes` for the optimizer and precision.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, finetuned_model


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/finetune_svd"),
        init_from="./svd.safetensors",
        model=finetuned_model(),
        data=clips(14, 576, 1024),
        unet=DiffusionStage(
            part="all",
            steps=5_000,
            batch=16,
            optim=adamw(1e-5),
            sigma=STAGES["image_to_video_576x1024"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
