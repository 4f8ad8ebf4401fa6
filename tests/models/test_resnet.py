"""Residual blocks: where their statistics run, how they start, and which stream alpha weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.models.resnet import ResBlock, VideoResBlock

CHANNELS = 64


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def random_block(**options) -> VideoResBlock:
    """No convolution starts at zero, so that both streams say something."""
    return VideoResBlock(CHANNELS, CHANNELS, groups=32, zero_init=(False, False), rngs=nnx.Rngs(1), **options)


def test_block_with_a_zero_convolution_starts_as_its_shortcut():
    x = normal(0, 2, 4, 4, CHANNELS)
    block = ResBlock(CHANNELS, CHANNELS, groups=32, zero_init=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(block(x), x)
    wider = ResBlock(CHANNELS, 2 * CHANNELS, groups=32, zero_init=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(wider(x), x @ wider.shortcut.kernel[0, 0], atol=1e-5)


def test_spatial_statistics_are_per_image_and_temporal_ones_per_video():
    x = normal(0, 1, 3, 4, 4, CHANNELS)
    changed = x.at[0, 2].multiply(5.0)
    spatial = ResBlock(CHANNELS, CHANNELS, groups=32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(spatial(x[0])[:2], spatial(changed[0])[:2], atol=1e-6)
    temporal = ResBlock(CHANNELS, CHANNELS, groups=32, temporal=True, rngs=nnx.Rngs(0))
    # Frame 0 is out of reach of frame 2 for one convolution, but shares its statistics.
    assert jnp.abs(temporal.norm1(x) - temporal.norm1(changed))[0, 0].max() > 0.1


def test_time_embedding_is_per_frame():
    block = random_block(emb_dim=8)
    x, emb = normal(0, 1, 3, 4, 4, CHANNELS), normal(1, 1, 3, 8)
    keep = jnp.ones((1, 3), bool)
    difference = jnp.abs(block(x, emb, keep) - block(x, emb.at[0, 1].add(1.0), keep)).max((0, 2, 3, 4))
    assert difference[1] > 1e-3
    np.testing.assert_array_equal(difference[jnp.array([0, 2])], 0)


@pytest.mark.parametrize("alpha_of", ["spatial", "temporal"])
def test_alpha_weighs_the_named_stream(alpha_of):
    block, x = random_block(alpha_of=alpha_of), normal(0, 1, 3, 4, 4, CHANNELS)
    spatial = block.spatial(x[0])[None]
    streams = {"spatial": spatial, "temporal": block.temporal(spatial)}
    block.mix_factor[...] = jnp.array([50.0])
    np.testing.assert_allclose(block(x), streams[alpha_of], atol=1e-5)
    assert jnp.abs(streams["spatial"] - streams["temporal"]).max() > 0.1


def test_image_only_frames_are_those_of_the_image_model():
    video, x = random_block(), normal(0, 2, 3, 4, 4, CHANNELS)
    image = random_block(temporal=False)
    nnx.update(image.spatial, nnx.state(video.spatial))
    keep = jnp.array([[True, False, True], [False, True, True]])
    close = jnp.abs(video(x, None, keep) - image(x)).max((2, 3, 4)) < 1e-6
    np.testing.assert_array_equal(close, keep)
