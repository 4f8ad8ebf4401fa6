"""The demo of multi-view: views all around small solids, from the demo's video model and one picture (SVD-MV).

Command:   python train.py configs/demo_multi_view.py
Sample:    svdjax sample --checkpoint runs/demo_multi_view/model.safetensors --elevation 10
Hardware:  any computer; decoder and UNet took an hour on one core of an EPYC.
Measured:  python -m benchmarks.multi_view runs/demo_multi_view/model.safetensors (figures: docs/multi_view.md)
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import DecoderStage


def model() -> SVDConfig:
    """The demo's model, told the elevation too; without guidance, which halves the time of sampling."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    scalars = (*demo.scalars, ("elevation", 64))
    return dataclasses.replace(
        demo,
        task="multi_view",
        scalars=scalars,
        unet=dataclasses.replace(demo.unet, vector_dim=sum(width for _, width in scalars)),
        defaults=dataclasses.replace(demo.defaults, guidance=(1.0, 1.0)),
    )


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_multi_view"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(widened=("unet.vector_embed.linear1.kernel",)),
        model=model(),
        data=DataConfig(
            train=Path("data/solids/train"),
            validation=Path("data/solids/validation"),
            sprites=4096,
            sprites_validation=32,
            in_memory=True,
            world=World(orbit_share=1.0),
            sampling=ClipSampling(views=True),
        ),
        # The demo's autoencoder has seen no white ground (16 dB); with the encoder kept, latents mean the same.
        decoder=DecoderStage(
            steps=1000,
            batch=2,
            validate_every=200,
            checkpoint_every=200,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=50, final=0.02, weight_decay=0.0),
            ema_decay=0.99,
        ),
        unet=DiffusionStage(
            steps=3000,
            batch=8,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=DropRates(context=0.05, concat=0.0, both=0.05),
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
