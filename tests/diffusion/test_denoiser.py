"""The scalings and the loss, by the identities that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion import (
    EDM,
    PRECONDITIONINGS,
    Denoiser,
    DiscreteEps,
    DiscreteV,
    EDMWeighting,
    EpsWeighting,
    UnitWeighting,
    VPrediction,
    VWeighting,
    denoising_loss,
    discrete_sigmas,
)

SHAPE = (5, 3, 4, 4, 2)
SIGMA = (0.002, 0.1, 1.0, 10.0, 700.0)


def video(seed, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), SHAPE, dtype)


def column(values):
    return values[:, None, None, None, None]


def v_target(x0, noise, sigma):
    """v = (eps - sigma x0) / sqrt(1 + sigma^2)."""
    return (noise - column(sigma) * x0) / jnp.sqrt(1 + column(sigma) ** 2)


def test_v_known_numbers(x64):
    scalings = VPrediction()(jnp.array([0.1, 1.0, 10.0]))
    np.testing.assert_allclose(scalings.c_skip, [0.990099, 0.5, 0.00990099], rtol=1e-6)
    np.testing.assert_allclose(scalings.c_out, [-0.0995037, -0.707107, -0.995037], rtol=1e-6)
    np.testing.assert_allclose(scalings.c_in, [0.995037, 0.707107, 0.0995037], rtol=1e-6)
    np.testing.assert_allclose(VWeighting()(jnp.array([0.1, 1.0, 10.0])), [101, 2, 1.01], rtol=1e-12)


def test_c_noise_known_numbers(x64):
    c_noise = VPrediction()(jnp.array([700.0, 0.002])).c_noise
    np.testing.assert_allclose(c_noise, [1.637770, -1.553652], rtol=1e-6)


@pytest.mark.parametrize("preconditioning", [VPrediction(), DiscreteV()], ids=repr)
def test_true_v_gives_x0(x64, preconditioning):
    sigma, x0, noise = jnp.array(SIGMA), video(0), video(1)
    denoiser = Denoiser(lambda x, c_noise, cond: v_target(x0, noise, sigma), preconditioning)
    denoised = denoiser(x0 + column(sigma) * noise, sigma, None)
    np.testing.assert_allclose(denoised, x0, atol=1e-9)


def test_true_eps_gives_x0(x64):
    sigma, x0, noise = jnp.array(SIGMA), video(0), video(1)
    denoised = Denoiser(lambda *_: noise, DiscreteEps())(x0 + column(sigma) * noise, sigma, None)
    np.testing.assert_allclose(denoised, x0, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_derivation(x64, sigma_data):
    """EDM, appendix B.6: unit variance of input and target, and the smallest possible c_out."""
    sigma = jnp.array(SIGMA)
    s = EDM(sigma_data=sigma_data)(sigma)
    np.testing.assert_allclose(s.c_in**2 * (sigma_data**2 + sigma**2), 1, rtol=1e-12)

    def out_squared(c_skip):  # variance of x0 - c_skip x
        return (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2

    np.testing.assert_allclose(s.c_out**2, out_squared(s.c_skip), rtol=1e-12)
    for nearby in (s.c_skip * 0.99, s.c_skip * 1.01):
        assert (out_squared(nearby) > s.c_out**2).all()


def test_edm_at_one_is_v_with_the_sign_changed(x64):
    edm, v = EDM(sigma_data=1.0)(jnp.array(SIGMA)), VPrediction()(jnp.array(SIGMA))
    np.testing.assert_array_equal(edm.c_out, -v.c_out)
    np.testing.assert_array_equal(edm.c_skip, v.c_skip)


@pytest.mark.parametrize("preconditioning", [DiscreteEps(), DiscreteV()], ids=repr)
def test_discrete_index(preconditioning):
    levels = discrete_sigmas().astype(np.float32)
    index = preconditioning(jnp.asarray(levels)).c_noise
    np.testing.assert_array_equal(index, np.arange(1000))
    between = 0.4 * levels[1:] + 0.6 * levels[:-1]
    np.testing.assert_array_equal(preconditioning(jnp.asarray(between)).c_noise, np.arange(999))
    beyond = preconditioning(jnp.array([1e-3, 700.0])).c_noise
    np.testing.assert_array_equal(beyond, [0, 999])


def test_network_sees_scaled_latents_and_c_noise(x64):
    seen = {}

    def network(x, c_noise, cond):
        seen.update(x=x, c_noise=c_noise, cond=cond)
        return x

    sigma, x = jnp.array(SIGMA), video(2)
    Denoiser(network, VPrediction())(x, sigma, {"anything": 3})
    np.testing.assert_allclose(seen["x"], x / jnp.sqrt(1 + column(sigma) ** 2), rtol=1e-12)
    np.testing.assert_allclose(seen["c_noise"], np.log(SIGMA) / 4, rtol=1e-12)
    assert seen["cond"] == {"anything": 3}


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS.values(), ids=repr)
def test_half_precision_network_keeps_the_latents_precise(preconditioning):
    denoiser = Denoiser(lambda x, c_noise, cond: x.astype(jnp.bfloat16), preconditioning)
    assert denoiser(video(0, jnp.float32), jnp.array(SIGMA), None).dtype == jnp.float32


@pytest.mark.parametrize(
    ("preconditioning", "weighting"),
    [
        (VPrediction(), VWeighting()),
        (DiscreteV(), VWeighting()),
        (EDM(sigma_data=0.5), EDMWeighting(sigma_data=0.5)),
        (EDM(sigma_data=2.0), EDMWeighting(sigma_data=2.0)),
        (DiscreteEps(), EpsWeighting()),
    ],
    ids=repr,
)
def test_weight_cancels_c_out(x64, preconditioning, weighting):
    sigma = jnp.array(SIGMA)
    np.testing.assert_allclose(weighting(sigma) * preconditioning(sigma).c_out ** 2, 1, rtol=1e-10)


def test_v_loss_is_the_error_of_v(x64):
    sigma, x0, noise, output = jnp.array(SIGMA), video(0), video(1), video(2)
    loss = denoising_loss(Denoiser(lambda *_: output, VPrediction()), x0, noise, sigma, None, VWeighting())
    expected = jnp.mean((output - v_target(x0, noise, sigma)) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_eps_loss_is_the_error_of_eps(x64):
    sigma, x0, noise, output = jnp.array(SIGMA), video(0), video(1), video(2)
    loss = denoising_loss(Denoiser(lambda *_: output, DiscreteEps()), x0, noise, sigma, None, EpsWeighting())
    np.testing.assert_allclose(loss, jnp.mean((output - noise) ** 2, axis=(1, 2, 3, 4)), rtol=1e-6)


def test_unit_loss_is_the_error_of_x0():
    x0, guess = video(0, jnp.float32), video(1, jnp.float32)
    sigma = jnp.ones(5)

    def denoise(x, sigma, cond):
        return guess

    loss = denoising_loss(denoise, x0, guess, sigma, None, UnitWeighting())
    np.testing.assert_allclose(loss, np.mean((np.asarray(guess) - x0) ** 2, axis=(1, 2, 3, 4)), rtol=1e-5)


def test_v_loss_in_float32_is_accurate_at_every_noise_level():
    """The weight at sigma .002 is 250001: rounding of the denoised error must not show."""
    sigma, x0, noise = jnp.array(SIGMA), video(0, jnp.float32), video(1, jnp.float32)
    output = video(2, jnp.float32)
    loss = denoising_loss(Denoiser(lambda *_: output, VPrediction()), x0, noise, sigma, None, VWeighting())
    expected = jnp.mean((output - v_target(x0, noise, sigma)) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
