"""The small parts of training, each against its formula."""

import dataclasses
import importlib
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD
from svdjax.training.config import load_config
from svdjax.training.ema import ema_decay, update_ema
from svdjax.training.export import Export
from svdjax.training.loop import Moment, every, train
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.optim import OptimConfig, learning_rate, make_optimizer
from svdjax.training.precompute import Precompute
from svdjax.training.sharding import state_shardings
from svdjax.training.state import new_state
from svdjax.training.step import compiled_loss, make_train_step
from tests.training.tiny import MODEL, OPTIM, tiny_run
from tests.weights import random_model

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def test_the_average_forgets_fast_at_first_and_slowly_later():
    assert float(ema_decay(jnp.int32(0), 0.999)) == pytest.approx(0.1)
    assert float(ema_decay(jnp.int32(90), 0.999)) == pytest.approx(0.91)
    assert float(ema_decay(jnp.int32(10**6), 0.999)) == pytest.approx(0.999)
    assert float(update_ema({"a": jnp.float32(2)}, {"a": jnp.float32(4)}, jnp.float32(0.75))["a"]) == 2.5


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    rate = learning_rate(OptimConfig(rate=2.0, warmup=10, final=0.25), 110)
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 1, 2, 1.25, 0.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": -1e-3}, "optim.rate -0.001: must be at least 0"),
        ({"rate": float("nan")}, "optim.rate nan: must be at least 0"),
        ({"warmup": -5}, "optim.warmup -5: must be at least 0"),
        ({"weight_decay": -0.1}, "optim.weight-decay -0.1: must be at least 0"),
        ({"final": -1.0}, "optim.final -1.0: must be at least 0 and at most 1"),
        ({"b1": 1.0}, "optim.b1 1.0: must be at least 0 and below 1"),
        ({"b2": 1.0}, "optim.b2 1.0: must be at least 0 and below 1"),
        ({"eps": 0.0}, "optim.eps 0.0: must be above 0"),
        ({"clip": 0.0}, "optim.clip 0.0: must be above 0"),
        ({"clip": -1.0}, "optim.clip -1.0: must be above 0"),
    ],
)
def test_an_optimizer_that_cannot_train_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**values)


def test_only_kernels_decay():
    optimizer = make_optimizer(OptimConfig(rate=1.0, warmup=0, weight_decay=0.5), 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.5)
    assert float(updates["bias"][0]) == 0


def test_the_mean_of_gradients_may_be_kept_in_half_the_bytes():
    params = {"kernel": jnp.ones((2, 2))}
    grads = {"kernel": jnp.full((2, 2), 0.3)}
    found = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimConfig(rate=1.0, warmup=0, moment_dtype=dtype), 10)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        adam = optax.tree.get(state, "mu")["kernel"], optax.tree.get(state, "nu")["kernel"]
        assert [moment.dtype for moment in adam] == [dtype, "float32"]
        found[dtype] = float(updates["kernel"][0, 0])
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=1e-2)


@pytest.fixture(scope="module")
def vae_step(tmp_path_factory):
    stage = tiny_run(tmp_path_factory.mktemp("step")).vae
    flat = flat_params(random_model(SVD, MODEL))
    params = {path: value for path, value in flat.items() if stage.trains(path)}
    optimizer = make_optimizer(OPTIM, 100)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = state_shardings(jax.eval_shape(lambda: new_state(params, optimizer)), optimizer, mesh)
    step = make_train_step(stage, abstract(SVD, MODEL), optimizer, 0, shardings)
    video = jax.random.randint(jax.random.key(1), (2, 2, 16, 16, 3), 0, 255, jnp.uint8)
    frozen = {path: value for path, value in flat.items() if path not in params}
    fresh = partial(jax.device_put, device=shardings)
    return partial(step, frozen=frozen, batch={"video": video}), lambda: fresh(new_state(params, optimizer))


@pytest.mark.parametrize("preconditioning", ["v", "discrete_v", "discrete_eps"])
def test_a_network_that_says_zero_is_wrong_by_one_whatever_it_predicts(preconditioning, tmp_path):
    """v and eps both have unit variance for latents of unit variance."""
    model = random_model(SVD, dataclasses.replace(MODEL, preconditioning=preconditioning))
    model.unet.conv_out.kernel[...] *= 0
    model.unet.conv_out.bias[...] *= 0
    latents = jax.random.normal(jax.random.key(0), (64, 2, 8, 8, 4)) / MODEL.vae.scaling_factor
    batch = {"video": jnp.zeros((64, 1, 16, 16, 3)), "latents": latents}
    batch |= {"fps": jnp.full(64, 7.0), "motion_bucket": jnp.full(64, 127.0), "row": jnp.arange(64)}
    loss, _ = tiny_run(tmp_path).unet.loss(model, batch, jax.random.key(1))
    assert float(loss) == pytest.approx(1, abs=0.03)


@pytest.fixture(scope="module")
def still():
    """A state that no step has touched."""
    return new_state({"bias": jnp.zeros(1)}, make_optimizer(OPTIM, 9))


def test_a_step_is_compiled_once_and_the_loss_falls(vae_step):
    step, fresh = vae_step
    state, seen = fresh(), []
    for _ in range(30):
        state, metrics = step(state)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < 0.9 * seen[0]
    assert step.func._cache_size() == 1


def test_a_step_repeats_itself_exactly_from_the_same_state(vae_step):
    step, fresh = vae_step
    (first, one), (second, two) = step(fresh()), step(fresh())
    assert float(one["loss"]) == float(two["loss"])
    assert all(jnp.array_equal(first.params[path], second.params[path]) for path in first.params)
    _, three = step(first)
    assert float(three["loss"]) != float(one["loss"])


