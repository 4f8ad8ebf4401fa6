"""The mesh of devices that a run trains on: one slice, several, or the devices of an ahead-of-time topology."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from svdjax.errors import UserError

AXES = ("data", "fsdp", "context")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are divided: ``data x fsdp x context``, where ``data`` takes what the others leave.

    Clips are spread over ``data`` and ``fsdp``; parameters, moments and average are cut into ``fsdp x context``
    parts, all of which each copy of the model (there are ``data`` of them) holds.

    Attributes:
        fsdp: None is all devices of a slice: least memory, and only gradients travel between slices.
        context: devices that share one video, for videos too large for one.
    """

    fsdp: int | None = None
    context: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices so that neighbours on an axis are neighbours in the network.

    Args:
        config: the sizes of the axes.
        devices: of this run, or of a topology that is compiled for; None for all that JAX has.

    Returns:
        A mesh with axes ``data``, ``fsdp``, ``context`` of type Auto: `jax.jit` decides what moves where. Slices
        of several are neighbours on ``data`` only.

    Raises:
        UserError: the sizes do not divide the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    per_slice = len(devices) // slices
    if config.context < 1 or (config.fsdp is not None and config.fsdp < 1):
        raise UserError("--mesh.fsdp and --mesh.context must be at least 1")
    fsdp = config.fsdp or max(per_slice // config.context, 1)
    if per_slice % (fsdp * config.context):
        raise UserError(
            f"--mesh.fsdp {fsdp} x --mesh.context {config.context} does not divide the {per_slice} devices "
            f"of {'each slice' if slices > 1 else 'this run'}: choose divisors"
        )
    shape = (per_slice // (fsdp * config.context), fsdp, config.context)
    # Splitting a physical axis is allowed, or some slices (4 x 16 on v6e:8x8) could not be arranged at all.
    if slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1, 1), devices, allow_split_physical_axes=True, process_is_granule=False
        )
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(array), AXES, axis_types=(AxisType.Auto,) * 3)
