"""Small diffusers pipelines with random weights, written as folders: stand-ins for a released checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.parity.reference import randomise

# These networks are too small to share: with more threads most of the time goes into waiting for each other.
torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of a reduced pipeline. At least 64 channels: with 32, a group norm hides every bias before it."""

    unet_channels: tuple[int, ...] = (64, 128)
    unet_blocks: int = 1
    head_dim: int = 32
    vae_channels: tuple[int, ...] = (64, 64)
    vae_blocks: int = 2
    clip_width: int = 64
    clip_layers: int = 2
    clip_heads: int = 4
    patch: int = 28
    context: int = 48
    scalar_width: int = 32
    frames: int = 3


# What the released scheduler_config.json says; the schedule is Karras' from 700 to 0.002.
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def tiny_unet(sizes: TinySizes) -> UNetSpatioTemporalConditionModel:
    """A video UNet with attention on every level but the deepest."""
    levels = len(sizes.unet_channels)
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=sizes.unet_channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * (levels - 1) + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * (levels - 1),
        layers_per_block=sizes.unet_blocks,
        num_attention_heads=tuple(channels // sizes.head_dim for channels in sizes.unet_channels),
        cross_attention_dim=sizes.context,
        addition_time_embed_dim=sizes.scalar_width,
        projection_class_embeddings_input_dim=3 * sizes.scalar_width,
        num_frames=sizes.frames,
    )


def tiny_vae(sizes: TinySizes) -> AutoencoderKLTemporalDecoder:
    """A KL autoencoder with the temporal decoder."""
    return AutoencoderKLTemporalDecoder(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
        layers_per_block=sizes.vae_blocks,
    )


def tiny_clip(sizes: TinySizes) -> CLIPVisionModelWithProjection:
    """A CLIP image tower with exact GELU."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=sizes.clip_width,
            intermediate_size=2 * sizes.clip_width,
            num_hidden_layers=sizes.clip_layers,
            num_attention_heads=sizes.clip_heads,
            patch_size=sizes.patch,
            image_size=224,
            projection_dim=sizes.context,
            hidden_act="gelu",
        )
    )


def tiny_pipeline(seed: int, sizes: TinySizes | None = None) -> StableVideoDiffusionPipeline:
    """A whole image-to-video pipeline; no parameter is zero or one."""
    sizes = sizes or TinySizes()
    return StableVideoDiffusionPipeline(
        vae=randomise(tiny_vae(sizes), seed),
        image_encoder=randomise(tiny_clip(sizes), seed + 1),
        unet=randomise(tiny_unet(sizes), seed + 2),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )


def write_tiny_pipeline(folder: Path, seed: int, sizes: TinySizes | None = None) -> Path:
    """Write :func:`tiny_pipeline` as a diffusers folder of float32 safetensors."""
    tiny_pipeline(seed, sizes).save_pretrained(folder)
    return folder
