"""The first stage of the demo of text to video: the words for what pictures show, learned from single ones.

Command:   svdjax train configs/demo_text_to_image.py          (configs/demo_text_to_video.py goes on from it)
Sampling:  svdjax sample --checkpoint runs/demo_text_to_image/model.safetensors
               --prompt "a red square moves left while the camera stays still"
Hardware:  any computer; a GPU is used if JAX finds one. 27 minutes on one core of an EPYC beside other work.
Measured:  the second stage is (docs/text_to_video.md)
Paper:     its video model begins as an image model, too, which then gets temporal layers.
Data:      one large shape of one of eight colours on a plain ground, with the caption of the clip that it begins.
Ours:      the autoencoder is the shipped demo's, frozen. The text tower reads the real tokenizer's tokens and is
           trained from scratch with the UNet: its words get the meanings that the pictures need. It has token and
           position embeddings and a norm, but no block (what `heads` and `mlp_dim` say is not used): a small causal
           block copies the colour, which matters most to the loss, into nearly every later token, and the words for
           shapes and directions are lost beside it (docs/text_to_video.md).
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
        attention=(False, True, True),
        head_dim=32,
        context_dim=64,
        vector_dim=0,
        norm_groups=8,
        temporal=False,
    ),
    vae=VAEConfig(channels=(16, 16, 32), num_res_blocks=1, latent_channels=8, norm_groups=4),
    image_encoder=None,
    text_encoder=CLIPTextConfig(
        width=64, layers=1, heads=2, mlp_dim=128, context_length=14, last_block=False, projection_dim=None
    ),
    task="text_to_image",
    scalars=(),
    defaults=SamplingDefaults(
        frames=1,
        height=64,
        width=64,
        steps=25,
        guidance=(3.0, 3.0),
        guidance_shape="constant",
        sigma_max=40.0,
    ),
)


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_text_to_image"),
        init_from=str(DEMO_CHECKPOINT),
        init=Init(new=("unet.*", "text_encoder.*"), dropped=("unet.*", "image_encoder.*")),
        model=MODEL,
        data=DataConfig(
            train=Path("data/captioned_pictures/train"),
            validation=Path("data/captioned_pictures/validation"),
            sampling=ClipSampling(frames=1, captions=True),
            sprites=16384,
            world=World(
                frames=1,
                sprites=(1, 1),
                radius=(0.2, 0.28),
                spread=0.08,
                cameras=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
                ground_contrast=0.0,
            ),
            in_memory=True,
        ),
        unet=DiffusionStage(
            part="with_text",
            steps=6000,
            batch=16,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=0.3, std=1.4),
            drop=TEXT_DROP,
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
