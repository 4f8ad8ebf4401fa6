"""The paper's ablation of pretraining as such: 8 frames of 512x512 of high quality, from one of several starts.

Command:   svdjax train configs/ablation_512x512.py --init-from MODEL --out runs/NAME
Hardware:  as configs/ablation_256x256.py, and four times the activations.
Expected:  one model for each start, for votes after 10,000 and 50,000 steps (docs/voting.md): with
           --unet.keep.every 10000, `svdjax export` gives the first of them. Not run by us.
Paper:     figure 4e: 50,000 steps on 250,000 clips of high quality, from the image model, from pretraining on
           clips as they come, and from pretraining on curated ones.
Ours:      all else as in configs/ablation_256x256.py, for the paper names nothing else. From an image model give
           --init.new "unet.*.temporal.*" "unet.*.frame_embed.*" "unet.*.mix_factor", too.
Data:      captioned clips.
"""

from pathlib import Path

from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import ABLATION, ablation_model, adamw, clips


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/ablation_512x512"),
        init_from="./runs/ablation_256x256/unet/model.safetensors",
        model=ablation_model(512),
        data=clips(8, 512, 512, captions=True),
        unet=DiffusionStage(steps=50_000, batch=256, optim=adamw(1e-4), **ABLATION),
    )
