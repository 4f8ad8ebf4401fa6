"""Reduced models of every kind with random weights, and the original files that they would come from."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from svdjax.conversion.checkpoint import Checkpoint, Options, shapes_of
from svdjax.conversion.mapping import to_theirs
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.sgm import Layout, extra_keys, write_sgm
from svdjax.conversion.tensors import Tensor
from svdjax.conversion.vae import vae_table
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVDConfig
from svdjax.models.vae import VAE

OPTIONS = Options(head_dim=32, clip_heads=4)
KINDS = ("svd", "image_decoder", "sv3d_u", "sv3d_p", "sd21", "text_to_video")


def tiny_config(kind: str) -> SVDConfig:
    """A released model with few, thin layers."""
    config = SVDConfig.svd() if kind == "image_decoder" else getattr(SVDConfig, kind)()
    scalars = tuple((name, width // 8) for name, width in config.scalars)
    sizes = {
        "channels": (32, 64),
        "num_res_blocks": 1,
        "attention": (True, False),
        "head_dim": 32,
        "context_dim": 48,
    }
    unet = replace(config.unet, **sizes, vector_dim=sum(width for _, width in scalars))
    vae = replace(config.vae, channels=(32, 64), num_res_blocks=2)
    vae = replace(vae, temporal_decoder=False) if kind == "image_decoder" else vae
    vision = CLIPVisionConfig(width=64, layers=2, heads=4, mlp_dim=96, patch_size=56, projection_dim=48)
    text = CLIPTextConfig(
        width=64, layers=3, heads=4, mlp_dim=96, context_length=9, vocab_size=40, projection_dim=48
    )
    return replace(
        config,
        unet=unet,
        vae=vae,
        scalars=scalars,
        image_encoder=vision if config.image_encoder else None,
        text_encoder=text if config.text_encoder else None,
    )


def random_tensors(shapes: dict, seed: int, dtype: object = np.float32) -> dict[str, Tensor]:
    """Normal numbers in the given shapes."""
    rng = np.random.default_rng(seed)
    draw = {name: rng.standard_normal(shape.shape).astype(dtype) for name, shape in shapes.items()}
    return {name: Tensor.of(name, np.asarray(array)) for name, array in draw.items()}


def tiny_checkpoint(kind: str, seed: int, dtype: object = np.float32) -> Checkpoint:
    """A model in memory; extras and all for kinds whose original files have them."""
    config = tiny_config(kind)
    params = random_tensors(flat_params(shapes_of(config)), seed, dtype)
    return Checkpoint(what=kind, config=config, params=params, extras=_extras(config, seed + 1, dtype))


def _extras(config: SVDConfig, seed: int, dtype: object) -> dict[str, Tensor]:
    layout = Layout.of(config)
    vae = replace(config.vae, temporal_decoder=False, post_quant_conv=True)
    weights = random_tensors(flat_params(abstract(VAE, vae)), seed, dtype)
    image_vae = to_theirs(vae_table(vae, "sgm"), weights, what="vae")
    unused = jax.ShapeDtypeStruct((5, 3), np.float32)
    found = {}
    for number, group in enumerate(extra_keys(config, layout)):
        names = {key: key.removeprefix(layout.encoder).removeprefix("first_stage_model.") for key in group}
        shapes = {key: image_vae.get(name, unused) for key, name in names.items()}
        found |= random_tensors(shapes, seed + number, dtype)
    return found


def write_original(path: Path, kind: str, seed: int, dtype: object = np.float32) -> Path:
    """A single file as the original code would have saved it: without our configuration in its metadata."""
    write_safetensors(path, write_sgm(tiny_checkpoint(kind, seed, dtype))[0], {})
    return path


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """The same keys, dtypes, shapes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        x, y = a[name].load(), b[name].load()
        assert (x.dtype, x.shape) == (y.dtype, y.shape) == (b[name].dtype, b[name].shape), name
        assert np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes(), name
