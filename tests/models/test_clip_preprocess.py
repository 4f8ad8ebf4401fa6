"""The resize in front of CLIP: its kernels, its matrices and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.errors import UserError
from svdjax.models.clip_preprocess import (
    MEAN,
    STD,
    bicubic_matrix,
    blur_matrix,
    gaussian_kernel,
    preprocess,
    resize_matrix,
)


def picture(height, width, seed=0):
    return jax.random.uniform(jax.random.key(seed), (2, height, width, 3), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize(
    ("side", "kernel"),
    [
        (576, [0.23542, 0.529159, 0.23542]),
        (1024, [0.057166, 0.125207, 0.20041, 0.234432, 0.20041, 0.125207, 0.057166]),
        (200, [0.0, 1.0, 0.0]),
    ],
)
def test_gaussian_kernels_of_the_published_sizes(side, kernel):
    np.testing.assert_allclose(gaussian_kernel(side / 224), kernel, atol=5e-7)


@pytest.mark.parametrize("side", [320, 576, 1024, 1920])
def test_kernel_is_odd_about_four_sigma_long_and_sums_to_one(side):
    kernel = gaussian_kernel(side / 224)
    four_sigma = 2 * (side / 224 - 1)
    assert len(kernel) % 2 == 1
    assert max(three := 3, four_sigma - 1) <= len(kernel) <= max(three, four_sigma + 1)
    np.testing.assert_allclose(kernel.sum(), 1)
    np.testing.assert_array_equal(kernel, kernel[::-1])


def test_blur_equals_padding_by_reflection_and_sliding():
    signal = np.random.default_rng(0).normal(size=11)
    kernel = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    expected = np.correlate(np.pad(signal, 2, mode="reflect"), kernel, mode="valid")
    np.testing.assert_allclose(blur_matrix(11, kernel) @ signal, expected, atol=1e-12)


def test_bicubic_keeps_corners_and_reproduces_lines():
    matrix = bicubic_matrix(50, 224)
    line = np.linspace(-3, 7, 50)
    resized = matrix @ line
    assert resized[0] == line[0]
    assert resized[-1] == pytest.approx(line[-1], abs=1e-12)
    # Keys' kernel with a = -0.75 is exact on constants, and on lines only where it meets the pixels.
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    assert np.abs(resized - np.linspace(-3, 7, 224)).max() < 0.02


def test_a_square_of_the_right_size_is_only_normalised():
    images = picture(224, 224)
    expected = ((np.asarray(images) + 1) / 2 - MEAN) / STD
    np.testing.assert_allclose(preprocess(images, mode="sgm"), expected, atol=2e-6)


def test_a_plain_colour_stays_plain():
    colour = np.array([0.2, -0.5, 0.9], np.float32)
    images = jnp.broadcast_to(colour, (1, 300, 500, 3))
    expected = ((colour + 1) / 2 - MEAN) / STD
    np.testing.assert_allclose(preprocess(images)[0], np.broadcast_to(expected, (224, 224, 3)), atol=2e-6)


@pytest.mark.parametrize("size", [(64, 128), (200, 300), (300, 200), (576, 1024)])
def test_the_two_references_agree_on_pictures_that_can_be_reflected(size):
    images = picture(*size)
    np.testing.assert_array_equal(preprocess(images, mode="sgm"), preprocess(images, mode="diffusers"))


def test_a_large_picture_is_blurred_before_it_is_sampled():
    checkers = (-1.0) ** np.add.outer(np.arange(1024), np.arange(1024))
    images = jnp.asarray(np.broadcast_to(checkers[None, :, :, None], (1, 1024, 1024, 3)), jnp.float32)
    grey = (0.5 - np.array(MEAN)) / np.array(STD)
    assert np.abs(np.asarray(preprocess(images)[0]) - grey).max() < 0.05
    aliased = bicubic_matrix(1024, 224) @ checkers
    assert np.abs(aliased).max() > 0.9


def test_same_numbers_under_jit_and_linear_gradients():
    images = picture(40, 300)
    np.testing.assert_allclose(jax.jit(preprocess)(images), preprocess(images), atol=1e-5)
    gradient = jax.grad(lambda x: preprocess(x)[..., 0].sum())(images)
    # The output is linear in the input: its gradient is the outer product of the matrices' column sums.
    rows, columns = (resize_matrix(n, 224, True).sum(axis=0) for n in (40, 300))
    np.testing.assert_allclose(gradient[0, :, :, 0], np.outer(rows, columns) / 2 / STD[0], rtol=2e-4)
    assert float(jnp.abs(gradient[..., 1:]).max()) == 0


def test_computes_in_float32_from_bfloat16_and_in_float64_from_float64(x64):
    assert preprocess(jnp.zeros((1, 8, 8, 3), jnp.bfloat16)).dtype == jnp.float32
    assert preprocess(jnp.zeros((1, 8, 8, 3), jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize(("size", "mode"), [((1, 300), "sgm"), ((1, 40), "diffusers"), ((40, 1), "diffusers")])
def test_a_picture_too_thin_to_reflect_is_refused(size, mode):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} pixels is too small"):
        preprocess(jnp.zeros((1, *size, 3)), mode=mode)


def test_a_thin_picture_that_only_grows_needs_no_reflection_in_sgm():
    assert preprocess(jnp.zeros((1, 1, 40, 3)), mode="sgm").shape == (1, 224, 224, 3)
