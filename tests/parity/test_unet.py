"""The UNet against diffusers and against recorded outputs of the original code."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open

from svdjax.conversion.mapping import to_ours
from svdjax.conversion.unet import unet_table
from svdjax.models.layers import sinusoidal_embedding
from svdjax.models.params import abstract, load_flat
from svdjax.models.unet import UNet, UNetConfig
from tests.parity.reference import float64_sinusoids, randomise, relative, tensors

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
VIDEO = UNetConfig(
    channels=(64, 128),
    num_res_blocks=1,
    attention=(True, False),
    head_dim=32,
    context_dim=48,
    vector_dim=96,
    norm_eps="diffusers",
)
IMAGE = replace(VIDEO, in_channels=4, vector_dim=0, temporal=False)
FOUR_LEVELS = replace(UNetConfig.tiny(), norm_eps="diffusers", num_res_blocks=2)


def video_reference(config: UNetConfig, seed: int) -> torch.nn.Module:
    attends = config.attention
    module = diffusers.UNetSpatioTemporalConditionModel(
        in_channels=config.in_channels,
        down_block_types=tuple(f"{'CrossAttn' * a}DownBlockSpatioTemporal" for a in attends),
        up_block_types=tuple(f"{'CrossAttn' * a}UpBlockSpatioTemporal" for a in reversed(attends)),
        block_out_channels=config.channels,
        addition_time_embed_dim=config.vector_dim // 3,
        projection_class_embeddings_input_dim=config.vector_dim,
        layers_per_block=config.num_res_blocks,
        cross_attention_dim=config.context_dim,
        num_attention_heads=tuple(c // config.head_dim for c in config.channels),
    )
    return randomise(module, seed)


def image_reference(config: UNetConfig, seed: int) -> torch.nn.Module:
    attends = config.attention
    module = diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=config.channels,
        layers_per_block=config.num_res_blocks,
        cross_attention_dim=config.context_dim,
        # diffusers' name for the number of heads
        attention_head_dim=tuple(c // config.head_dim for c in config.channels),
        use_linear_projection=True,
    )
    return randomise(module, seed)


def load(config: UNetConfig, reference: torch.nn.Module) -> UNet:
    """Our network with the reference's weights; fails unless every key and every path is used once."""
    flat = to_ours(unet_table(config, "diffusers"), tensors(reference), what="reference")
    return load_flat(abstract(UNet, config), flat, what="reference")


@jax.jit
def call(unet, *args):
    return unet(*args)


def video_outputs(config, seed, *, frames, size, tokens, dtype):
    """Two videos through both networks: (ours, theirs)."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(2, frames, *size, config.in_channels)).astype(dtype)
    context = draw.normal(size=(2, tokens, config.context_dim)).astype(dtype)
    c_noise = np.array([-1.3, 1.6], dtype)
    ids = np.array([[6.0, 127.0, 0.02], [11.0, 40.0, 0.3]], dtype)

    reference = video_reference(config, seed).to(torch.from_numpy(x).dtype)
    with torch.no_grad():
        theirs = reference(
            torch.from_numpy(x).permute(0, 1, 4, 2, 3),
            torch.from_numpy(c_noise),
            torch.from_numpy(context),
            torch.from_numpy(ids),
        ).sample.permute(0, 1, 3, 4, 2)

    vector = sinusoidal_embedding(jnp.asarray(ids), config.vector_dim // 3).reshape(2, 1, -1)
    vector = jnp.broadcast_to(vector, (2, frames, config.vector_dim))
    return call(load(config, reference), x, c_noise, context, vector), theirs


@pytest.mark.parametrize(
    ("seed", "tokens", "frames", "size"),
    [(1, 1, 3, (8, 12)), (2, 2, 1, (10, 6)), (3, 77, 4, (5, 7))],
)
def test_video_unet_equals_diffusers_in_float64(x64, seed, tokens, frames, size):
    """One image token, two images, text; many frames and one; sizes that do not halve evenly."""
    with float64_sinusoids():
        ours, theirs = video_outputs(VIDEO, seed, frames=frames, size=size, tokens=tokens, dtype=np.float64)
    assert ours.dtype == jnp.float64
    assert relative(ours, theirs) < 1e-9


def test_narrow_levels_have_32_groups_too(x64):
    narrow = replace(VIDEO, channels=(32, 96))
    with float64_sinusoids():
        ours, theirs = video_outputs(narrow, 4, frames=2, size=(4, 6), tokens=1, dtype=np.float64)
    assert relative(ours, theirs) < 1e-9


@pytest.mark.slow
def test_four_levels_of_odd_sizes_equal_diffusers_in_float64(x64):
    with float64_sinusoids():
        ours, theirs = video_outputs(FOUR_LEVELS, 5, frames=3, size=(9, 13), tokens=1, dtype=np.float64)
    assert relative(ours, theirs) < 1e-9


def test_video_unet_equals_diffusers_in_float32():
    ours, theirs = video_outputs(VIDEO, 7, frames=3, size=(8, 8), tokens=1, dtype=np.float32)
    assert ours.dtype == jnp.float32
    assert relative(ours, theirs) < 2e-5


@pytest.mark.parametrize("tokens", [1, 77])
def test_image_unet_equals_diffusers_in_float64(x64, tokens):
    draw = np.random.default_rng(tokens)
    x = draw.normal(size=(2, 8, 8, 4))
    context, timestep = draw.normal(size=(2, tokens, IMAGE.context_dim)), np.array([3.0, 981.0])
    reference = image_reference(IMAGE, tokens).double()
    with torch.no_grad(), float64_sinusoids():
        theirs = reference(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(timestep), torch.from_numpy(context)
        ).sample.permute(0, 2, 3, 1)
    ours = call(load(IMAGE, reference), x[:, None], timestep, context)
    assert relative(ours[:, 0], theirs) < 1e-9


@pytest.mark.parametrize(("case", "vector_dim"), [("sgm_i2v", 96), ("sgm_sv3d_p", 160)])
def test_unet_reproduces_the_original_code(case, vector_dim):
    """Recorded float32 outputs of the original, within ten times its own distance from float64."""
    if not GOLDENS.exists():
        pytest.skip(f"no recorded outputs at {GOLDENS}")
    floor = json.loads((GOLDENS / case / "case.json").read_text())["float32_noise_floor"]["unet/out"][0]
    config = replace(UNetConfig.tiny(), vector_dim=vector_dim)
    prefix = "model.diffusion_model."
    with safe_open(GOLDENS / case / "svd.safetensors", "np") as file:
        state = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    unet = load_flat(abstract(UNet, config), to_ours(unet_table(config, "sgm"), state, what=case), what=case)

    golden = np.load(GOLDENS / case / "golden" / "unet.npz")
    frames = int(golden["num_frames"])
    video = lambda x: x.reshape(-1, frames, *x.shape[1:])  # noqa: E731
    out = call(
        unet,
        video(golden["x"]).transpose(0, 1, 3, 4, 2),
        video(golden["timesteps"])[:, 0],
        video(golden["context"])[:, 0],
        video(golden["y"]),
    )
    assert relative(out, video(golden["out"]).transpose(0, 1, 3, 4, 2)) < 10 * floor
