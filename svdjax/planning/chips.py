"""The kinds of TPU chip, and the devices of a slice that is not there."""

import os
import re
from dataclasses import dataclass

import jax

from svdjax.errors import UserError, require


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What a chip has: memory that a program may use in GiB, and bytes/s of all its links (vendor's pages)."""

    hbm_gib: float
    link_bandwidth: float


CHIPS = {
    "v4": Chip(hbm_gib=30.75, link_bandwidth=300e9),
    "v5e": Chip(hbm_gib=15.75, link_bandwidth=200e9),
    "v5p": Chip(hbm_gib=95.74, link_bandwidth=600e9),
    "v6e": Chip(hbm_gib=31.25, link_bandwidth=448e9),
}
# What libtpu would otherwise ask the machines of Google for, and warn of when there is no answer.
_ELSEWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def _slices_of(topology: str) -> tuple[int, str]:
    """How many slices a name stands for, and the name of one."""
    several = re.fullmatch(r"([1-9]\d*)x(v.*)", topology)
    return (int(several[1]), several[2]) if several else (1, topology)


def chip_of(topology: str) -> Chip:
    """The chip of which a slice such as ``v5e:4x4``, or several such as ``2xv5e:4x4``, are made."""
    return CHIPS[_slices_of(topology)[1].split(":")[0]]


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a slice by its name, whether it is there or not.

    ``v5e:1`` is a single chip; ``2xv5e:4x4`` are two slices, between which there is only the data centre's network.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    require("libtpu", "tpu")
    slices, one = _slices_of(name)
    kind, _, shape = one.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology {name}: give a kind of chip ({', '.join(CHIPS)}) and a shape, as in v5e:4x4")
    for variable, value in _ELSEWHERE.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies  # loads libtpu, which reads the variables

    single = slices == 1 and shape in ("1", "1x1", "1x1x1")  # libtpu knows hosts only, none of which has one chip
    host = f"{kind}:2x2" + ("x1" if kind in ("v4", "v5p") else "")
    # Both cores of a chip as one device, as in a run.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    options |= {"num_slices": slices} if slices > 1 else {}
    try:
        devices = list(topologies.get_topology_desc(host if single else one, "tpu", **options).devices)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--topology {name}: libtpu knows no such slice ({reason})") from None
    return devices[:1] if single else devices
