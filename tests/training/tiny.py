"""A whole run in miniature: 16x16 pixels, 2 frames, the smallest networks."""

from dataclasses import replace
from pathlib import Path

from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.optim import OptimConfig
from svdjax.training.vae_stage import DecoderStage, VAEStage

MODEL = SVDConfig(
    unet=UNetConfig(
        channels=(32,),
        num_res_blocks=1,
        attention=(False,),
        head_dim=32,
        context_dim=8,
        vector_dim=12,
        norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4),
    image_encoder=CLIPVisionConfig(
        width=16, layers=1, heads=1, mlp_dim=16, patch_size=16, image_size=32, projection_dim=8
    ),
    scalars=(("fps", 4), ("motion_bucket", 4), ("noise_aug", 4)),
    defaults=SamplingDefaults(frames=2, height=16, width=16, steps=2),
)
KNOWN_FRAMES = replace(MODEL, unet=replace(MODEL.unet, in_channels=9), task="known_frames", missing_frame=(8, 8, 4))
OPTIM = OptimConfig(rate=1e-3, warmup=1)


def tiny_run(root: Path, *, name: str = "run", vae_steps: int = 4, unet_steps: int = 4) -> RunConfig:
    """A run whose data and output lie under ``root``; runs under one root share the data.

    Of a batch of 8 each of the tests' devices takes one clip; of a smaller one each would do all.
    """
    every = {"log_every": 1, "validate_every": 2, "checkpoint_every": 2}
    return RunConfig(
        out=root / name,
        model=MODEL,
        data=DataConfig(
            train=root / "train",
            validation=root / "validation",
            sampling=ClipSampling(frames=2, size=(16, 16)),
            sprites=24,
            sprites_validation=8,
            world=World(height=16, width=16, frames=2),
        ),
        vae=VAEStage(steps=vae_steps, batch=8, frames=1, optim=OPTIM, **every),
        decoder=DecoderStage(steps=2, batch=8, optim=OPTIM, **every),
        unet=DiffusionStage(steps=unet_steps, batch=8, optim=OPTIM, cache_latents=True, **every),
    )
