"""The processes of a run: one per host of a pod, or just one; process 0 writes what is written once."""

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn
from rich.console import Console

from svdjax.errors import UserError

Found = TypeVar("Found")
# Seconds without a sign of life after which a process is given up for dead, and the others end too.
_HEARTBEAT = 100
# How long process 0 may let the others wait, e.g. while it measures a data set: a dead one ends the wait at once.
_PATIENCE_MS = 24 * 60 * 60 * 1000
# How long another process may not see what process 0 has written: NFS remembers a minute what was not there.
_SIGHT_S = 60
_barriers = itertools.count()
# How the collectives of CPU, GPU and TPU say that their peer is gone.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|CoordinationService|[Cc]onnection (reset|closed)|[Hh]eartbeat")


def start() -> None:
    """Join the other processes of this run; before anything else is done with JAX.

    On Cloud TPU, GKE and Slurm the addresses are found out; elsewhere they come from the environment variables
    ``JAX_COORDINATOR_ADDRESS`` (``host:port`` of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. A
    process that gives no sign of life for ``SVDJAX_HEARTBEAT`` seconds (100) is taken for dead; the others end.

    Raises:
        UserError: the processes do not find each other, or a variable is missing or no number.
    """
    given = {name: os.environ.get(f"JAX_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")}
    if any(given.values()) and not all(given.values()):
        missing = ", ".join(f"JAX_{name}" for name, value in given.items() if not value)
        raise UserError(f"--distributed: set {missing} too, or none of the three where they can be found out")
    try:
        numbers = {
            name.lower(): value if name.endswith("ADDRESS") else int(value)
            for name, value in given.items()
            if value
        }
        heartbeat = int(os.environ.get("SVDJAX_HEARTBEAT", _HEARTBEAT))
        jax.distributed.initialize(**numbers, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--distributed: the processes did not find each other ({reason})") from None


@contextmanager
def explain_loss() -> Iterator[None]:
    """Say in one line that another process is gone, where a collective operation fails for it.

    Where none does, JAX ends this process once the heartbeat is missed, with a line of its own.

    Raises:
        UserError: another process is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        raise UserError(
            f"another process of this run is gone ({str(error).splitlines()[0]}): its output says why; start all "
            "of them again to go on from the last checkpoint"
        ) from error


def is_main() -> bool:
    """Whether this process writes what is written once: metrics, samples, the finished model."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here; before what they do together, where some may come much later than others.

    It is one of JAX's coordination service, not a collective operation of the devices: those of CPUs (gloo) fail
    when a process is 30 seconds late. JAX has no public function for it, so orbax's is used.
    """
    # A name is good for one barrier; all processes meet at the same ones in the same order.
    get_barrier_sync_fn()(key=f"svdjax {next(_barriers)}: {name}", timeout_ms=_PATIENCE_MS)


def of_main(value: int, name: str) -> int:
    """What process 0 has as ``value``, in all processes, which have to call this together.

    What they find in a folder may differ for a while.

    Args:
        value: of this process. name: of the barrier at which they meet.
    """
    barrier(name)
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def patiently(look: Callable[[], Found]) -> Found:
    """Look for what process 0 has written, again and again for a minute: a shared folder may show it late.

    Raises:
        UserError: what ``look`` still raises then.
    """
    deadline = time.monotonic() + _SIGHT_S
    while True:
        try:
            return look()
        except UserError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1)


def see(path: Path) -> None:
    """Wait until this process sees what process 0 sees.

    Raises:
        UserError: it does not within a minute.
    """

    def look() -> None:
        if not path.exists():
            raise unseen(path)

    patiently(look)


def unseen(path: Path) -> UserError:
    """What is wrong where this process does not see what process 0 has written."""
    return UserError(
        f"{path}: process {jax.process_index()} does not see it: either process 0 has stopped, and says why, or "
        "--out is no directory that all processes share"
    )


def check_same_count(count: int, what: str) -> None:
    """See that all processes, which have to call this together, have found as many of something.

    Raises:
        UserError: this one has not: a file that one process cannot read would have each train on other rows.
    """
    theirs = of_main(count, f"{what} counted")
    if theirs != count:
        raise UserError(
            f"process {jax.process_index()} has {count} {what}, process 0 has {theirs}: make the data the same "
            "for all, and readable"
        )


def compiled_together(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same jitted function; with several processes, none runs it before all have compiled it.

    It is compiled once for each combination of the arguments' shapes.
    """
    if jax.process_count() == 1:
        return function
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args))
        if shapes not in compiled:
            compiled[shapes] = function.lower(*args).compile()
            barrier(f"{name} compiled")
        return compiled[shapes](*args)

    return call


@contextmanager
def main_first(name: str) -> Iterator[None]:
    """Process 0 does the block first and the others after it: what it writes, they find."""
    if not is_main():
        barrier(name)
    try:
        yield
    finally:
        if is_main():
            barrier(name)


def console() -> Console:
    """The terminal, for process 0; the others are silent."""
    return Console(quiet=not is_main())
