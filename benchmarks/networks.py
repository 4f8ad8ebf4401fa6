"""The same random weights in PyTorch and in JAX, for the benchmarks."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig as TorchCLIPConfig
from transformers import CLIPVisionModelWithProjection

from svdjax.conversion.clip import classic_keys, clip_vision_table
from svdjax.conversion.mapping import to_ours
from svdjax.conversion.unet import unet_table
from svdjax.conversion.vae import vae_table
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, load_flat
from svdjax.models.unet import UNet, UNetConfig
from svdjax.models.vae import VAE, VAEConfig

# SVD's networks with fewer channels, heads of 64 as in the original: everything fits in memory twice.
UNET = UNetConfig(channels=(128, 256, 512, 512), context_dim=1024, norm_eps="diffusers")
VAE_SIZES = VAEConfig(channels=(64, 128, 256, 256))
CLIP = CLIPVisionConfig(width=640, layers=16, heads=10, mlp_dim=2560)

Call = Callable[[], np.ndarray]


def _ours(make: type, config: object, table: list, module: torch.nn.Module) -> object:
    keys = module.state_dict()
    tensors = {name: keys[key].numpy() for name, key in _names(module, keys).items()}
    return load_flat(abstract(make, config), to_ours(table, tensors, what="the reference"), what="the reference")


def _names(module: torch.nn.Module, keys: dict) -> dict[str, str]:
    if not isinstance(module, CLIPVisionModelWithProjection):
        return {key: key for key in keys}
    return {classic: key for key, classic in classic_keys(keys).items()}


def unet(frames: int, height: int, width: int, seed: int) -> tuple[Call, Callable, tuple]:
    """A call of PyTorch's UNet, our UNet as a function, and its inputs; one guided step: two videos."""
    torch.manual_seed(seed)
    theirs = UNetSpatioTemporalConditionModel(
        block_out_channels=UNET.channels,
        num_attention_heads=tuple(c // UNET.head_dim for c in UNET.channels),
        cross_attention_dim=UNET.context_dim,
    ).eval()
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, frames, height, width, 8)).astype(np.float32)
    context = rng.normal(size=(2, 1, UNET.context_dim)).astype(np.float32)
    ids = torch.tensor([[6.0, 127.0, 0.02]] * 2)
    folded = torch.from_numpy(x).permute(0, 1, 4, 2, 3).contiguous()

    def call() -> np.ndarray:
        out = theirs(folded, torch.tensor(0.5), torch.from_numpy(context), ids, return_dict=False)[0]
        return out.permute(0, 1, 3, 4, 2).numpy()

    from svdjax.tasks import embed_scalars

    values = {"fps": jnp.full(2, 6.0), "motion_bucket": jnp.full(2, 127.0), "noise_aug": jnp.full(2, 0.02)}
    scalars = tuple((name, 256) for name in values)
    vector = embed_scalars(scalars, values, frames)
    ours = _ours(UNet, UNET, unet_table(UNET, "diffusers"), theirs)
    return call, ours, (jnp.asarray(x), jnp.full(2, 0.5), jnp.asarray(context), vector)


def decoder(frames: int, height: int, width: int, seed: int) -> tuple[Call, Callable, tuple]:
    """PyTorch's temporal decoder, ours, and latents of ``frames`` frames."""
    torch.manual_seed(seed)
    theirs = AutoencoderKLTemporalDecoder(
        block_out_channels=VAE_SIZES.channels, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4
    ).eval()
    z = np.random.default_rng(seed).normal(size=(1, frames, height, width, 4)).astype(np.float32)
    folded = torch.from_numpy(z[0]).permute(0, 3, 1, 2).contiguous()

    def call() -> np.ndarray:
        return theirs.decode(folded, num_frames=frames).sample.permute(0, 2, 3, 1).numpy()[None]

    vae = _ours(VAE, VAE_SIZES, vae_table(VAE_SIZES, "diffusers"), theirs)
    return call, vae.decode, (jnp.asarray(z),)


def clip(images: int, seed: int) -> tuple[Call, Callable, tuple]:
    """PyTorch's CLIP image tower, ours, and normalised pictures."""
    torch.manual_seed(seed)
    sizes = TorchCLIPConfig(
        hidden_size=CLIP.width,
        intermediate_size=CLIP.mlp_dim,
        num_hidden_layers=CLIP.layers,
        num_attention_heads=CLIP.heads,
        patch_size=CLIP.patch_size,
        projection_dim=CLIP.projection_dim,
        hidden_act="gelu",
    )
    theirs = CLIPVisionModelWithProjection(sizes).eval()
    pixels = np.random.default_rng(seed).normal(size=(images, 224, 224, 3)).astype(np.float32)
    folded = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    tower = _ours(CLIPVision, CLIP, clip_vision_table(CLIP, "diffusers"), theirs)
    return lambda: theirs(folded).image_embeds.numpy(), tower, (jnp.asarray(pixels),)
