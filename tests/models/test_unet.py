"""The UNet's sizes, its image mode, rematerialisation, precisions and errors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.params import abstract, cast_floating, flat_params, load_flat, param_count
from svdjax.models.remat import BLOCKS
from svdjax.models.unet import UNet, UNetConfig

SMALL = UNetConfig(
    channels=(64, 64), num_res_blocks=1, attention=(True, False), head_dim=32, context_dim=16, vector_dim=24
)


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (UNetConfig.svd(), 1_524_623_082, 1428),
        (UNetConfig.text_to_video(), 1_524_283_882, 1428),
        (UNetConfig.text_to_video(vector_dim=0), 1_521_987_562, 1424),
        (UNetConfig.interpolation(), 1_524_298_282, 1428),
        (UNetConfig.sv3d_u(), 1_523_967_722, 1428),
        (UNetConfig.sv3d_p(), 1_525_278_442, 1428),
        (UNetConfig.sd21(), 865_910_724, 686),
    ],
)
def test_presets_have_the_published_sizes(config, parameters, tensors):
    unet = abstract(UNet, config)
    assert param_count(unet) == parameters
    assert len(flat_params(unet)) == tensors


def test_temporal_layers_hold_the_published_656_million_parameters():
    paths = flat_params(abstract(UNet, UNetConfig.svd()))
    temporal = {
        path: value
        for path, value in paths.items()
        if any(part in path for part in (".temporal.", ".frame_embed.", ".mix_factor"))
    }
    assert len(temporal) == 738
    assert sum(int(np.prod(value.shape)) for value in temporal.values()) == 656_076_838


def random_unet(config: UNetConfig, seed: int = 0) -> UNet:
    """No parameter is zero, so every branch is alive."""
    draw = np.random.default_rng(seed)
    shapes = flat_params(abstract(UNet, config))
    flat = {
        path: (0.7 * draw.normal(size=x.shape) / np.sqrt(max(1, np.prod(x.shape[:-1])))).astype(np.float32)
        + np.float32(path.endswith("scale"))
        for path, x in sorted(shapes.items())
    }
    return load_flat(abstract(UNet, config), flat, what="random")


@pytest.fixture(scope="module")
def unet():
    return random_unet(SMALL)


@pytest.fixture(scope="module")
def inputs():
    """Two videos of three frames; odd sizes. One set of shapes, so that one compilation serves all tests."""
    draw = np.random.default_rng(1)
    shapes = {"x": (2, 3, 7, 6, 8), "c_noise": (2,), "context": (2, 4, 16), "vector": (2, 3, 24)}
    inputs = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return inputs | {"image_only": jnp.zeros((2, 3), bool), "temporal_context": inputs["context"]}


@jax.jit
def call(unet, inputs):
    return unet(**inputs)


def test_videos_of_a_batch_do_not_touch_each_other(unet, inputs):
    changed = {name: x.at[0].set(~x[0] if x.dtype == bool else x[0] + 1) for name, x in inputs.items()}
    before, after = call(unet, inputs), call(unet, changed)
    assert before.shape == (2, 3, 7, 6, 4)
    assert np.abs(after[0] - before[0]).max() > 1e-2
    np.testing.assert_allclose(after[1], before[1], atol=1e-6)


def test_image_only_equals_the_image_model(unet, inputs):
    """The image model of the same config, given the video model's spatial weights."""
    config = replace(SMALL, temporal=False)
    every = flat_params(unet)
    spatial = {path: every[path] for path in flat_params(abstract(UNet, config))}
    image = load_flat(abstract(UNet, config), spatial, what="image")
    images = call(unet, inputs | {"image_only": jnp.ones((2, 3), bool)})
    np.testing.assert_allclose(images, call(image, inputs), atol=1e-5)
    assert np.abs(images - call(unet, inputs)).max() > 1e-2


def test_temporal_context_of_its_own_changes_the_video_but_no_image(unet, inputs):
    other = {"temporal_context": inputs["context"][::-1] + 1}
    assert np.abs(call(unet, inputs | other) - call(unet, inputs)).max() > 1e-3
    images = inputs | {"image_only": jnp.ones((2, 3), bool)}
    np.testing.assert_allclose(call(unet, images | other), call(unet, images), atol=1e-6)


def test_bfloat16_parameters_give_a_bfloat16_result_near_float32(unet, inputs):
    half = call(cast_floating(unet, jnp.bfloat16), cast_floating(inputs, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    full = call(unet, inputs)
    assert np.abs(half.astype(jnp.float32) - full).max() < 0.05 * np.abs(full).max()


ONE_LEVEL = replace(SMALL, channels=(64,), attention=(True,))


def loss(unet, inputs):
    return (unet(**inputs) ** 2).sum()


def test_rematerialisation_keeps_few_activations(inputs):
    """Bytes that the forward pass leaves for the backward pass, at a size where they dwarf the parameters."""

    def kept_bytes(remat):
        unet = abstract(UNet, replace(ONE_LEVEL, remat=remat))
        large = inputs | {"x": jnp.zeros((2, 3, 32, 32, 8))}
        residuals = jax.eval_shape(lambda unet: jax.vjp(lambda unet: loss(unet, large), unet)[1], unet)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    assert kept_bytes(BLOCKS) < 0.25 * kept_bytes(())


def test_offloaded_blocks_keep_their_inputs_on_the_host_and_give_the_same_gradient(inputs):
    """One level has 9 blocks, and the two on the way up have two inputs each."""
    gradients = {}
    for remat in ((), (*BLOCKS, "offload")):
        graph, state = nnx.split(random_unet(replace(ONE_LEVEL, remat=remat)))
        gradients[remat] = jax.grad(lambda state, graph=graph: loss(nnx.merge(graph, state), inputs))
        on_host = str(jax.make_jaxpr(gradients[remat])(state)).count("<host>[")
        assert on_host == (2 * 11 if remat else 0)  # put there, and taken from there
    plain, offloaded = (jax.jit(gradient)(state) for gradient in gradients.values())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(offloaded), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_missing_and_unwanted_vectors_are_user_errors(unet, inputs):
    with pytest.raises(UserError, match="a vector of width 24"):
        unet(**(inputs | {"vector": None}))
    with pytest.raises(UserError, match="no vector"):
        abstract(UNet, replace(SMALL, vector_dim=0))(**inputs)


def test_sizes_that_do_not_fit_together_are_user_errors():
    with pytest.raises(UserError, match="one entry per level"):
        UNetConfig(channels=(64, 128))
    with pytest.raises(UserError, match="head_dim 64"):
        replace(SMALL, channels=(96, 128), head_dim=64)
    with pytest.raises(UserError, match="48 channels do not divide into norm_groups 32"):
        replace(SMALL, channels=(64, 48), attention=(True, False), head_dim=16)
