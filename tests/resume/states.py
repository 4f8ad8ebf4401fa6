"""Small training states, as a step would leave them, sharded over any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from svdjax.training.state import TrainState

PARAMS = {"a.kernel": (16, 8), "b.bias": (8,)}


def make_state(step: int, devices: int = 1, *, scale: float = 1.0) -> TrainState:
    """Values that depend on the step, split over the first axis."""
    optimizer = optax.adam(1e-3)

    def params(offset: float) -> dict[str, jax.Array]:
        return {
            path: jnp.asarray(scale * (offset + step + np.arange(np.prod(shape)).reshape(shape)), jnp.float32)
            for path, shape in PARAMS.items()
        }

    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params(0),
        opt_state=optimizer.init(params(1)),
        ema=params(0.5),
        running={"count": jnp.asarray(step, jnp.int32), "loss": jnp.asarray(scale / (step + 2), jnp.float32)},
    )
    return jax.tree.map(jax.device_put, state, shardings(state, devices))


def shardings(state: TrainState, devices: int) -> TrainState:
    """Of the arrays of a state over so many devices, of all processes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
    spec = {True: jax.P("fsdp"), False: jax.P()}
    return jax.tree.map(lambda leaf: jax.NamedSharding(mesh, spec[leaf.ndim > 0]), state)


def shapes(devices: int = 1) -> TrainState:
    """What to restore into."""
    state = jax.eval_shape(lambda: make_state_like())
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings(state, devices),
    )


def make_state_like() -> TrainState:
    """The structure alone."""
    zeros = {path: jnp.zeros(shape) for path, shape in PARAMS.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=zeros,
        opt_state=optax.adam(1e-3).init(zeros),
        ema=zeros,
        running={"count": jnp.zeros((), jnp.int32), "loss": jnp.zeros(())},
    )


def equal(one: TrainState, other: TrainState) -> bool:
    """Whether two states are the same, bit for bit."""
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other)
    return all(jax.tree.leaves(same))
