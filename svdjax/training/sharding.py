"""Which device holds what: rules from shapes to partition specs, and batches from hosts to the mesh."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from svdjax.training.state import TrainState
from svdjax.typing import Array, ndarray

BATCH_AXES = ("data", "fsdp")
PARAM_AXES = ("fsdp", "context")  # chips that share a video share the parameters too
# Smaller parameters (biases, norms, mixing factors) are kept whole: gathering them would cost more than it saves.
_SMALL = 2**14


def param_spec(shape: Sequence[int], parts: int) -> PartitionSpec:
    """How a parameter is cut into ``parts`` over `PARAM_AXES`: along its largest axis that divides evenly.

    Among equal axes the last one, which for kernels is the output. Small parameters, and those of which no axis
    divides (3- and 4-channel convolutions), stay whole.
    """
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < _SMALL:
        return PartitionSpec()
    axis = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * axis, PARAM_AXES)


def param_shardings(params: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter, by dotted path."""
    parts = math.prod(mesh.shape[name] for name in PARAM_AXES)
    return {path: NamedSharding(mesh, param_spec(value.shape, parts)) for path, value in params.items()}


def state_shardings(
    state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh, *, offload: bool = False
) -> TrainState:
    """A training state of shardings: moments and average lie where their parameter lies.

    Args:
        state: of shapes.
        optimizer: that made its ``opt_state``.
        mesh: the mesh.
        offload: keep moments and average in the hosts' memory.
    """
    params = param_shardings(state.params, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    resting = jax.tree.map(_on_host, params) if offload else params
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        resting,
        transform_non_params=lambda _: whole,
    )
    running = jax.tree.map(lambda _: whole, state.running)
    return TrainState(step=whole, params=params, opt_state=moments, ema=resting, running=running)


def _on_host(sharding: NamedSharding) -> NamedSharding:
    return sharding.with_memory_kind("pinned_host")


def place(params: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Put host arrays onto the mesh; every process gives the same arrays and keeps its parts."""
    shardings = param_shardings(params, mesh)
    return {path: _from_host(np.asarray(value), shardings[path]) for path, value in params.items()}


def shape_at(array: jax.ShapeDtypeStruct | Array | ndarray, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array, or of one to be, with the place where it lies."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _from_host(value: ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@dataclass(frozen=True)
class AtRest:
    """An array of the mesh in the hosts' memory, where each process has one copy of what its devices would hold.

    Attributes:
        sharding: where it lies on the mesh. parts: by their indices in the whole array.
    """

    shape: tuple[int, ...]
    sharding: NamedSharding
    parts: Mapping[str, ndarray]

    @classmethod
    def of(cls, value: jax.Array) -> "AtRest":
        """A copy of an array that lies on the mesh."""
        shards = {str(shard.index): shard for shard in value.addressable_shards}
        parts = {index: np.array(shard.data) for index, shard in shards.items()}
        return cls(shape=value.shape, sharding=value.sharding, parts=parts)

    def placed(self) -> jax.Array:
        """The array on the mesh."""
        return jax.make_array_from_callback(self.shape, self.sharding, lambda index: self.parts[str(index)])


def gather(value: jax.Array | AtRest) -> ndarray:
    """The whole of a sharded array, on every host; all processes have to call this together."""
    if isinstance(value, AtRest):
        value = value.placed()
    if not value.is_fully_addressable and not value.is_fully_replicated:
        value = _gathering(value.sharding.mesh)(value)
    return np.asarray(value.addressable_data(0) if value.is_fully_replicated else value)


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Makes an array whole on all devices; kept, for a new function would be compiled anew for each parameter."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


@dataclass(frozen=True)
class BatchLayout:
    """Which rows of a global batch this process loads, and how they become global arrays.

    A batch that does not divide over the devices is kept by several of them whole, and they do the same work twice.
    Devices that share a video hold columns of it.
    """

    mesh: Mesh
    size: int

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes over which the rows are spread: those of ``data`` and ``fsdp`` that divide them most."""
        choices = [BATCH_AXES, *[(name,) for name in BATCH_AXES], ()]
        return max((axes for axes in choices if self.size % self._parts(axes) == 0), key=self._parts)

    @property
    def parts(self) -> int:
        """In how many parts the rows are."""
        return self._parts(self.axes)

    def _parts(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[name] for name in axes)

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows that the devices of this process need, ascending."""
        indices = self.sharding((self.size,)).addressable_devices_indices_map((self.size,)).values()
        return sorted({row for (rows,) in indices for row in range(self.size)[rows]})

    def sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Where an array of the batch lies: rows over :attr:`axes`, and of [b t h w c] the columns over context."""
        shared = len(shape) == 5 and shape[3] % self.mesh.shape["context"] == 0
        return NamedSharding(self.mesh, PartitionSpec(self.axes, *([None, None, "context"] if shared else [])))

    def place(self, batch: Mapping[str, ndarray]) -> dict[str, jax.Array]:
        """Global arrays of this process's rows, as listed in :attr:`rows`."""
        position = {row: i for i, row in enumerate(self.rows)}

        def globally(values: ndarray) -> jax.Array:
            def part(index: tuple[slice, ...]) -> ndarray:
                rows = range(self.size)[index[0]]
                return values[position[rows[0]] : position[rows[0]] + len(rows), *index[1:]]

            shape = (self.size, *values.shape[1:])
            return jax.make_array_from_callback(shape, self.sharding(shape), part)

        return {key: globally(values) for key, values in batch.items()}


def place_whole(batch: Mapping[str, ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of a batch that every process has whole."""
    layout = BatchLayout(mesh, len(next(iter(batch.values()))))
    return layout.place({key: values[layout.rows] for key, values in batch.items()})


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, called with the mesh in sight, which the networks' constraints look for."""

    def call(*args: Any, **options: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args, **options)

    return call


def spec_table(
    params: Mapping[str, Any], mesh: Mesh | AbstractMesh, *, dtype_bytes: int = 4
) -> list[tuple[str, tuple[int, ...], PartitionSpec, int]]:
    """Rows ``(path, shape, spec, bytes per device)`` of every parameter."""
    rows = []
    for path, sharding in param_shardings(params, mesh).items():
        shape = tuple(params[path].shape)
        local = sharding.shard_shape(shape)
        rows.append((path, shape, sharding.spec, math.prod(local) * dtype_bytes))
    return rows
