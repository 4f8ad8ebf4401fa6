"""Samplers on Gaussian data, where the denoiser and the flow are known exactly, and against other derivations."""

import itertools
import os
from functools import partial
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion import (
    DDIM,
    SAMPLERS,
    Churn,
    Denoiser,
    DiscreteEps,
    DiscreteSchedule,
    DiscreteV,
    DPMpp2M,
    DPMpp2MSDE,
    Euler,
    EulerAncestral,
    Heun,
    Karras,
    LinearGuidance,
    LogLinear,
    Run,
    VPrediction,
    advance,
    discrete_sigmas,
    guided,
    initial_noise,
    moves_of,
    sample,
)

GOLDENS = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
KEY = jax.random.key(7)
MEAN, STD = 0.7, 0.5  # of the data


def column(values):
    return values[:, None, None, None, None]


def gaussian(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, STD^2) and x = x0 + sigma eps."""
    return (STD**2 * x + column(sigma) ** 2 * MEAN) / (STD**2 + column(sigma) ** 2)


def exact_flow(x, start, end):
    """Where the probability flow ODE carries ``x``.

    dx/dsigma = (x - D) / sigma = sigma (x - MEAN) / (STD^2 + sigma^2), so that (x - MEAN) / sqrt(STD^2 + sigma^2)
    does not change.
    """
    return MEAN + (x - MEAN) * jnp.sqrt((STD**2 + end**2) / (STD**2 + start**2))


def noise(seed, shape=(4, 3, 4, 4, 2), dtype=None):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def run(sampler, sigmas, denoise=gaussian, x=None, **options):
    x = noise(0) * sigmas[0] if x is None else x
    return jax.jit(lambda x: sample(denoise, x, jnp.asarray(sigmas), sampler, KEY, **options))(x)


def trajectory(denoise, x, sigmas, sampler):
    """Every step of a run, along the first axis: what `advance` makes when it is called step by step."""
    runs, moves = [Run.start(x)], moves_of(sigmas)
    step = jax.jit(lambda run, move: advance(denoise, run, move, sampler, KEY))
    for number in range(len(sigmas) - 1):
        runs.append(step(runs[-1], jax.tree.map(itemgetter(number), moves)))
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *runs[1:])


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(Euler(), 1), (Heun(), 2), (DPMpp2M(), 2), (DDIM(), 1)],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else value,
)
def test_convergence_order(x64, sampler, order):
    """Halving the steps in ln(sigma) divides the error by 2^order."""
    errors = []
    for steps in (160, 320):
        sigmas = np.geomspace(10.0, 0.1, steps + 1)
        end = run(sampler, sigmas)
        errors.append(float(jnp.abs(end - exact_flow(noise(0) * 10.0, 10.0, 0.1)).max()))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.15)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ddim"])
def test_flow_to_zero(x64, name):
    """SVD's own schedule ends on the data: within 2 % of the exact flow in 600 steps."""
    sigmas = Karras(sigma_max=80.0)(600)
    exact = exact_flow(noise(0) * 80.0, 80.0, 0.0)
    np.testing.assert_allclose(run(SAMPLERS[name], sigmas), exact, atol=0.02 * STD)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_zero_is_the_denoiser(name):
    x = noise(0) * 3.0
    expected = gaussian(x, jnp.full(4, 3.0))
    np.testing.assert_allclose(run(SAMPLERS[name], [3.0, 0.0], x=x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "sampler",
    [
        EulerAncestral(),
        DDIM(eta=0.5),
        DPMpp2MSDE(),
        DPMpp2M(eta=0.4),
        Euler(churn=Churn(amount=8.0)),
        Heun(churn=Churn(amount=8.0, sigma_min=0.05, sigma_max=5.0)),
    ],
    ids=repr,
)
def test_stochastic_samplers_keep_the_distribution(sampler):
    """Fresh noise must replace exactly what was taken away: mean and deviation of the data come out.

    A factor of 1.05 on the noise, or none, fails this.
    """
    shape = (32, 4, 16, 16, 1)
    x = MEAN + noise(1, shape) * (STD**2 + 20.0**2) ** 0.5
    end = run(sampler, LogLinear(sigma_min=0.01, sigma_max=20.0)(800), x=x)
    standard_error = STD / end.size**0.5
    np.testing.assert_allclose(end.mean(), MEAN, atol=5 * standard_error)
    np.testing.assert_allclose(end.std(), STD, rtol=0.02)
    assert jnp.abs(end - exact_flow(x, 20.0, 0.0)).mean() > 0.1 * STD


@pytest.mark.parametrize(("eta", "target"), [(0.3, 1.8), (1.0, 0.5)])
@pytest.mark.parametrize("rule", [DDIM, DPMpp2M])
def test_one_stochastic_step_has_the_target_deviation(rule, eta, target):
    """For data at a single point a step is exact: N(MEAN, 2^2) becomes N(MEAN, target^2), whatever eta is."""
    x = MEAN + 2.0 * noise(2, (64, 4, 16, 16, 1))
    end = run(rule(eta=eta), [2.0, target], lambda x, sigma: jnp.full_like(x, MEAN), x)
    np.testing.assert_allclose(end.std(), target, rtol=0.01)
    # The part of the old noise that is kept (ratio^(2 eta) of DPM++, sqrt(1 - lifted^2) of DDIM) falls with eta.
    kept = np.corrcoef(np.ravel(x), np.ravel(end))[0, 1]
    ratio = target / 2
    expected = {DDIM: (1 - eta**2 * (1 - ratio**2)) ** 0.5, DPMpp2M: ratio**eta}[rule]
    np.testing.assert_allclose(kept, expected, atol=0.02)


def test_churn_level_and_bounds():
    """EDM, Alg. 2: D is called at sigma (1 + gamma), gamma = min(S_churn / N, sqrt(2) - 1) within the bounds."""
    seen = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: seen.append(float(s[0])), sigma)
        return gaussian(x, sigma)

    sigmas = [8.0, 4.0, 2.0, 1.0, 0.5]
    run(Euler(churn=Churn(amount=1.0, sigma_min=2.0, sigma_max=4.0)), sigmas, denoise)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), [1.0, 2.0 * 1.25, 4.0 * 1.25, 8.0])
    seen.clear()
    run(Euler(churn=Churn(amount=1e3)), sigmas, denoise)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), [s * 2**0.5 for s in (1.0, 2.0, 4.0, 8.0)], rtol=1e-6)


