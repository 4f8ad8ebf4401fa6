"""The demo of text to video: a small UNet and a small text tower learn the captions of the built-in world.

Command:   svdjax train configs/demo_text_to_video.py
Sampling:  svdjax sample --checkpoint runs/demo_text_to_video/model.safetensors
               --prompt "a red square moves left while the camera stays still"
Hardware:  any computer; a GPU is used if JAX finds one. 115 minutes on one CPU core beside other work.
Measured:  python -m benchmarks.text_to_video runs/demo_text_to_video/model.safetensors (docs/text_to_video.md)
Data:      one shape of one of eight colours moves in one of four directions before a camera at rest; speeds differ,
           and the motion bucket tells them.
Ours:      the autoencoder is the shipped demo's, frozen, and the UNet starts from the demo's, which animates
           pictures and now has to make them, too. The text tower reads the real tokenizer's tokens and is trained
           from scratch with the UNet: its words get the meanings that the pictures need. The UNet attends to the
           text at 4x4.
"""

from pathlib import Path

from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage, LogNormal
from svdjax.training.optim import OptimConfig
from svdjax.training.recipes import TEXT_DROP
from svdjax.training.transfer import Init

MODEL = SVDConfig(
    unet=UNetConfig(
        in_channels=8,
        out_channels=8,
        channels=(32, 64, 64),
        num_res_blocks=1,
        attention=(False, False, True),
        head_dim=32,
        context_dim=64,
        vector_dim=128,
        norm_groups=8,
    ),
    vae=VAEConfig(channels=(16, 16, 32), num_res_blocks=1, latent_channels=8, norm_groups=4),
    image_encoder=None,
    text_encoder=CLIPTextConfig(
        width=64, layers=2, heads=2, mlp_dim=128, context_length=24, last_block=False, projection_dim=None
    ),
    task="text_to_video",
    scalars=(("fps", 64), ("motion_bucket", 64)),
    defaults=SamplingDefaults(
        frames=8,
        height=64,
        width=64,
        steps=25,
        guidance=(3.0, 3.0),
        guidance_shape="constant",
        sigma_max=40.0,
    ),
)
# The demo also sees the picture, and is told how noisy it is.
OTHER_INPUTS = ("unet.conv_in.kernel", "unet.vector_embed.linear1.kernel")


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_text_to_video"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(new=(*OTHER_INPUTS, "text_encoder.*"), dropped=(*OTHER_INPUTS, "image_encoder.*")),
        model=MODEL,
        data=DataConfig(
            train=Path("data/captioned_sprites/train"),
            validation=Path("data/captioned_sprites/validation"),
            sampling=ClipSampling(captions=True),
            sprites=4096,
            world=World(sprites=(1, 1), cameras=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
            in_memory=True,
        ),
        unet=DiffusionStage(
            part="with_text",
            steps=6000,
            batch=8,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=0.5, std=1.5),
            drop=TEXT_DROP,
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
