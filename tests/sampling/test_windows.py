"""Longer videos: the start of a window is held to the end of the one before, for any sampler and any task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion.noise import Karras, initial_noise
from svdjax.diffusion.samplers import SAMPLERS, sample
from svdjax.models.svd import SVD
from svdjax.sampling.images import to_uint8
from svdjax.sampling.pipeline import Pipeline, Settings, keys_of
from svdjax.sampling.windows import Before
from svdjax.tasks import ImageToVideo
from tests.training.tiny import MODEL
from tests.weights import random_model

SHAPE, OVERLAP = (4, 2, 2, 3), 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_window_begins_with_what_it_is_given(name):
    last = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)
    before = Before.nothing(2, SHAPE, OVERLAP).after(last)
    sigmas, key = Karras(sigma_max=40.0)(4), jax.random.key(0)
    noise = initial_noise(key, jnp.arange(2), SHAPE, sigmas[0])
    seen = []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return jnp.zeros_like(x)

    with jax.disable_jit():
        start = before.start(noise, sigmas[0])
        made = sample(before.hold(denoise), start, sigmas, SAMPLERS[name], key)
    np.testing.assert_allclose(made[:, :OVERLAP], last[:, -OVERLAP:], atol=1e-5)
    np.testing.assert_allclose(made[:, OVERLAP:], 0, atol=1e-5)
    x, sigma = seen[0]
    given = x[:, :OVERLAP] - last[:, -OVERLAP:]
    np.testing.assert_allclose(
        given, noise[:, :OVERLAP] * sigma[0] / np.sqrt(1 + sigma[0] ** 2), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(x[:, OVERLAP:], noise[:, OVERLAP:])


def test_the_first_window_has_nothing_before_it():
    before, key = Before.nothing(2, SHAPE, OVERLAP), jax.random.key(3)
    noise = initial_noise(key, jnp.arange(2), SHAPE, 40.0)
    held = before.hold(lambda x, sigma: 2 * x)
    np.testing.assert_array_equal(before.start(noise, jnp.asarray(40.0)), noise)
    np.testing.assert_array_equal(held(noise, jnp.full(2, 40.0)), 2 * noise)
    assert before.key(key) == key
    numbers = {int(jax.random.bits(before.after(noise).key(key))), int(jax.random.bits(key))}
    assert len(numbers) == 2, "each window has noise of its own"


def test_no_window_starts_from_the_noise_of_a_step():
    """Step w of the first window and the start of window w would both be the w-th of a key."""
    _, start, steps = keys_of(jnp.uint32(3))
    before, keys = Before.nothing(1, SHAPE, OVERLAP), []
    for _ in range(3):
        keys += [before.key(start), *(jax.random.fold_in(before.key(steps), step) for step in range(3))]
        before = before.after(jnp.zeros((1, *SHAPE)))
    assert len({int(jax.random.bits(key)) for key in keys}) == len(keys) == 12


def test_three_windows_of_an_animated_picture_go_on_from_each_other(monkeypatch):
    defaults = dataclasses.replace(MODEL.defaults, frames=3, guidance=(1.0, 1.0))
    model, steps, seen, following = random_model(SVD, MODEL), [], [], ImageToVideo.following

    def watched(self, request, frames):
        seen.append(to_uint8(frames))
        return following(self, request, frames)

    monkeypatch.setattr(ImageToVideo, "following", watched)
    settings = Settings(defaults=defaults, windows=3, overlap=1)
    pictures = np.random.default_rng(2).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    pipeline = Pipeline(model, settings, on_step=steps.append)
    video = pipeline(images=pictures)
    assert video.shape == (1, 7, 16, 16, 3)
    assert len(steps) == pipeline.step_calls(1) == 3 * defaults.steps
    for frames, last in zip(seen, (2, 4), strict=True):
        np.testing.assert_array_equal(frames[:, 0], video[:, last])
    one = Pipeline(model, Settings(defaults=defaults))(images=pictures)
    # One program serves all windows and another a single one: the last bit may be rounded otherwise.
    assert np.abs(video[:, :3].astype(int) - one).max() <= 1
