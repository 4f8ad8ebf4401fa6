"""The CLIP towers' sizes, what each output may depend on, and which calls are refused."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, cast_floating, flat_params, load_flat, param_count

VISION = replace(CLIPVisionConfig.tiny(), layers=2)
TEXT = replace(CLIPTextConfig.tiny(), vocab_size=100, layers=3)


@cache
def tower_of(make, config):
    """Random weights scaled by fan-in, drawn by NumPy: compiling JAX's initialisers takes longer than the tests."""
    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in flat_params(abstract(make, config)).items()}
    flat = {
        path: rng.normal(size=shape).astype(np.float32) / np.sqrt(max(1, np.prod(shape[:-1])))
        for path, shape in shapes.items()
    }
    return load_flat(abstract(make, config), flat, what="test")


def run(tower, x, **options):
    """The compiled tower: one compilation costs less than that of every operation by itself."""
    return jax.jit(partial(tower, **options))(jnp.asarray(x))


def tokens(seed=0, length=77):
    return np.random.default_rng(seed).integers(0, 100, (2, length)).astype(np.int32)


@pytest.mark.parametrize(
    ("make", "config", "count"),
    [
        (CLIPVision, CLIPVisionConfig.vit_h(), 632_076_800),
        (CLIPVision, CLIPVisionConfig(leftover_text=(49408, 77, 1024)), 683_800_065),
        (CLIPText, CLIPTextConfig.vit_h(), 354_032_641),
        (CLIPText, CLIPTextConfig.sd21_diffusers(), 354_032_641 - 1_048_577 - 12_596_224),
    ],
)
def test_parameter_counts(make, config, count):
    assert param_count(abstract(make, config)) == count


def test_image_tower_embeds_each_picture_by_itself():
    tower = tower_of(CLIPVision, VISION)
    images = jax.random.normal(jax.random.key(1), (3, 224, 224, 3))
    together = run(tower, images)
    assert together.shape == (3, 64)
    np.testing.assert_allclose(together[1:2], run(tower, images[1:2]), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_image_tower_sees_every_patch_and_where_it_is():
    tower = tower_of(CLIPVision, VISION)
    image = jax.random.normal(jax.random.key(1), (1, 224, 224, 3))
    gradient = jax.jit(jax.grad(lambda x: (tower(x) ** 2).sum()))(image)
    assert float(jnp.abs(gradient).reshape(8, 28, 8, 28, 3).max(axis=(1, 3, 4)).min()) > 0
    moved = jnp.roll(image, 28, axis=1)
    assert np.abs(run(tower, moved) - run(tower, image)).max() > 1e-3


@pytest.mark.parametrize("layer", ["penultimate", "last"])
def test_text_tower_is_causal(layer):
    tower = tower_of(CLIPText, TEXT)
    first, second = tokens(), tokens()
    second[:, 40] = (second[:, 40] + 1) % 100
    a, b = run(tower, np.stack([first, second]).reshape(4, 77), layer=layer).reshape(2, 2, 77, -1)
    np.testing.assert_array_equal(a[:, :40], b[:, :40])
    assert np.abs(a[:, 40:] - b[:, 40:]).max(axis=-1).min() > 1e-6


def test_shorter_rows_give_the_same_prefix():
    tower = tower_of(CLIPText, TEXT)
    np.testing.assert_allclose(run(tower, tokens()[:, :9]), run(tower, tokens())[:, :9], atol=1e-5)


def test_penultimate_needs_no_last_block():
    whole = tower_of(CLIPText, TEXT)
    config = replace(TEXT, last_block=False, projection_dim=None)
    kept = flat_params(abstract(CLIPText, config))
    flat = {path: value for path, value in flat_params(whole).items() if path in kept}
    shorter = load_flat(abstract(CLIPText, config), flat, what="test")
    penultimate = run(whole, tokens())
    np.testing.assert_allclose(run(shorter, tokens()), penultimate, atol=1e-6)
    assert np.abs(run(whole, tokens(), layer="last") - penultimate).max() > 0.1
    with pytest.raises(UserError, match="leaves out the text tower's last block"):
        shorter(tokens(), layer="last")


def test_rows_over_the_context_length_are_refused():
    tower = abstract(CLIPText, TEXT)
    with pytest.raises(UserError, match="at most 77 tokens, not 78"):
        tower(tokens(length=78))


@pytest.mark.parametrize(
    ("make", "config", "x"),
    [
        (CLIPVision, VISION, np.ones((1, 224, 224, 3), np.float32)),
        (CLIPText, TEXT, tokens()),
    ],
)
def test_bfloat16_parameters_give_bfloat16_near_float32(make, config, x):
    tower = tower_of(make, config)
    exact = run(tower, x)
    flat = cast_floating(flat_params(tower), jnp.dtype("bfloat16"))
    rounded = run(load_flat(abstract(make, config), flat, what="test"), x)
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(rounded.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()
