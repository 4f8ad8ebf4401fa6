"""A small image autoencoder, for the demo of the temporal decoder to start from.

Command:   svdjax train configs/demo_image_decoder.py [--data.train films --data.validation films_held_out]
Hardware:  any computer.
Measured:  python -m benchmarks.temporal_decoder
Ours:      the demo's autoencoder goes on, with a decoder that decodes every frame alone, on the built-in world or
           on a folder of videos. The UNet stays as it is, and no longer fits the latents.
"""

import dataclasses
from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.models.svd import SVDConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.optim import OptimConfig
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import VAEStage


def model() -> SVDConfig:
    """The demo's model with an image decoder."""
    demo = open_checkpoint(DEMO_CHECKPOINT).config
    return dataclasses.replace(demo, vae=dataclasses.replace(demo.vae, temporal_decoder=False))


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_image_decoder"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(dropped=("vae.decoder.*.temporal.*", "vae.decoder.*.mix_factor", "vae.decoder.time_conv.*")),
        model=model(),
        data=DataConfig(sprites=4096, in_memory=True),
        export_dtype="float32",
        vae=VAEStage(
            steps=800,
            batch=16,
            frames=1,
            validate_every=200,
            checkpoint_every=200,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=50, final=0.05, weight_decay=0.0),
            ema_decay=0.99,
        ),
    )