def test_churn_without_extra_noise_only_shrinks():
    """S_noise 0 adds nothing: D sees x itself, labelled with the higher noise level."""
    x = noise(0) * 4.0
    end = run(Euler(churn=Churn(amount=0.25, noise=0.0)), [4.0, 1.0], x=x)
    x0 = gaussian(x, jnp.full(4, 5.0))
    np.testing.assert_allclose(end, x + (x - x0) / 5.0 * (1.0 - 5.0), rtol=1e-5, atol=1e-5)


def test_heun_calls_the_network_once_in_the_last_step():
    calls = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s[0])), sigma)
        return gaussian(x, sigma)

    run(Heun(), [4.0, 2.0, 1.0, 0.0], denoise)
    jax.effects_barrier()
    assert sorted(calls, reverse=True) == [4.0, 2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_2m_equals_the_paper(x64, eta):
    """Alg. 2 (and its SDE form) in the paper's lambda, h and r, step by step, with the sampler's own noise."""
    sigmas = np.array(Karras(sigma_max=50.0)(7))
    x, lambdas, xs = noise(3) * 50.0, -np.log(sigmas[:-1]), []
    draws = [np.asarray(initial_noise_of_step(i, x)) for i in range(7)]
    x_i, before = np.asarray(x), None
    for i in range(7):
        x0 = np.asarray(gaussian(jnp.asarray(x_i), jnp.full(4, sigmas[i])))
        if i == 6:
            x_i = x0
        else:
            h = lambdas[i + 1] - lambdas[i]
            r = (lambdas[i] - lambdas[i - 1]) / h if i else np.inf
            d = x0 if before is None else (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
            x_i = sigmas[i + 1] / sigmas[i] * np.exp(-eta * h) * x_i - np.expm1(-h - eta * h) * d
            x_i = x_i + sigmas[i + 1] * np.sqrt(-np.expm1(-2 * eta * h)) * draws[i]
        before = x0
        xs.append(x_i)
    kept = trajectory(gaussian, x, jnp.asarray(sigmas), DPMpp2M(eta=eta))
    np.testing.assert_allclose(kept.x, np.stack(xs), rtol=1e-9, atol=1e-10)


def initial_noise_of_step(step, x):
    """f(key, step, index), spelled out."""
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), i) for i in range(x.shape[0])]
    return jnp.stack([jax.random.normal(key, x.shape[1:], x.dtype) for key in keys])


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_equals_the_paper(x64, eta):
    """Song et al. Eq. 12 and 16 in sqrt(abar) x0 + sqrt(1 - abar) eps, on SD 2.1's levels, with an eps network."""
    steps, denoise = 9, discrete_denoiser(DiscreteEps())
    sigmas = np.array(DiscreteSchedule()(steps))
    alphas = 1 / (1 + sigmas**2)
    start = np.asarray(noise(4)) * sigmas[0]
    x = np.sqrt(alphas[0]) * start
    for i, (a, b) in enumerate(itertools.pairwise(alphas)):
        index = np.abs(discrete_sigmas() - sigmas[i]).argmin()
        eps = np.asarray(discrete_network(jnp.asarray(x), jnp.full(4, float(index)), None))
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b - sigma**2) * eps
        x = x + sigma * np.asarray(initial_noise_of_step(i, jnp.asarray(x)))
    ours = run(DDIM(eta=eta), sigmas, denoise, jnp.asarray(start))
    np.testing.assert_allclose(ours, x, rtol=1e-8, atol=1e-9)


