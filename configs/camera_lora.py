"""Camera-motion LoRA: teach the released SVD one kind of camera motion, with 3.3 M parameters beside its 1.5 B.

Command:   svdjax train configs/camera_lora.py --init-from svd.safetensors                   (moves horizontally)
Others:    --data.train data/zoom/train --data.validation data/zoom/validation --out runs/camera_zoom
           --data.train data/static/train --data.validation data/static/validation --out runs/camera_static
Use:       svdjax sample PHOTO --checkpoint svd.safetensors --lora runs/camera_horizontal/lora.safetensors
Over time: --unet.lora.targets "unet.*.temporal.attn1.*" adapts the attention over frames alone: 1.6 M parameters.
Hardware:  parameters, moments and average of the LoRA take 53 MB in float32. The frozen model takes 4.5 GB
           in bfloat16, divided over the chips, and 9 GB of the hosts' memory in float32, as it was read; beside
           them are the activations. docs/tpu_plans.md says which slices hold it.
Expected:  the loss hardly falls; judge samples with and without the LoRA. Not run by us at full size.
Paper:     rank 16, in the temporal attention blocks, 5,000 steps, three sets of clips by the camera's motion:
           horizontal, zoom and static; from the image-to-video model.
Ours:      both attentions of each temporal block, q, k, v and out; alpha 16; batch 16; rate 1e-4, usual for LoRA;
           noise levels and dropout of the training that is continued. See `svdjax.training.recipes` for the rest.
Data:      a set of clips for each kind of motion: `svdjax curate filter --camera`, see docs/lora.md.
"""

import dataclasses
from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.models.lora import LoRAConfig
from svdjax.training import RunConfig
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, finetuned_model


def config() -> RunConfig:
    """The run."""
    sets = {"train": Path("data/horizontal/train"), "validation": Path("data/horizontal/validation")}
    return RunConfig(
        out=Path("runs/camera_horizontal"),
        init_from="./svd.safetensors",
        model=finetuned_model(),
        data=dataclasses.replace(clips(14, 576, 1024), **sets),
        unet=LoRAStage(
            lora=LoRAConfig(rank=16, alpha=16.0),
            base="stable-video-diffusion-img2vid",
            steps=5_000,
            batch=16,
            optim=adamw(1e-4, warmup=100),
            sigma=STAGES["image_to_video_576x1024"],
            drop=IMAGE_DROP,
            ema_decay=0.999,
            **FULL_SIZE,
        ),
    )
