"""The demo of text to video: temporal layers join the demo's image model, which knows words already.

Command:   svdjax train configs/demo_text_to_video.py          (after configs/demo_text_to_image.py)
Sampling:  svdjax sample --checkpoint runs/demo_text_to_video/model.safetensors
               --prompt "a red square moves left while the camera stays still"
Hardware:  any computer; a GPU is used if JAX finds one. 83 minutes on one core of an EPYC beside other work.
Measured:  python -m benchmarks.text_to_video runs/demo_text_to_video/model.safetensors (docs/text_to_video.md)
Data:      the pictures of the first stage, moving: in one of four directions (a few stay still), before a camera at
           rest. Speeds differ, and the motion bucket tells them.
Ours:      as in the paper's stage 2a, temporal layers and what tells frame rate and motion are new. The temporal
           residual blocks and the latter add nothing at first; the temporal attention starts at random. Everything
           trains, the text tower, too: of directions, pictures have shown it no more than where things start.
"""

from pathlib import Path

from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
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
        vector_dim=128,
        norm_groups=8,
    ),
    vae=VAEConfig(channels=(16, 16, 32), num_res_blocks=1, latent_channels=8, norm_groups=4),
    image_encoder=None,
    text_encoder=CLIPTextConfig(
        width=64, layers=1, heads=2, mlp_dim=128, context_length=14, last_block=False, projection_dim=None
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


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_text_to_video"),
        init_from="./runs/demo_text_to_image/model.safetensors",
        init=Init(
            new=("unet.*.temporal.*", "unet.*.frame_embed.*", "unet.*.mix_factor", "unet.vector_embed.linear1.*"),
            zero=("unet.vector_embed.linear2.*",),
        ),
        model=MODEL,
        data=DataConfig(
            train=Path("data/captioned_clips/train"),
            validation=Path("data/captioned_clips/validation"),
            sampling=ClipSampling(captions=True),
            sprites=4096,
            world=World(
                sprites=(1, 1),
                radius=(0.2, 0.28),
                spread=0.08,
                cameras=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
                sprite_step=0.045,
                ground_contrast=0.0,
            ),
            in_memory=True,
        ),
        unet=DiffusionStage(
            part="with_text",
            steps=6000,
            batch=4,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=100, final=0.05),
            sigma=LogNormal(mean=1.0, std=1.5),
            drop=TEXT_DROP,
            ema_decay=0.997,
            cache_latents=True,
            validate_every=250,
            checkpoint_every=250,
        ),
    )