def discrete_network(x, index, cond):
    return jnp.tanh(x * 1.7 + column(index) / 1000)


def discrete_denoiser(preconditioning):
    denoiser = Denoiser(discrete_network, preconditioning)
    return lambda x, sigma: denoiser(x, sigma, None)


@pytest.mark.parametrize(("kind", "preconditioning"), [("epsilon", DiscreteEps()), ("v_prediction", DiscreteV())])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_ddim_equals_diffusers(x64, kind, preconditioning):
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type=kind,
    )
    theirs.set_timesteps(20)
    start = np.asarray(noise(5, (2, 1, 4, 4, 2)))
    x = torch.from_numpy(start.copy())
    for t in theirs.timesteps:
        output = discrete_network(jnp.asarray(x.numpy()), jnp.full(2, float(t)), None)
        x = theirs.step(torch.from_numpy(np.array(output)), t, x).prev_sample
    sigmas = DiscreteSchedule(spacing="leading")(20)
    ours = run(DDIM(), sigmas, discrete_denoiser(preconditioning), start * np.sqrt(1 + sigmas[0] ** 2))
    # diffusers keeps its alphas in float32.
    np.testing.assert_allclose(ours, x.numpy(), rtol=2e-5, atol=2e-5)


def test_ddim_is_euler(x64):
    sigmas = Karras()(12)
    np.testing.assert_array_equal(run(DDIM(), sigmas), run(Euler(), sigmas))


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m_sde"])
def test_trajectory(name):
    x, sigmas = noise(0) * 20.0, Karras(sigma_max=20.0)(6)
    kept = trajectory(gaussian, x, sigmas, SAMPLERS[name])
    assert kept.x.shape == kept.x0.shape == (6, *x.shape)
    np.testing.assert_allclose(kept.x[-1], run(SAMPLERS[name], sigmas, x=x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kept.x0[0], gaussian(x, jnp.full(4, 20.0)), rtol=1e-6)
    np.testing.assert_allclose(kept.x0[3], gaussian(kept.x[2], jnp.full(4, sigmas[3])), rtol=1e-5)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="set SVDJAX_GOLDENS to the recorded cases")
