"""Decoding in chunks of frames: the exact mode equals the whole, the reference mode has seams."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.errors import UserError
from svdjax.models.params import abstract, cast_floating
from svdjax.models.vae import VAE, VAEConfig
from svdjax.sampling.decode import convolution_reach, decode_frames, default_chunk
from tests.weights import random_model

TINY = VAEConfig(channels=(32, 64), num_res_blocks=1)
decoded = partial(jax.jit, static_argnames=("chunk", "mode"))(decode_frames)


def random_vae(config: VAEConfig, dtype: jnp.dtype) -> VAE:
    return cast_floating(random_model(VAE, config), dtype)


def latents(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape, dtype)


def test_exact_chunks_equal_the_whole(x64):
    vae, z = random_vae(TINY, jnp.float64), latents(2, 5, 4, 6, 4, dtype=jnp.float64)
    whole = decoded(vae, z, chunk=None)
    np.testing.assert_allclose(decoded(vae, z, chunk=2), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_chunks_keep_the_dtype_and_shape(mode):
    vae = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), abstract(VAE, TINY))
    z = jax.ShapeDtypeStruct((1, 5, 4, 6, 4), jnp.bfloat16)
    frames = jax.eval_shape(partial(decode_frames, chunk=2, mode=mode), vae, z)
    assert (frames.shape, frames.dtype) == ((1, 5, 8, 12, 3), jnp.bfloat16)


def test_reference_chunks_are_videos_of_their_own(x64):
    vae, z = random_vae(TINY, jnp.float64), latents(2, 6, 4, 6, 4, dtype=jnp.float64)
    got = decoded(vae, z, chunk=3, mode="reference")
    want = [decoded(vae, part, chunk=None) for part in (z[:, :3], z[:, 3:])]
    np.testing.assert_allclose(got, jnp.concatenate(want, axis=1), rtol=0, atol=1e-12)
    whole = decoded(vae, z, chunk=None)
    assert jnp.abs(got - whole).max() > 1e-2 * jnp.abs(whole).max()


def test_image_decoder_has_no_seams():
    vae = random_vae(dataclasses.replace(TINY, temporal_decoder=False, post_quant_conv=True), jnp.float32)
    z = latents(1, 5, 4, 4, 4)
    whole = decoded(vae, z, chunk=None)
    np.testing.assert_allclose(decoded(vae, z, chunk=2, mode="reference"), whole, rtol=0, atol=2e-5)


def test_exact_chunks_keep_two_feature_maps():
    vae = abstract(VAE, TINY)
    z = jax.ShapeDtypeStruct((1, 16, 16, 16, 4), jnp.float32)
    feature_map = 4 * 16 * 32 * 32 * TINY.channels[0]

    def temporaries(**options) -> float:
        return decoded.lower(vae, z, **options).compile().memory_analysis().temp_size_in_bytes / feature_map

    assert temporaries(chunk=1) < 2.6
    assert temporaries(chunk=None) > 4


def test_reach_of_the_convolutions():
    assert convolution_reach(VAEConfig.svd()) == 29
    assert convolution_reach(VAEConfig.sd21()) == 0


def test_chunk_must_be_positive():
    with pytest.raises(UserError, match="chunk = 0"):
        decode_frames(abstract(VAE, TINY), jnp.zeros((1, 3, 4, 4, 4)), chunk=0)


def test_only_large_videos_are_decoded_in_chunks_if_nobody_asks():
    assert default_chunk(1, 8, 16, 16) is None and default_chunk(1, 14, 32, 48) is None
    assert default_chunk(2, 14, 32, 48) == 7
    assert default_chunk(1, 14, 72, 128) == default_chunk(1, 25, 72, 128) == 2
    assert default_chunk(1, 2, 1000, 1000) == 1
