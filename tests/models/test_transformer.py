"""The transformer starts as the identity; frames meet only in its temporal block, and know their place."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.models.transformer import FeedForward, Transformer

CHANNELS, TOKENS = 64, 48


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def block():
    """A transformer whose last projection is not zero."""
    block = Transformer(CHANNELS, groups=32, head_dim=32, context_dim=TOKENS, rngs=nnx.Rngs(0))
    block.proj_out.kernel[...] = normal(9, CHANNELS, CHANNELS) / 8
    return block


@pytest.fixture(scope="module")
def inputs():
    return normal(0, 2, 3, 4, 4, CHANNELS), normal(1, 2, 5, TOKENS)


def test_a_new_transformer_is_the_identity(inputs):
    x, context = inputs
    fresh = Transformer(CHANNELS, groups=32, head_dim=32, context_dim=TOKENS, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(fresh(x, context), x)


def test_feed_forward_gates_its_first_half_by_the_exact_gelu_of_its_second():
    ff, x = FeedForward(8, rngs=nnx.Rngs(0)), normal(2, 5, 8)
    inner = np.asarray(x @ ff.proj_in.kernel[...])
    erf = np.vectorize(math.erf)
    gated = inner[:, :32] * inner[:, 32:] * 0.5 * (1 + erf(inner[:, 32:] / np.sqrt(2)))
    np.testing.assert_allclose(ff(x), gated @ ff.proj_out.kernel[...], atol=1e-5)


def test_frames_meet_unless_they_are_images(block, inputs):
    x, context = inputs
    changed = x.at[0, 2].add(normal(3, 4, 4, CHANNELS))
    difference = jnp.abs(block(x, context) - block(changed, context)).max((2, 3, 4))
    assert (difference[0] > 1e-3).all()
    np.testing.assert_array_equal(difference[1], 0)  # the other video
    images = jnp.ones((2, 3), bool)
    difference = jnp.abs(block(x, context, image_only=images) - block(changed, context, image_only=images)).max(
        (2, 3, 4)
    )
    np.testing.assert_array_equal(difference[0, :2], 0)


def test_frames_know_their_place(block, inputs):
    """Reversing the input reverses the output of images, but not of a video."""
    x, context = inputs
    reverse = lambda y: y[:, ::-1]  # noqa: E731
    images = jnp.ones((2, 3), bool)
    np.testing.assert_allclose(
        block(reverse(x), context, image_only=images), reverse(block(x, context, image_only=images)), atol=1e-5
    )
    assert jnp.abs(block(reverse(x), context) - reverse(block(x, context))).max() > 1e-3


def test_temporal_context_reaches_the_temporal_block_alone(block, inputs):
    x, context = inputs
    other = normal(4, 2, 7, TOKENS)
    plain = block(x, context)
    np.testing.assert_array_equal(block(x, context, context), plain)
    assert jnp.abs(block(x, context, other) - plain).max() > 1e-3
    images = jnp.ones((2, 3), bool)
    np.testing.assert_array_equal(block(x, context, other, images), block(x, context, None, images))
