"""A step whose loss or gradient is unusable ends the run, or is left out and counted."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD
from svdjax.training.bad_steps import BadSteps
from svdjax.training.hooks import Guard
from svdjax.training.loop import Moment
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.metrics import summarise
from svdjax.training.optim import OptimConfig, make_optimizer
from svdjax.training.sharding import state_shardings
from svdjax.training.stage import Stage
from svdjax.training.state import new_state
from svdjax.training.step import make_train_step
from tests.training.tiny import MODEL

PATH = "unet.conv_out.bias"


@dataclass(frozen=True, kw_only=True)
class Fed(Stage):
    """A stage whose loss is what its batch says, times a parameter."""

    name: ClassVar[str] = "fed"

    def trains(self, path):
        return path == PATH

    def loss(self, model, batch, key):
        loss = jnp.mean(batch["factor"]) * jnp.sum(model.unet.conv_out.bias[...])
        return loss, {"factor": jnp.mean(batch["factor"]), "pair": jnp.stack([jnp.sum(batch["factor"]), 2.0])}


def fed(**bad):
    return Fed(steps=9, batch=2, optim=OptimConfig(rate=0.1, warmup=0), log_every=1, bad=BadSteps(**bad))


def train(stage, factors, **more):
    """States and metrics after each step, on batches of these factors, and of ``more`` that is alike in all."""
    params = {PATH: jnp.ones(4)}
    frozen = {
        path: jnp.zeros(shape.shape) for path, shape in flat_params(abstract(SVD, MODEL)).items() if path != PATH
    }
    optimizer = make_optimizer(stage.optim, stage.steps)
    state = new_state(params, optimizer)
    shardings = state_shardings(state, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    step = make_train_step(stage, abstract(SVD, MODEL), optimizer, 0, shardings)
    states, metrics = [jax.device_get(state)], []
    for factor in factors:
        state, values = step(state, frozen, {"factor": jnp.full(2, factor), **more})
        states.append(jax.device_get(state))
        metrics.append(values)
    return states, metrics


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 100.0])
def test_a_skipped_step_changes_nothing_but_the_step_number(bad):
    stage = fed(policy="skip", max_grad_norm=50.0)
    states, metrics = train(stage, [1.0, bad, 2.0])
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    before, after = (dataclasses.replace(state, step=0) for state in states[1:3])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    without, _ = train(stage, [1.0, 2.0])
    last, expected = (dataclasses.replace(state, step=0) for state in (states[3], without[2]))
    # The average's decay follows the step number, which the skipped step has moved.
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, last.params, expected.params)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, last.opt_state, expected.opt_state)))
    values = summarise(metrics)
    assert values["bad_steps"] == pytest.approx(1 / 3)
    assert values["factor"] == pytest.approx(1.5) and values["pair"] == pytest.approx(1.5)


def test_without_bad_steps_skipping_changes_nothing():
    skipping, _ = train(fed(policy="skip"), [1.0, 2.0])
    stopping, _ = train(fed(), [1.0, 2.0])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, skipping, stopping)))


EXPLODES = [1.0, 2.0, 5.0, 4.0, 1.0]  # the gradient's norm is twice that, and 3 the mean of the first two


def test_a_step_far_above_the_good_ones_before_it_is_bad():
    states, metrics = train(fed(policy="skip", max_ratio=3.0, window=2), EXPLODES)
    assert [float(values["bad_steps"][0]) for values in metrics] == [0, 0, 1, 0, 0]
    means = [float(state.running["grad_norm"]) for state in states]
    assert means == pytest.approx([0, 2, 3, 3, 5.5, 3.75])  # plain over the first two, then half of what is new
    assert [int(state.running["count"]) for state in states] == [0, 1, 2, 2, 3, 4]


def test_an_exploding_step_ends_a_run_that_skips_none():
    stage = fed(max_ratio=3.0, window=2)
    _, metrics = train(stage, EXPLODES)
    guarded(stage, metrics[:2])
    with pytest.raises(UserError, match=r"step 3: .* gradient norm 10: not finite, or over a bound of --fed\.bad"):
        guarded(stage, metrics)


def test_clips_that_stand_in_for_others_are_counted_in_bad_steps_too():
    _, metrics = train(fed(policy="skip"), [1.0, np.nan], replaced=jnp.array([0, 3], jnp.int32))
    assert summarise(metrics)["replaced"] == 1.0
    _, metrics = train(fed(), [1.0])
    assert "replaced" not in metrics[0]


def judged(loss, grad_norm, running, **bad):
    running = {name: jnp.float32(value) for name, value in running.items()}
    return bool(BadSteps(**bad).is_bad(jnp.float32(loss), jnp.float32(grad_norm), running))


@pytest.mark.parametrize(
    ("loss", "grad_norm", "bad"),
    [(1, 1, False), (1001, 1, True), (1, 101, True), (np.nan, 1, True), (-np.nan, 1, True), (1, np.inf, True)],
)
def test_absolute_bounds_hold_from_the_first_step(loss, grad_norm, bad):
    start = {"count": 0, "loss": 0, "grad_norm": 0}
    assert judged(loss, grad_norm, start, max_loss=1000.0, max_grad_norm=100.0) is bad


@pytest.mark.parametrize(
    ("count", "mean", "ratio", "bad"),
    [
        (100, 2, 100.0, True),
        (99, 2, 100.0, False),
        (100, 2, 101.0, False),
        (100, 2, None, False),
        (100, -2, 9.0, False),
    ],
)
def test_a_loss_explodes_relative_to_a_mean_over_enough_steps(count, mean, ratio, bad):
    running = {"count": count, "loss": mean, "grad_norm": 1}
    assert judged(201, 1, running, max_ratio=ratio) is bad


def guarded(stage, rows, check=()):
    guard = Guard(stage)
    state = new_state({"bias": jnp.zeros(1)}, optax.sgd(1.0))
    for step, row in enumerate(rows, start=1):
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in row.items()}
        guard(Moment(step=step, last=False, state=state, metrics=metrics, waited=0.0))
        if step in check:
            guard.check()


GOOD, SKIPPED = {"bad_steps": (0, 1)}, {"bad_steps": (1, 1)}


def test_too_many_skipped_in_a_row_end_the_run():
    stage = fed(policy="skip", max_skipped=3)
    guarded(stage, [SKIPPED, SKIPPED, GOOD, SKIPPED, SKIPPED])
    with pytest.raises(UserError, match=r"fed: the 3 steps up to 5 had an unusable .* lower --fed\.optim\.rate"):
        guarded(stage, [SKIPPED, GOOD, SKIPPED, SKIPPED, SKIPPED])


@pytest.mark.parametrize("log_every", [2, 0])
def test_a_bad_step_between_two_that_are_logged_is_named(log_every):
    stage = dataclasses.replace(fed(), log_every=log_every)
    good = {"loss": 1.0, "grad_norm": 1.0, **GOOD}
    guarded(stage, [good, good, good])
    message = r"stage fed, step 1: loss nan, gradient norm 1: not finite, .* lower --fed\.optim\.rate"
    with pytest.raises(UserError, match=message):
        guarded(stage, [good | {"loss": np.nan, **SKIPPED}, good], check=() if log_every else (2,))


def test_bounds_that_forbid_everything_are_refused():
    with pytest.raises(UserError, match=r"bad\.max-grad-norm 0.0: must be above 0"):
        BadSteps(max_grad_norm=0.0)
