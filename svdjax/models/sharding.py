"""Where activations live on a mesh: videos over "data" and "fsdp", the columns of one video over "context"."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

from svdjax.typing import Array, Shaped

# Columns, for they divide by 2, 4 and 8 at every level of a 576x1024 video (128, 64, 32 and 16 of them), whereas
# 25 frames divide at none, and 72, 36, 18 and 9 rows by 2 at three levels only.
MESH_AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"b": ("data", "fsdp"), "w": ("context",), "frames": ("context",)}
)


def constrain(x: Shaped[Array, "..."], axes: str = "b ... w c") -> Shaped[Array, "..."]:
    """Say how an array lies on the mesh of ``jax.set_mesh``; without one, the array as it is.

    Inside ``jax.shard_map`` nothing happens either: there each device has its own arrays. Values never change.

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
    mesh = get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return 1
    return mesh.shape.get("context", 1)


def _mesh_axes(size: int, letter: str) -> tuple[str, ...] | None:
    mesh = get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return None
    chosen, parts = [], 1
    for name in MESH_AXES.get(letter, ()):
        length = mesh.shape.get(name, 1)
        if length > 1 and size % (parts * length) == 0:
            chosen.append(name)
            parts *= length
    return tuple(chosen) or None