def test_euler_and_linear_guidance_equal_the_reference():
    """A recorded run of the original code: replay what its network said, and get its latents."""
    golden = np.load(GOLDENS / "sgm_i2v" / "golden" / "sampler.npz")
    frames = golden["noise"].shape[0]

    def channels_last(a):
        return jnp.moveaxis(jnp.asarray(a).reshape(-1, frames, *a.shape[-3:]), 2, -1)

    sigmas = jnp.asarray(golden["sigmas"])
    said = jnp.stack([channels_last(a) for a in golden["denoised"]])  # [steps, (uncond, cond), t, h, w, c]

    def denoise(x, sigma, cond):
        return said[jnp.argmin(jnp.abs(sigmas - sigma[0]))]

    guided_denoise = guided(denoise, LinearGuidance(1.0, 2.5), jnp.zeros(1), jnp.zeros(1))
    x = channels_last(golden["noise"]) * jnp.sqrt(1 + sigmas[0] ** 2)
    kept = trajectory(guided_denoise, x, sigmas, Euler())
    expected = np.stack([channels_last(a) for a in golden["latents"]])
    for ours, theirs in zip(kept.x, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())


def network(x, c_noise, cond):
    """Mildly nonlinear, mixes frames, and is conditioned per video."""
    return jnp.tanh(0.5 * jnp.roll(x, 1, axis=1) + column(cond)) * column(jnp.cos(c_noise))


@partial(jax.jit, static_argnames="name")
def sample_videos(name, index, cond):
    x = initial_noise(jax.random.key(1), index, (3, 4, 4, 2), 20.0)
    sigmas = Karras(sigma_max=20.0)(4)
    denoise = guided(Denoiser(network, VPrediction()), LinearGuidance(1.0, 2.0), cond, jnp.zeros_like(cond))
    return sample(denoise, x, sigmas, SAMPLERS[name], KEY, index=index)


INDEX, COND = np.arange(8), np.linspace(-1, 1, 8, dtype=np.float32)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_video_does_not_depend_on_its_batch(name):
    together = np.asarray(sample_videos(name, INDEX, COND))
    places = np.array([5, 2, 0])
    apart = sample_videos(name, np.append(places, INDEX[:5] + 90), np.append(COND[places], COND[:5]))
    np.testing.assert_array_equal(apart[:3], together[places])
    assert np.abs(apart[3:] - together[:5]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "axis"),
    [*((name, "Auto") for name in SAMPLERS), ("heun", "Explicit"), ("dpmpp_2m_sde", "Explicit")],
)
def test_sharded_batch_gives_the_same_videos(name, axis):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType[axis],))
    over_devices = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = sample_videos(name, jax.device_put(INDEX, over_devices), jax.device_put(COND, over_devices))
    assert len(sharded.sharding.device_set) == 8
    assert not sharded.sharding.is_fully_replicated
    np.testing.assert_allclose(sharded, sample_videos(name, INDEX, COND), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_stochastic_samplers_draw_noise(name):
    program = jax.make_jaxpr(lambda x: sample(gaussian, x, Karras()(3), SAMPLERS[name], KEY))(noise(0))
    assert ("random_bits" in str(program)) == (name in ("euler_ancestral", "dpmpp_2m_sde"))


def test_every_step_and_video_has_its_own_noise():
    """With D = x, the ancestral noise is all that moves x."""
    sigmas = jnp.linspace(1.0, 0.4, 4)
    x = jnp.zeros((3, 2, 4, 4, 2))
    kept = trajectory(lambda x, sigma: x, x, sigmas, EulerAncestral())
    moves = np.diff(np.concatenate([x[None], kept.x]), axis=0).reshape(9, -1)
    assert np.abs(np.corrcoef(moves) - np.eye(9)).max() < 0.6


def test_float64_stays(x64):
    assert run(DPMpp2MSDE(), Karras()(3)).dtype == jnp.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_stays_under_x64(x64, name):
    x = jax.ShapeDtypeStruct((2, 3, 4, 4, 2), jnp.float32)
    result = jax.eval_shape(lambda x: sample(gaussian, x, Karras()(3), SAMPLERS[name], KEY), x)
    assert result.dtype == jnp.float32
