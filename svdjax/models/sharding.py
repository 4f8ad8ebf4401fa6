"""Where activations live on a mesh: videos over "data" and "fsdp", the columns of one video over "context"."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from jax.sharding import PartitionSpec, get_abstract_mesh

from svdjax.typing import Array, Shaped

# Columns, for they divide by 2, 4 and 8 at every level of a 576x1024 video (128, 64, 32 and 16 of them), whereas
# 25 frames divide at none, and 72, 36, 18 and 9 rows by 2 at three levels only.
MESH_AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"b": ("data", "fsdp"), "w": ("context",), "frames": ("context",)}
)


def constrain(x: Shaped[Array, "..."], axes: str = "b ... w c") -> Shaped[Array, "..."]:
    """Say how an array lies on the mesh of ``jax.set_mesh``; without one, the array as it is.

    Axes of the mesh over which ``jax.shard_map`` is at work count as absent: there each device has its own arrays.
    Values never change.

    Args:
        x: activations.
        axes: a letter for each axis, in the vocabulary of ``svdjax.typing``; ``...`` stands for any number of
            them. ``b`` is split over the mesh axes "data" and "fsdp", ``w`` over "context", every other one over
            none. Videos folded into one axis with their frames count as ``b``. An axis is split only as far as
            it divides evenly.
    """
    spec = spec_of(x.shape, axes)
    return jax.lax.with_sharding_constraint(x, spec) if any(spec) else x


def spec_of(shape: tuple[int, ...], axes: str) -> PartitionSpec:
    """How an array with these axes lies on the mesh of ``jax.set_mesh``; see :func:`constrain`."""
    first, _, last = axes.partition("...")
    letters = first.split() + ["t"] * (len(shape) - len((first + last).split())) + last.split()
    return PartitionSpec(*(_mesh_axes(size, letter) for size, letter in zip(shape, letters, strict=True)))


def context_size() -> int:
    """Number of devices that share one video: the length of the mesh axis "context", 1 without one."""
    return shared_axes().get("context", 1)


def shared_axes() -> dict[str, int]:
    """The axes of the mesh of ``jax.set_mesh``, longer than 1, whose devices share arrays, and their lengths."""
    mesh = get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if size > 1 and name not in mesh.manual_axes}


def _mesh_axes(size: int, letter: str) -> tuple[str, ...] | None:
    shared, chosen, parts = shared_axes(), [], 1
    for name in MESH_AXES.get(letter, ()):
        if name in shared and size % (parts * shared[name]) == 0:
            chosen.append(name)
            parts *= shared[name]
    return tuple(chosen) or None
