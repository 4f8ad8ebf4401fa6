"""Parameters as a flat tree: dotted paths to arrays, and back."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from svdjax.errors import UserError, check_keys
from svdjax.typing import Array, Key, PyTree

Module = TypeVar("Module", bound=nnx.Module)


def _dotted(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def flat_params(module: nnx.Module) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """Every parameter of a module by its dotted path, e.g. ``unet.down.0.res.1.temporal.conv1.kernel``.

    The values are arrays, or ``jax.ShapeDtypeStruct`` for a module made by :func:`abstract`.
    """
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {_dotted(path): variable.get_value() for path, variable in state}


class _Keys(nnx.Rngs):
    """The keys of ``nnx.Rngs``, counted in Python.

    Under a trace every draw from ``nnx.Rngs`` walks through all that was traced before it: building SVD's
    2,000 layers takes minutes so, and seconds with this.
    """

    def __init__(self, key: Key[Array, ""]) -> None:
        self.key, self.drawn = key, 0

    @property
    def params(self) -> "_Keys":
        return self

    def __call__(self) -> Key[Array, ""]:
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)


def abstract(make: type[Module], config: object) -> Module:
    """A module of shapes without values: ``abstract(UNet, UNetConfig.svd())`` costs no memory."""
    return nnx.eval_shape(lambda: make(config, rngs=_Keys(jax.random.key(0))))


def draw_params(make: type[Module], config: object, key: Key[Array, ""]) -> dict[str, Array]:
    """Random float32 parameters of a module by dotted path; to be called under `jax.jit`."""
    return flat_params(make(config, rngs=_Keys(key)))


def initialise(make: type[Module], config: object, seed: int) -> Module:
    """A module with random float32 parameters, made in one compiled call."""
    params = jax.jit(lambda key: draw_params(make, config, key))(jax.random.key(seed))
    return load_flat(abstract(make, config), params, what=make.__name__)


def load_flat(module: Module, flat: Mapping[str, Array | np.ndarray], *, what: str) -> Module:
    """Fill every parameter of a module (often an abstract one) from a flat tree.

    Returns:
        A module of the same structure that holds the given arrays.

    Raises:
        UserError: a path is missing or left over, or a shape differs.
    """
    graph, state = nnx.split(module)
    wanted = dict(nnx.to_flat_state(state))
    paths = {_dotted(path): path for path in wanted}
    check_keys(what, flat, paths)
    for name, path in paths.items():
        if tuple(flat[name].shape) != tuple(wanted[path].shape):
            found, needed = tuple(flat[name].shape), tuple(wanted[path].shape)
            raise UserError(f"{what}: {name} has shape {found}, the model needs {needed}")
    filled = [(path, wanted[path].replace(jnp.asarray(flat[name]))) for name, path in paths.items()]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def param_count(module: nnx.Module) -> int:
    """Number of parameters."""
    return sum(int(np.prod(value.shape)) for value in flat_params(module).values())


def cast_floating(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Cast every floating-point leaf of a tree (a state, or a batch); other leaves stay as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def with_dtype(module: Module, dtype: DTypeLike) -> Module:
    """The same module with its parameters in another floating-point type, in which it then computes."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, cast_floating(state, dtype))
