"""Noise schedules against their published numbers and diffusers; training levels by their moments."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion import (
    STAGES,
    AlignYourSteps,
    DiscreteLevels,
    DiscreteSchedule,
    Karras,
    LogLinear,
    LogNormal,
    discrete_sigmas,
    initial_noise,
    video_noise,
    with_offset,
)
from svdjax.errors import UserError

GOLDENS = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
SCHEDULES = [Karras(), LogLinear(), AlignYourSteps(), DiscreteSchedule(), DiscreteSchedule(spacing="leading")]


@pytest.fixture
def schedulers(monkeypatch):
    """diffusers' schedulers, computing in float64 where their source says float32."""
    import torch
    from diffusers import schedulers

    monkeypatch.setattr(torch, "float32", torch.float64)
    return schedulers


@pytest.mark.parametrize("steps", [1, 2, 10, 25, 333])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_descends_to_zero(schedule, steps):
    sigmas = np.asarray(schedule(steps))
    assert sigmas.shape == (steps + 1,)
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_no_steps(schedule):
    with pytest.raises(UserError, match="0 sampling steps"):
        schedule(0)


def test_more_steps_than_levels():
    with pytest.raises(UserError, match="1 to 999"):
        DiscreteSchedule()(1000)


def test_karras_known_numbers(x64):
    sigmas = Karras()(25)
    np.testing.assert_allclose(sigmas[:6], [700, 545.73, 421.57, 322.45, 244.02, 182.55], rtol=2e-5)
    np.testing.assert_allclose(sigmas[-5:], [0.066399, 0.024803, 0.0078825, 0.002, 0], rtol=2e-5)
    np.testing.assert_allclose([Karras()(30)[1], Karras()(50)[1]], [570.03, 620.33], rtol=1e-5)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="set SVDJAX_GOLDENS to the recorded cases")
def test_karras_reference_cases():
    golden = np.load(GOLDENS / "sgm_i2v" / "golden" / "scheduler.npz")
    for name in golden.files:
        np.testing.assert_allclose(Karras()(len(golden[name]) - 1), golden[name], rtol=5e-6)  # float32, 7th power


@pytest.mark.parametrize("steps", [2, 7, 25, 50])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_karras_and_log_linear_equal_diffusers(schedulers, x64, steps):
    for ours, option in ((Karras(), "use_karras_sigmas"), (LogLinear(), "use_exponential_sigmas")):
        theirs = schedulers.EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0, **{option: True})
        theirs.set_timesteps(steps)
        np.testing.assert_allclose(ours(steps), theirs.sigmas, rtol=1e-6)


def test_karras_is_uniform_in_the_root(x64):
    roots = Karras(sigma_min=0.1, sigma_max=80.0, rho=3.0)(9)[:-1] ** (1 / 3)
    np.testing.assert_allclose(np.diff(roots), (0.1 ** (1 / 3) - 80 ** (1 / 3)) / 8, rtol=1e-9)


def test_log_linear_is_uniform_in_the_logarithm(x64):
    levels = np.log(LogLinear(sigma_min=0.1, sigma_max=80.0)(9)[:-1])
    np.testing.assert_allclose(np.diff(levels), np.log(0.1 / 80) / 8, rtol=1e-9)


def test_align_your_steps(x64):
    table = [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]
    np.testing.assert_allclose(AlignYourSteps()(10), [*table[:-1], 0], rtol=1e-12)
    np.testing.assert_allclose(AlignYourSteps()(5), [*table[:-1:2], 0], rtol=1e-12)
    squared = AlignYourSteps(sigma_min=0.002**2, sigma_max=700.0**2)(10)
    np.testing.assert_allclose(squared, [*np.square(table[:-1]), 0], rtol=1e-9)
    twenty = np.asarray(AlignYourSteps()(20))
    np.testing.assert_allclose(twenty[:-1:2], table[:-1], rtol=1e-9)
    np.testing.assert_allclose(twenty[1::2], np.sqrt(np.multiply(table[:-1], table[1:])), rtol=1e-9)


