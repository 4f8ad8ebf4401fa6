"""Metrics of reconstructed and generated videos, against their definitions."""

import numpy as np
import pytest

from svdjax.evaluation.reconstruction import flicker, psnr, ssim


@pytest.fixture(scope="module")
def views():
    """Two videos of three frames, and others."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (2, 3, 24, 20, 3), np.uint8) for _ in range(2)]


def test_psnr_is_that_of_the_squared_error(views):
    true = np.clip(views[0], 0, 200)
    made = true.copy()
    made[1, 2] += 10  # everywhere: an error of 10 is 20 log10(25.5) = 28.1308 dB
    found = psnr(made, true)
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(28.1308, abs=1e-4)
    assert np.isinf(np.delete(found.ravel(), 5)).all()
    assert psnr(true, made)[1, 2] == found[1, 2], "unsigned differences do not wrap around"


def test_ssim_is_the_papers_formula(views):
    """Flat views have a known value, and random ones that of the window summed by hand."""
    a, b = (np.full((1, 1, 16, 16, 3), value, np.uint8) for value in (100, 150))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b)[0, 0] == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)
    assert ssim(*[views[0]] * 2) == pytest.approx(np.ones((2, 3)))
    small = [v[:1, :1, :13, :12] for v in views]
    by_hand = ssim_by_hand(*(v[0, 0].astype(float) for v in small))
    assert ssim(*small).item() == pytest.approx(np.mean(by_hand), rel=1e-6)


def ssim_by_hand(a, b):
    """SSIM at every pixel, summing the mirrored window one by one."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    pad = [(5, 5), (5, 5), (0, 0)]
    a, b = np.pad(a, pad, mode="symmetric"), np.pad(b, pad, mode="symmetric")
    found = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = (v[i : i + 11, j : j + 11] for v in (a, b))
            mean = lambda v: np.einsum("ij,ijc->c", weights, v)  # noqa: E731
            mx, my = mean(x), mean(y)
            vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.stack(found)


def test_flicker_is_the_change_of_the_error(views):
    """A constant error does not flicker, whatever moves below it; one that comes and goes does."""
    true = np.clip(views[0], 0, 200)
    assert flicker(true + 50, true) == pytest.approx([0, 0])
    blinking = true.copy()
    blinking[1, 1] += 6  # of three frames the middle one: two pairs, each with a change of 6
    assert flicker(blinking, true) == pytest.approx([0, 6])
    assert flicker(true, blinking) == pytest.approx([0, 6]), "unsigned differences do not wrap around"
