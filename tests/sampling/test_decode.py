"""Decoding in chunks of frames: the exact mode equals the whole, the reference mode has seams."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.vae import VAE, VAEConfig
from svdjax.sampling.decode import convolution_reach, decode_frames

TINY = VAEConfig(channels=(32, 64), num_res_blocks=1)
FRAMES = 7


def random_vae(config: VAEConfig) -> VAE:
    rng = np.random.default_rng(0)
    vae = abstract(VAE, config)
    flat = {
        path: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1])) + path.endswith("scale"))
        for path, x in flat_params(vae).items()
    }
    return load_flat(vae, flat, what="random")


@pytest.fixture
def case(x64):
    vae = random_vae(TINY)
    z = jax.random.normal(jax.random.key(0), (2, FRAMES, 4, 6, 4))
    return vae, z, decoded(vae, z, chunk=None)


def decoded(vae, z, **options):
    return jax.jit(lambda z: decode_frames(vae, z, **options))(z)


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_exact_chunks_equal_the_whole(case, chunk):
    vae, z, whole = case
    np.testing.assert_allclose(decoded(vae, z, chunk=chunk), whole, rtol=0, atol=1e-12)


def test_exact_chunks_in_float32():
    vae = random_vae(TINY)
    z = jax.random.normal(jax.random.key(0), (1, 5, 4, 6, 4))
    np.testing.assert_allclose(decoded(vae, z, chunk=2), decoded(vae, z, chunk=None), rtol=0, atol=2e-5)


def test_exact_chunks_in_bfloat16_stay_bfloat16():
    vae = random_vae(TINY)
    flat = {path: x.astype(jnp.bfloat16) for path, x in flat_params(vae).items()}
    low = load_flat(vae, flat, what="bfloat16")
    z = jax.random.normal(jax.random.key(0), (1, 5, 4, 6, 4))
    want, got = (decoded(low, z.astype(jnp.bfloat16), chunk=chunk) for chunk in (None, 2))
    assert got.dtype == want.dtype == jnp.bfloat16
    error = jnp.abs(got.astype(jnp.float32) - want.astype(jnp.float32)).max()
    assert error < 0.05 * jnp.abs(want.astype(jnp.float32)).max()


def test_reference_chunks_are_videos_of_their_own(case):
    vae, z, whole = case
    got = decoded(vae, z, chunk=3, mode="reference")
    want = [decoded(vae, z[:, start : start + 3], chunk=None) for start in (0, 3, 6)]
    np.testing.assert_allclose(got, jnp.concatenate(want, axis=1), rtol=0, atol=1e-12)
    assert jnp.abs(got - whole).max() > 1e-2 * jnp.abs(whole).max()


def test_image_decoder_has_no_seams(x64):
    vae = random_vae(dataclasses.replace(TINY, temporal_decoder=False, post_quant_conv=True))
    z = jax.random.normal(jax.random.key(0), (1, 5, 4, 4, 4))
    for mode in ("exact", "reference"):
        np.testing.assert_allclose(
            decoded(vae, z, chunk=2, mode=mode), decoded(vae, z, chunk=None), rtol=0, atol=1e-12
        )


def test_exact_chunks_need_less_memory():
    vae = random_vae(TINY)
    z = jnp.zeros((1, 16, 16, 16, 4))

    def temporaries(**options) -> int:
        compiled = jax.jit(lambda z: decode_frames(vae, z, **options)).lower(z).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(chunk=1) < 0.6 * temporaries(chunk=None)


def test_reach_of_the_convolutions():
    assert convolution_reach(VAEConfig.svd()) == 29
    assert convolution_reach(VAEConfig.sd21()) == 0


def test_chunk_must_be_positive():
    with pytest.raises(UserError, match="chunk = 0"):
        decode_frames(random_vae(TINY), jnp.zeros((1, 3, 4, 4, 4)), chunk=0)
