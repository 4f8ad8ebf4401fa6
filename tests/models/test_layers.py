"""Embeddings against published numbers, and resampling, temporal convolution and blending against definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from svdjax.models import layers
from svdjax.models.layers import Downsample, TemporalConv, Upsample, alpha_blend, sinusoidal_embedding


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("value", "cos", "sin"),
    [
        (6.0, (0.96017, 0.765001, 0.46479), (-0.279415, -0.644029, -0.885421)),
        (127.0, (0.232359, 0.364341, -0.999764), (0.97263, -0.931266, -0.021724)),
    ],
)
def test_sinusoids_are_cosines_then_sines(value, cos, sin):
    out = sinusoidal_embedding(jnp.array([value]), 256)[0]
    np.testing.assert_allclose(out[:3], cos, atol=2e-5)
    np.testing.assert_allclose(out[128:131], sin, atol=2e-5)


def test_sinusoids_keep_float64_and_never_go_below_float32(x64):
    exact = sinusoidal_embedding(jnp.array([981.0], jnp.float64), 8)
    powers = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(exact[0], np.concatenate([np.cos(981 * powers), np.sin(981 * powers)]), atol=1e-12)
    assert sinusoidal_embedding(jnp.array([981.0], jnp.bfloat16), 8).dtype == jnp.float32


@pytest.mark.parametrize("form", [layers._conv3d, layers._conv2d])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_both_forms_of_the_temporal_convolution_are_the_sum_over_neighbours(form, frames):
    x, kernel = np.asarray(normal(0, 2, frames, 3, 2, 4)), np.asarray(normal(1, 3, 1, 1, 4, 5))
    expected = np.zeros((2, frames, 3, 2, 5))
    for t in range(frames):
        for i in range(3):
            if 0 <= t + i - 1 < frames:
                expected[:, t] += x[:, t + i - 1] @ kernel[i, 0, 0]
    np.testing.assert_allclose(form(jnp.asarray(x), jnp.asarray(kernel), 1), expected, atol=1e-5)


@pytest.mark.parametrize("pad", [0, 1])
def test_both_forms_of_the_temporal_convolution_have_the_same_gradients(pad):
    x, kernel = normal(0, 2, 5, 3, 2, 4), normal(1, 3, 1, 1, 4, 5)
    got, want = (
        jax.grad(lambda *inputs, form=form: jnp.sum(form(*inputs, pad) ** 3), argnums=(0, 1))(x, kernel)
        for form in (layers._conv2d, layers._conv3d)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), got, want)


def test_temporal_convolution_without_padding_leaves_out_both_ends():
    conv, x = TemporalConv(4, 4, rngs=nnx.Rngs(0)), normal(2, 1, 6, 2, 2, 4)
    conv.kernel[...] = normal(3, 3, 1, 1, 4, 4)
    np.testing.assert_allclose(conv(x, padded=False), conv(x)[:, 1:-1], atol=1e-6)


def test_a_new_temporal_convolution_sees_only_its_own_frame():
    conv, x = TemporalConv(4, 4, rngs=nnx.Rngs(0)), normal(2, 1, 6, 2, 2, 4)
    np.testing.assert_allclose(conv(x[:, 2:3]), conv(x)[:, 2:3], atol=1e-6)
    assert jnp.abs(conv(x)).max() > 0.1


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_downsampling_equals_a_stride_2_convolution_padded_on_both_sides(size):
    down, x = Downsample(4, rngs=nnx.Rngs(0)), np.array(normal(3, 2, *size, 4))
    kernel = torch.from_numpy(np.array(down.conv.kernel[...]).transpose(3, 2, 0, 1))
    expected = torch.nn.functional.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), kernel, stride=2, padding=1)
    np.testing.assert_allclose(down(jnp.asarray(x)), expected.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 10), (7, 10), (7, 9)])
def test_upsampling_equals_nearest_interpolation_to_the_size_wanted(size):
    up, x = Upsample(4, rngs=nnx.Rngs(0)), np.array(normal(4, 2, 4, 5, 4))
    kernel = torch.from_numpy(np.array(up.conv.kernel[...]).transpose(3, 2, 0, 1))
    larger = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), size=size, mode="nearest")
    expected = torch.nn.functional.conv2d(larger, kernel, padding=1)
    np.testing.assert_allclose(up(jnp.asarray(x), size), expected.permute(0, 2, 3, 1), atol=1e-5)


def test_blend_weighs_the_first_stream_by_the_sigmoid_except_where_it_is_kept():
    first, second = jnp.full((2, 3), 10.0), jnp.full((2, 3), 20.0)
    blend = alpha_blend(jnp.array([0.5]), first, second)
    np.testing.assert_allclose(blend, 10 * 0.622459 + 20 * (1 - 0.622459), rtol=1e-5)
    kept = alpha_blend(jnp.array([0.5]), first, second, jnp.array([[True], [False]]))
    np.testing.assert_array_equal(kept[0], first[0])
    np.testing.assert_array_equal(kept[1], blend[1])