def test_validation_is_compiled_with_the_options_of_the_step(monkeypatch, tmp_path):
    monkeypatch.setattr("svdjax.training.step.compiler_options", lambda platform: {f"none_of_{platform}": True})
    model, stage = abstract(SVD, MODEL), tiny_run(tmp_path).decoder
    loss = compiled_loss(stage, model, make_mesh(MeshConfig(), jax.devices()[:1]))
    batch = {"video": jnp.zeros((1, 2, 16, 16, 3), jnp.uint8)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'none_of_cpu'"):
        loss.lower(flat_params(model), {}, batch, jax.random.key(0)).compile()


def test_hooks_run_every_n_steps_and_at_the_end(still):
    calls = []
    hook = every(2, lambda moment: calls.append(moment.step))
    never = every(0, lambda moment: calls.append(-1))
    for step in range(1, 6):
        moment = Moment(step=step, last=step == 5, state=still, metrics={}, waited=0.0)
        hook(moment)
        never(moment)
    assert calls == [2, 4, 5]


def test_the_loop_stops_after_the_step_in_which_it_is_asked_to(still):
    @jax.jit
    def step(state, frozen, batch):
        return dataclasses.replace(state, step=state.step + 1), {}

    asked = iter([False, True, False])
    state = train(
        still,
        {},
        iter([{}] * 9),
        train_step=step,
        place=lambda batch: batch,
        steps=9,
        hooks=[],
        stop=lambda step: next(asked),
    )
    assert int(state.step) == 2


def test_no_more_than_two_steps_are_in_flight(still):
    """Nor are more batches taken from the loader than that, or it would seem to be late."""

    @jax.jit
    def step(state, frozen, batch):
        product = jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(x @ x), batch["matrix"])
        return dataclasses.replace(state, step=state.step + 1), {"loss": product.sum()}

    losses, in_flight = [], []

    def batches():
        for _ in range(8):
            in_flight.append(sum(not loss.is_ready() for loss in losses))
            yield {"matrix": np.eye(300, dtype=np.float32)}

    def hook(moment):
        losses.append(moment.metrics["loss"])
        in_flight.append(sum(not loss.is_ready() for loss in losses))

    train(still, {}, batches(), train_step=step, place=jax.device_put, steps=8, hooks=[hook])
    assert max(in_flight) <= 2


def test_nothing_goes_to_the_device_by_accident(still):
    @jax.jit
    def step(state, frozen, batch):
        return dataclasses.replace(state, step=state.step + jnp.sum(batch["one"])), {}

    def steps(place):
        batches = iter([{"one": np.ones(1, np.int32)}])
        return train(still, {}, batches, train_step=step, place=place, steps=1, hooks=[])

    assert int(steps(jax.device_put).step) == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        steps(lambda batch: batch)


def test_options_lie_over_the_file():
    config = load_config(["--unet.steps", "7", "--unet.optim.rate", "0.5"], default=DEMO)
    assert (config.unet.steps, config.unet.optim.rate) == (7, 0.5)
    assert json.loads(config.to_json())["unet"]["steps"] == 7


def test_quick_is_a_twentieth():
    config = load_config([str(DEMO), "--quick", "--vae.steps", "100"], default=Path("absent.py"))
    assert config.stages()[0].steps == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--unet.batch", "0"], "--unet.batch 0: must be at least 1"),
        (["--vae.log-every", "-1"], "--vae.log-every -1: must be at least 0"),
        (
            ["--mesh.context", "8"],
            "clips 64 pixels wide do not divide at every level: make the width a multiple of 128",
        ),
        (["--data.sampling.captions"], "no stage of this run reads captions"),
        (["--out", "gs://bucket/run"], "--out gs://bucket/run: is an address, not a path: mount it"),
        (["--data.train", "s3://bucket/clips"], "--data.train s3://bucket/clips: is an address"),
    ],
)
def test_impossible_values_are_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        load_config(options, default=DEMO)


@pytest.mark.parametrize("command", ["precompute", "export"])
@pytest.mark.parametrize("idle", [["--distributed"], ["--mesh.fsdp", "2"], ["--mesh.context=2"]])
def test_commands_of_one_process_refuse_what_would_do_nothing_there(command, idle):
    module = importlib.import_module(f"svdjax.training.{command}")
    own = {"precompute": ["--out", "cache"], "export": ["--to", "model.safetensors"]}[command]
    with pytest.raises(UserError, match=rf"^{idle[0]}: svdjax {command} is one process, .*: leave it out"):
        module.main([str(DEMO), *own, *idle])


@pytest.mark.parametrize(("options", "name"), [(Precompute, "out"), (Export, "to")])
def test_what_is_written_goes_to_no_address(options, name):
    with pytest.raises(UserError, match=rf"--{name} gs://bucket/x: is an address, not a path: mount it"):
        options(**{name: Path("gs://bucket/x")})


@pytest.mark.parametrize("program", [["/bin/svdjax", "train"], ["train.py"]])
def test_an_unknown_option_is_refused_with_a_suggestion_and_the_command(capsys, monkeypatch, program):
    monkeypatch.setattr("sys.argv", [*program, str(DEMO), "--unet.stepz", "7"])
    with pytest.raises(SystemExit) as stop:
        load_config([str(DEMO), "--unet.stepz", "7"], default=DEMO)
    assert stop.value.code == 2
    said = "".join(capsys.readouterr().err.replace("│", "").split())
    assert "--unet.steps" in said and f"{Path(program[0]).name}{''.join(program[1:])}{DEMO}" in said
