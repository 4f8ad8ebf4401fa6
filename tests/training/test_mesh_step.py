"""The same step on any mesh and in any number of parts: loss, gradient and new parameters agree."""

import dataclasses

import jax
import numpy as np
import pytest

from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD
from svdjax.training import sharding
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.optim import make_optimizer
from svdjax.training.sharding import gather, on_mesh, place, place_whole, state_shardings
from svdjax.training.state import new_state
from svdjax.training.step import make_train_step
from tests.training.tiny import MODEL, OPTIM, tiny_run
from tests.weights import random_model

pytestmark = pytest.mark.slow


def one_step(stage, devices, **sizes):
    """Metrics, and some of the parameters, moments and averages after one step."""
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
    flat = place(flat_params(random_model(SVD, MODEL)), mesh)
    params = {path: value for path, value in flat.items() if stage.trains(path)}
    frozen = {path: value for path, value in flat.items() if path not in params}
    optimizer = make_optimizer(OPTIM, 10)
    shapes = jax.eval_shape(lambda: new_state(params, optimizer))
    shardings = state_shardings(shapes, optimizer, mesh, offload=stage.offload)
    state = jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)(params)
    step = on_mesh(mesh, make_train_step(stage, abstract(SVD, MODEL), optimizer, 0, shardings))
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 255, (8, 2, 16, 16, 3), np.uint8)}
    batch |= {"fps": np.full(8, 7.0, np.float32), "motion_bucket": np.arange(1, 9, dtype=np.float32)}
    for _ in range(2):
        before = state
        state, metrics = step(state, frozen, place_whole(batch, mesh))
        assert all(value.is_deleted() for value in before.params.values())  # their memory is the new ones'
    assert state.ema.keys() == params.keys()
    return {name: np.asarray(value) for name, value in metrics.items()}, jax.tree.map(gather, state)


@pytest.fixture(scope="module", params=[pytest.param("vae", marks=pytest.mark.long), "unet"])
def stage(request, tmp_path_factory):
    config = tiny_run(tmp_path_factory.mktemp("run"))
    stages = {"vae": config.vae, "unet": dataclasses.replace(config.unet, cache_latents=False)}
    return dataclasses.replace(stages[request.param], batch=8)


@pytest.fixture(scope="module")
def on_one_device(stage):
    return one_step(stage, 1)


@pytest.mark.parametrize(
    ("devices", "sizes", "changes"),
    [
        (8, {}, {}),
        (8, {"fsdp": 2, "context": 2}, {"accumulate": 2}),
        (2, {"fsdp": 1}, {"offload": True}),
    ],
)
def test_a_step_does_not_depend_on_the_mesh_or_on_parts(stage, on_one_device, monkeypatch, devices, sizes, changes):
    monkeypatch.setattr(sharding, "_SMALL", 0)  # or parameters as small as these would not be cut at all
    metrics, state = one_step(dataclasses.replace(stage, **changes), devices, **sizes)
    wanted_metrics, wanted = on_one_device
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4 if "norm" in name else 1e-5, err_msg=name)
    assert metrics["update_norm"] > 0
    # Adam divides by the root of a small square: where a gradient is nearly 0 the direction is rounding.
    for path, value in wanted.ema.items():
        np.testing.assert_allclose(state.ema[path], value, atol=2e-4, err_msg=path)


def test_every_large_parameter_is_cut_on_eight_devices(stage, monkeypatch):
    monkeypatch.setattr(sharding, "_SMALL", 0)
    mesh = make_mesh(MeshConfig(), jax.devices())
    params = {p: v for p, v in flat_params(abstract(SVD, MODEL)).items() if stage.trains(p)}
    cut = sharding.param_shardings(params, mesh)
    assert sum(any(s.spec) for s in cut.values()) > 0.5 * len(cut)
