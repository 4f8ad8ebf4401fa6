"""The demo: a small autoencoder and a small image-to-video UNet, trained on the built-in world of sprites.

Command:   python train.py            (or: python train.py configs/demo.py --quick)
Hardware:  any computer; a GPU is used if JAX finds one. On 2 Xeon cores shared with other work: VAE 14 minutes, its
           decoder 8, UNet 30.
Expected:  clips of another seed, encoded and decoded, 31 dB; frame 0 of samples 27 dB from the picture; rank
           correlation of motion bucket and measured flow 0.9 (see svdjax/assets/README.md).
"""

from pathlib import Path

from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, DropRates, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.vae_stage import DecoderStage, VAEStage

MODEL = SVDConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=8,
        channels=(32, 64, 64),
        num_res_blocks=1,
        attention=(False, False, True),
        head_dim=32,
        context_dim=64,
        vector_dim=192,
        norm_groups=8,
    ),
    vae=VAEConfig(channels=(16, 16, 32), num_res_blocks=1, latent_channels=8, norm_groups=4),
    # Random and frozen: a hash of the picture that the UNet may use; the latent carries the detail.
    image_encoder=CLIPVisionConfig(
        width=64, layers=2, heads=2, mlp_dim=128, patch_size=16, image_size=64, projection_dim=64
    ),
    scalars=(("fps", 64), ("motion_bucket", 64), ("noise_aug", 64)),
    defaults=SamplingDefaults(
        frames=8, height=64, width=64, steps=25, guidance=(1.0, 1.5), sigma_max=40.0, noise_aug=0.02
    ),
)


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo"),
        model=MODEL,
        data=DataConfig(sprites=4096, in_memory=True),
        vae=VAEStage(
            steps=1600,
            batch=16,
            frames=1,
            validate_every=200,
            checkpoint_every=200,
            optim=OptimConfig(rate=2e-3, b2=0.99, warmup=100, final=0.05, weight_decay=0.0),
            ema_decay=0.99,
        ),
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
            drop=DropRates(context=0.05, concat=0.05, both=0.1),
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