def test_discrete_levels_equal_diffusers(schedulers):
    ddim = schedulers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas = ddim.alphas_cumprod.numpy()
    np.testing.assert_allclose(1 / (1 + discrete_sigmas() ** 2), alphas, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 7, 25, 30, 50, 400, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_discrete_schedule_equals_diffusers(schedulers, x64, spacing, steps):
    theirs = schedulers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
    )
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(DiscreteSchedule(spacing=spacing)(steps), theirs.sigmas, rtol=1e-6)


# Median sigma, from the table of the paper's stages.
MEDIANS = {
    "image": 0.301,
    "video_256x384": 0.301,
    "video_320x576": 1.0,
    "text_to_video_576x1024": 1.65,
    "image_to_video_320x576": 2.01,
    "image_to_video_576x1024": 2.72,
    "interpolation": 2.72,
}
STDS = {
    "text_to_video_576x1024": 1.4,
    "image_to_video_320x576": 1.6,
    "image_to_video_576x1024": 1.6,
    "interpolation": 1.2,
}


@pytest.mark.parametrize("stage", STAGES)
def test_training_levels_of_each_stage(stage):
    n = 100_000
    drawn = np.log(STAGES[stage].sample(jax.random.key(3), (n,)))
    std = STDS.get(stage, 1.0)
    assert abs(drawn.mean() - np.log(MEDIANS[stage])) < 4 * std / n**0.5 + 0.005
    assert abs(drawn.std() - std) < 4 * std / (2 * n) ** 0.5


def test_every_stage_has_a_known_median():
    assert set(STAGES) == set(MEDIANS)


def test_lognormal_is_one_level_per_entry():
    levels = LogNormal(mean=0.0, std=1.0).sample(jax.random.key(0), (5,))
    assert levels.shape == (5,)
    assert len(np.unique(levels)) == 5


def test_discrete_levels_are_drawn_equally_often():
    drawn = np.asarray(DiscreteLevels().sample(jax.random.key(0), (50_000,)), np.float64)
    levels = discrete_sigmas()
    index = np.searchsorted(np.sqrt(levels[1:] * levels[:-1]), drawn)
    np.testing.assert_allclose(drawn, levels[index], rtol=1e-6)
    counts = np.bincount(index, minlength=len(levels))  # 50 each, with a deviation of 7
    assert counts.min() > 20 and counts.max() < 90
    np.testing.assert_allclose(counts.reshape(10, 100).sum(axis=1) / len(drawn), 0.1, atol=0.01)


def test_offset_noise_is_what_a_channel_of_a_video_has_in_common():
    key, other, index, shape = jax.random.key(1), jax.random.key(2), jnp.arange(400), (2, 3, 5, 4)
    noise = video_noise(key, index, shape)
    offset = with_offset(noise, other, index, 0.5) - noise
    common = np.asarray(offset[:, 0, 0, 0])
    np.testing.assert_allclose(offset, np.broadcast_to(common[:, None, None, None], offset.shape), atol=1e-6)
    assert common.std() == pytest.approx(0.5, rel=0.1) and abs(np.corrcoef(common.T)[0, 1]) < 0.2
    np.testing.assert_array_equal(with_offset(noise[7:8], other, index[7:8], 0.5)[0], (noise + offset)[7])


def test_noise_of_a_video_follows_its_index():
    key, shape = jax.random.key(1), (2, 3, 3, 4)
    together = video_noise(key, jnp.arange(6), shape)
    alone = video_noise(key, jnp.array([4]), shape)
    np.testing.assert_array_equal(together[4], alone[0])
    assert len(np.unique(together)) == together.size


def test_initial_noise_deviation():
    x = initial_noise(jax.random.key(2), jnp.arange(8), (4, 32, 32, 4), 700.0)
    np.testing.assert_allclose(x.std(), 700.000714, rtol=0.01)
    np.testing.assert_allclose(
        x[3:4] / video_noise(jax.random.key(2), jnp.array([3]), (4, 32, 32, 4)), 700.000714, rtol=1e-6
    )
