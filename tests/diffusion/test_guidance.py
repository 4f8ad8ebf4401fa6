"""Guidance scales against their formulas, and how the two predictions are computed and combined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion import (
    ConstantGuidance,
    Denoiser,
    IntervalGuidance,
    LinearGuidance,
    NoGuidance,
    TrapezoidGuidance,
    TriangleGuidance,
    VPrediction,
    guided,
)

GUIDANCES = [
    NoGuidance(),
    ConstantGuidance(3.0),
    LinearGuidance(1.0, 2.5),
    TriangleGuidance(),
    TrapezoidGuidance(),
    IntervalGuidance(LinearGuidance(1.0, 2.5), 0.5, 20.0),
]


def scales(guidance, frames, sigma=1.0):
    """The effective scale per frame: the result for predictions 1 and 0."""
    one = jnp.ones((2, frames, 3, 3, 4))
    result = guidance(one, 0 * one, jnp.full(2, sigma))
    assert result.shape == one.shape
    per_frame = np.asarray(result)[0, :, 0, 0, 0]
    np.testing.assert_array_equal(result, np.broadcast_to(per_frame[:, None, None, None], one.shape))
    return per_frame


def test_linear_known_numbers():
    fourteen = scales(LinearGuidance(1.0, 2.5), 14)
    np.testing.assert_allclose(fourteen[[0, 1, 2, 12, 13]], [1, 1.1154, 1.2308, 2.3846, 2.5], atol=5e-5)
    xt = scales(LinearGuidance(1.5, 3.0), 25)
    np.testing.assert_allclose(xt[[0, 1, 24]], [1.5, 1.5625, 3.0], rtol=1e-6)


@pytest.mark.parametrize("frames", [2, 5, 20, 21])
def test_triangle_rises_and_falls_evenly(frames):
    position = np.arange(frames) / (frames - 1)
    expected = 1.2 + (3.0 - 1.2) * (1 - np.abs(2 * position - 1))
    np.testing.assert_allclose(scales(TriangleGuidance(1.2, 3.0), frames), expected, rtol=1e-6)


def test_triangle_known_numbers():
    orbit = scales(TriangleGuidance(), 21)
    np.testing.assert_allclose(orbit[[0, 1, 10, 20]], [1.0, 1.15, 2.5, 1.0], rtol=1e-6)


def test_trapezoid():
    expected = [1.0, 1.75, 2.5, *[2.5] * 6, 2.5, 1.75, 1.0]
    np.testing.assert_allclose(scales(TrapezoidGuidance(1.0, 2.5, edge=0.25), 12), expected, rtol=1e-6)
    np.testing.assert_allclose(scales(TrapezoidGuidance(1.0, 2.5), 5), 2.5)


@pytest.mark.parametrize(
    ("guidance", "scale"),
    [
        (ConstantGuidance(3.0), 3.0),
        (LinearGuidance(1.5, 3.0), 1.5),
        (TriangleGuidance(1.1, 2.5), 1.1),
        (TrapezoidGuidance(1.1, 2.5), 2.5),
        (NoGuidance(), 1.0),
    ],
)
def test_one_frame(guidance, scale):
    np.testing.assert_allclose(scales(guidance, 1), [scale], rtol=1e-6)


@pytest.mark.parametrize(("sigma", "active"), [(0.5, False), (0.51, True), (20.0, True), (20.1, False)])
def test_interval_bounds(sigma, active):
    guidance = IntervalGuidance(ConstantGuidance(4.0), sigma_min=0.5, sigma_max=20.0)
    np.testing.assert_allclose(scales(guidance, 3, sigma), 4.0 if active else 1.0)


def test_interval_is_decided_per_video():
    guidance = IntervalGuidance(ConstantGuidance(4.0), sigma_min=0.5, sigma_max=20.0)
    one = jnp.ones((3, 2, 1, 1, 1))
    result = guidance(one, 0 * one, jnp.array([0.1, 1.0, 100.0]))
    np.testing.assert_allclose(result[:, 0, 0, 0, 0], [1, 4, 1])


@pytest.mark.parametrize("guidance", GUIDANCES, ids=repr)
def test_equal_predictions_are_kept(guidance):
    x = jax.random.normal(jax.random.key(0), (2, 7, 3, 3, 4))
    np.testing.assert_array_equal(guidance(x, x, jnp.array([1.0, 1.0])), x)


def conditioned(x, c_noise, cond):
    return jnp.sin(3 * x + cond["shift"][:, None, None, None, None]) * cond["scale"][:, :, None, None, None]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=repr)
def test_guided_equals_two_calls(guidance):
    calls = []

    def network(x, c_noise, cond):
        calls.append((x, cond))
        return conditioned(x, c_noise, cond)

    keys = jax.random.split(jax.random.key(1), 6)
    x, sigma = jax.random.normal(keys[0], (2, 5, 3, 3, 4)), jnp.array([0.3, 4.0])
    cond = {"shift": jax.random.normal(keys[1], (2,)), "scale": jax.random.normal(keys[2], (2, 5))}
    uncond = {"shift": jax.random.normal(keys[3], (2,)), "scale": jax.random.normal(keys[4], (2, 5))}
    result = guided(Denoiser(network, VPrediction()), guidance, cond, uncond)(x, sigma)

    denoiser = Denoiser(conditioned, VPrediction())
    expected = guidance(denoiser(x, sigma, cond), denoiser(x, sigma, uncond), sigma)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == 1
    assert calls[0][0].shape[0] == (2 if isinstance(guidance, NoGuidance) else 4)


def test_guided_puts_the_unconditional_half_first():
    seen = []

    def denoise(x, sigma, cond):
        seen.append((x, sigma, cond))
        return x

    x, sigma = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 4)), jnp.array([1.0, 2.0])
    guided(denoise, ConstantGuidance(2.0), {"a": jnp.ones((2, 3))}, {"a": jnp.zeros((2, 3))})(x, sigma)
    ((both, sigmas, cond),) = seen
    np.testing.assert_array_equal(both[:2], both[2:])
    np.testing.assert_array_equal(sigmas, [1, 2, 1, 2])
    np.testing.assert_array_equal(cond["a"][:, 0], [0, 0, 1, 1])
