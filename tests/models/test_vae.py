"""The autoencoder: sizes, the Gaussian, and what an untrained temporal decoder does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params, load_flat, param_count
from svdjax.models.vae import VAE, Decoder, Gaussian, VAEConfig
from tests.weights import random_model

TINY = VAEConfig(channels=(32, 64), num_res_blocks=1)
decode = jax.jit(Decoder.__call__)


@pytest.mark.parametrize(
    ("config", "params", "tensors"),
    [
        (VAEConfig.svd(), 97_742_847, 106 + 2 + 266),
        (VAEConfig.svd_image_decoder(), 83_653_863 - 20, 106 + 2 + 138),
        (VAEConfig.sd21(), 83_653_863, 106 + 2 + 138 + 2),
    ],
)
def test_presets_have_the_published_sizes(config, params, tensors):
    vae = abstract(VAE, config)
    assert (param_count(vae), len(flat_params(vae))) == (params, tensors)
    assert param_count(vae.encoder) == 34_163_592
    assert param_count(vae.decoder) == (63_579_183 if config.temporal_decoder else 49_490_179)
    assert config.factor == 8


def test_widths_that_group_norms_do_not_divide_are_user_errors():
    with pytest.raises(UserError, match="VAEConfig: 16 channels do not divide into norm_groups 32"):
        VAEConfig(channels=(16, 32))
    with pytest.raises(UserError, match="norm_groups 0"):
        VAEConfig(norm_groups=0)


def test_gaussian_samples_have_its_mean_and_deviation():
    gaussian = Gaussian(mean=jnp.array([-3.0, 5.0]), logvar=jnp.log(jnp.array([4.0, 0.25])))
    samples = jax.vmap(gaussian.sample)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(samples.mean(0), [-3, 5], atol=0.05)
    np.testing.assert_allclose(samples.std(0), [2, 0.5], rtol=0.02)
    np.testing.assert_array_equal(gaussian.mode(), gaussian.mean)


def test_encode_clips_the_log_variance_and_shrinks_by_the_factor():
    vae = random_model(VAE, TINY)
    bias = jnp.array([0.0, 0, 0, 0, -100, 100, 1, 2])
    vae.quant_conv.kernel[...] = jnp.zeros_like(vae.quant_conv.kernel[...])
    vae.quant_conv.bias[...] = bias
    latents = jax.jit(VAE.encode)(vae, jnp.zeros((2, 12, 8, 3)))
    assert latents.mean.shape == latents.logvar.shape == (2, 6, 4, 4)
    np.testing.assert_array_equal(latents.logvar[0, 0, 0], [-30, 20, 1, 2])


def test_a_new_temporal_decoder_is_the_image_decoder_whose_weights_it_has():
    image = random_model(Decoder, dataclasses.replace(TINY, temporal_decoder=False))
    new = Decoder(TINY, rngs=nnx.Rngs(0))
    shared = flat_params(image)
    assert set(shared) < set(flat_params(new))
    temporal = load_flat(new, {**flat_params(new), **shared}, what="the decoder")
    z = jax.random.normal(jax.random.key(2), (2, 3, 4, 6, 4))
    np.testing.assert_allclose(decode(temporal, z), decode(image, z), atol=1e-4)
    assert temporal.mid.res[0].mix_factor[0] == 0


def test_only_the_temporal_decoder_mixes_frames():
    z = jax.random.normal(jax.random.key(2), (2, 4, 4, 6, 4))
    for temporal in (True, False):
        decoder = random_model(Decoder, dataclasses.replace(TINY, temporal_decoder=temporal))
        change = decode(decoder, z.at[:, 3].add(1.0)) - decode(decoder, z)
        assert float(jnp.abs(change[:, 3]).max()) > 1e-3
        assert bool(jnp.any(change[:, 2] != 0)) == temporal
