"""One update of the parameters: gradient, clipping, AdamW, moving average; compiled once for the whole mesh."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from svdjax.compilation import compiler_options
from svdjax.data.pipeline import to_unit
from svdjax.models.params import cast_floating, load_flat
from svdjax.models.svd import SVD
from svdjax.training.bad_steps import count_if_good, skip_if
from svdjax.training.ema import ema_decay, update_ema
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.state import TrainState
from svdjax.typing import Array, Float, Key, PyTree

Frozen = Mapping[str, Array]
Params = dict[str, Array]
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]
LossFn = Callable[[Params, Frozen, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


def make_loss(stage: Stage, model: SVD) -> LossFn:
    """The stage's loss as a function of flat parameters, computed in the stage's ``compute_dtype``.

    Args:
        stage: gives the loss.
        model: the structure to fill with parameters; its own values are not used.
    """

    def loss(params: Params, frozen: Frozen, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        weights = cast_floating({**params, **frozen}, jnp.dtype(stage.compute_dtype))
        pixels = {"video": to_unit(batch["video"])} if "video" in batch else {}
        clips = {**numbered(batch), **pixels}
        return stage.loss(load_flat(model, weights, what="the training state"), clips, key)

    return loss


def compiled_loss(stage: Stage, model: SVD, mesh: Mesh) -> LossFn:
    """`make_loss` compiled for a mesh, with the options that the step has: for validation."""
    return jax.jit(make_loss(stage, model), compiler_options=_options(mesh))


def numbered(batch: Batch) -> Batch:
    """A batch with ``row``, the numbers of its clips, if it has none: that of a whole batch."""
    return {"row": jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32), **batch}


def gradients(
    loss: LossFn, params: Params, frozen: Frozen, batch: Batch, key: Key[Array, ""], *, parts: int
) -> tuple[Float[Array, ""], Metrics, Params]:
    """Loss, metrics and gradient of a batch, worked through in ``parts`` equal parts, one after the other.

    All randomness of a clip comes from ``key`` and the number of its row, so the parts together say what the whole
    batch would have said. Metrics of shape () are averaged over the parts, pairs (sum, count) are added.
    """
    batch = numbered(batch)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, metrics), grads = value_and_grad(params, frozen, batch, key)
        return value, metrics, grads

    def split(values: Array) -> Array:
        # Every parts-th row: the rows of a device stay on it, as blocks of neighbouring rows would not.
        return jnp.moveaxis(values.reshape(-1, parts, *values.shape[1:]), 1, 0)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        (value, metrics), grads = value_and_grad(params, frozen, part, key)
        return jax.tree.map(jnp.add, total, (value, metrics, grads)), None

    split_batch = jax.tree.map(split, batch)
    first = jax.tree.map(lambda values: values[0], split_batch)
    shapes = jax.eval_shape(value_and_grad, params, frozen, first, key)
    (value, metrics), grads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (value, metrics, grads), _ = lax.scan(add, (value, metrics, grads), split_batch)
    metrics = {name: total / parts if total.ndim == 0 else total for name, total in metrics.items()}
    return value / parts, metrics, jax.tree.map(lambda grad: grad / parts, grads)


def make_train_step(
    stage: Stage, model: SVD, optimizer: optax.GradientTransformation, seed: int, shardings: TrainState
) -> TrainStep:
    """Compile ``(state, frozen, batch) -> (state, metrics)``; the state's buffers are reused for the new one.

    The randomness of a step depends on the seed and the step's number alone, so that a resumed run repeats it.

    Args:
        stage: gives the loss. model: its structure. optimizer: of the stage. seed: of the run.
        shardings: of the state, before and after the step; moments and average in host memory visit the device.
    """
    loss_fn = make_loss(stage, model)

    def train_step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        state = jax.device_put(state, jax.tree.map(_on_device, shardings))
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, metrics, grads = gradients(loss_fn, state.params, frozen, batch, key, parts=stage.accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, ema_decay(state.step, stage.ema_decay))
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        bad = stage.bad.is_bad(loss, norms["grad_norm"], state.running)
        running = stage.bad.follow(state.running, loss, norms["grad_norm"])
        new_state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema, running=running)
        metrics = {"loss": loss, **metrics, **norms}
        if stage.bad.policy == "skip":
            new_state, metrics = skip_if(bad, new_state, state), count_if_good(bad, metrics)
        metrics |= {"bad_steps": jnp.stack([bad, jnp.ones_like(bad)]).astype(jnp.float32)}
        if "replaced" in batch:
            metrics |= {"replaced": jnp.sum(batch["replaced"] > 0).astype(jnp.float32)}
        return new_state, metrics

    whole = shardings.step
    return jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=_options(whole.mesh)
    )


def _options(mesh: Mesh) -> dict[str, bool] | None:
    return compiler_options(mesh.devices.flat[0].platform)


def _on_device(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    return sharding.with_memory_kind("device")
