"""One update of the parameters: gradient, clipping, AdamW, moving average; compiled once."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from svdjax.data.pipeline import to_unit
from svdjax.models.params import cast_floating, load_flat
from svdjax.models.svd import SVD
from svdjax.training.ema import ema_decay, update_ema
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.state import TrainState
from svdjax.typing import Array, Float, Key

Frozen = Mapping[str, Array]
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


def make_loss(
    stage: Stage, model: SVD
) -> Callable[[dict[str, Array], Frozen, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]:
    """The stage's loss as a function of flat parameters, computed in the stage's ``compute_dtype``.

    Args:
        stage: gives the loss.
        model: the structure to fill with parameters; its own values are not used.
    """

    def loss(
        params: dict[str, Array], frozen: Frozen, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        weights = cast_floating({**params, **frozen}, jnp.dtype(stage.compute_dtype))
        rows = jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)
        pixels = {"video": to_unit(batch["video"])} if "video" in batch else {}
        clips = {"row": rows, **batch, **pixels}
        return stage.loss(load_flat(model, weights, what="the training state"), clips, key)

    return loss


def make_train_step(stage: Stage, model: SVD, optimizer: optax.GradientTransformation, seed: int) -> TrainStep:
    """Compile ``(state, frozen, batch) -> (state, metrics)``; the state's buffers are reused for the new one.

    The randomness of a step depends on the seed and the step's number alone, so that a resumed run repeats it.
    """
    loss_fn = make_loss(stage, model)

    def train_step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, ema_decay(state.step, stage.ema_decay))
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        new_state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return new_state, {"loss": loss, **metrics, **norms}

    return jax.jit(train_step, donate_argnums=0)
