"""Everything that training changes, as one pytree."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from svdjax.typing import Array, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """State between two steps.

    The fields are typed as trees, for JAX and orbax also build the state around shapes, shardings and None.

    Attributes:
        step: int32, updates done; with the run's seed it determines all randomness of the next one.
        params: the trained parameters by dotted path, float32.
        opt_state: the optimizer's moments.
        ema: moving average of ``params``; what is validated, sampled and exported.
        running: running means of ``loss`` and ``grad_norm`` over the good steps, float32, and how many these are,
            ``count``, int32; what a bad step is known by (see `bad_steps.BadSteps`).
    """

    step: PyTree
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    running: PyTree


def new_state(params: dict[str, Array], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. The parameters are copied: a step gives its buffers away."""

    def copy() -> dict[str, Array]:
        # With their dtype said aloud: a weakly typed leaf would have the second step compiled anew.
        return {path: jnp.array(value, value.dtype, copy=True) for path, value in params.items()}

    def zero(dtype: str = "float32") -> Array:
        return jnp.zeros((), dtype)

    return TrainState(
        step=zero("int32"),
        params=copy(),
        opt_state=optimizer.init(copy()),
        ema=copy(),
        running={"count": zero("int32"), "loss": zero(), "grad_norm": zero()},
    )
