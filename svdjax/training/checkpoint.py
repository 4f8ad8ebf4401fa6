"""Checkpoints: the training state, the position in the data and the resolved configuration, saved together.

=================  ==========================================================================================
``200/``           the checkpoint of step 200; it gets this name, at once, when all of it is written
``state/``         the training state, by orbax: each process writes its shards
``run.json``       step, position in the data, validation loss and configuration
``contents.json``  the sizes of all files: a checkpoint is whole if they are as listed
=================  ==========================================================================================
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from svdjax.conversion.contents import CONTENTS, find_damage, write_contents
from svdjax.errors import UserError
from svdjax.training import processes
from svdjax.training.keep import Keep
from svdjax.training.state import TrainState
from svdjax.typing import Array, Bool, PyTree

log = logging.getLogger(__name__)
# What goes wrong in orbax is raised as well, and said here in one line; its log adds tracebacks of its threads.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

_RUN = "run.json"


class Checkpoints:
    """The checkpoints of one stage, in one directory that all processes see; a context manager.

    Saving happens in the background. With several processes, each calls every method, at the same step. A damaged
    checkpoint is named in the log and passed over; it stays until a newer one is whole, or its step is saved anew.
    """

    def __init__(self, directory: Path, *, keep: Keep | None = None) -> None:
        """Look at what is there.

        Args:
            directory: is made if need be. keep: which checkpoints stay; by default as ``Keep()`` says.

        Raises:
            UserError: the directory cannot be made or read.
        """
        self._directory, self._keep = directory.absolute(), keep or Keep()
        self._run: dict[str, Any] = {}  # what is written into the checkpoint that is being saved
        context = ocp.Context()
        context.array.saving.use_compression = False  # random-looking bits: zstd costs time and saves 10 %
        # Called by the first process when all others have written, before the checkpoint gets its name.
        # A function, for orbax copies its options deeply, and a bound method with all of this object.
        context.async_options.post_finalization_callback = lambda: self._seal()
        with _explained(self._directory, "cannot be used"):
            if jax.process_index() == 0:
                self._remove_partial()
            self._checkpointer = ocp.training.Checkpointer(
                self._directory, context=context, preservation_policy=self
            )
            self._losses = self._look()
            self._checkpointer.reload()  # it has looked for itself, perhaps before this process saw the newest

    def _remove_partial(self) -> None:
        """Remove what a killed run did not finish; orbax would do so while it saves the step anew."""
        for partial in self._directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(partial)

    def _look(self) -> dict[int, float | None]:
        """Validation losses of the whole checkpoints, by step; names the others."""
        losses, damages = whole_checkpoints(self._directory)
        for step, damage in damages.items() if jax.process_index() == 0 else ():
            log.warning("%s: the checkpoint of step %d is damaged and passed over", damage, step)
        # Another process may see the files later, or come here later: the first one says which is the newest.
        newest = processes.of_main(max(losses, default=-1), "checkpoints read")

        def those_of_main() -> dict[int, float | None]:
            losses, _ = whole_checkpoints(self._directory)
            if newest >= 0 and newest not in losses:
                raise processes.unseen(self._directory / str(newest))
            return {step: loss for step, loss in losses.items() if step <= newest}

        return processes.patiently(those_of_main)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as failed:
            if error is None:
                raise
            log.warning("%s", failed)  # what ended the run is raised
        finally:
            with suppress(OSError, ValueError):  # of a save whose failure `wait` has said
                self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None; one that is being saved is none yet."""
        return max((step for step in self._losses if step != self._run.get("step")), default=None)

    def save(
        self, state: TrainState, *, position: Mapping[str, Any], config: str, loss: float | None = None
    ) -> None:
        """Start to save; a step that is already saved stays as it is.

        Args:
            state: named by its step; it may be given away (donated) once this returns.
            position: where the data goes on, the same in every process; what JSON can hold.
            config: the resolved configuration as JSON.
            loss: of a validation at this step, where there was one; without it, it is none of the best.

        Raises:
            UserError: the state has values that are not finite, or this or the last save failed (a full disk).
        """
        self.wait()
        step = int(state.step)
        if step in self._losses:
            return
        if not all_finite(state):
            raise UserError(
                f"step {step}: the training state has values that are not finite and is not saved: lower the "
                f"learning rate, and run again to go on from {self._newest()}"
            )
        measured = loss if loss is not None and math.isfinite(loss) else None
        self._run = {"step": step, "position": dict(position), "loss": measured, "config": json.loads(config)}
        self._losses[step] = measured
        with self._saving():
            self._checkpointer.save_checkpointables_async(step, {"state": state}, force=True, overwrite=True)

    def _seal(self) -> None:
        step = self._run["step"]
        folder = next(self._directory.glob(f"{step}.*"), self._directory / str(step))  # not yet renamed
        (folder / _RUN).write_text(json.dumps(self._run, indent=2), "utf-8")
        write_contents(folder / CONTENTS, folder)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: ocp.training.preservation_policies.PreservationContext
    ) -> list[bool]:
        """Orbax asks this when it starts to save, and removes the others when it has saved."""
        kept = self._keep.kept(self._losses)
        newest_whole = self.latest
        return [
            found.step in kept
            or (found.step not in self._losses and (newest_whole is None or found.step > newest_whole))
            for found in checkpoints
        ]

    def restore(self, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Read the newest whole checkpoint.

        Args:
            shapes: a ``jax.ShapeDtypeStruct`` with a sharding for every array; mesh and number of processes may be
                others than those that saved.

        Returns:
            The state, and the position in the data that was saved with it.

        Raises:
            UserError: there is none, it is damaged, or it holds other parameters than ``shapes``.
        """
        self.wait()
        step = self.latest
        if step is None:
            raise UserError(f"{self._directory}: holds no whole checkpoint")
        what = "is damaged, or of another configuration or version"
        with _explained(self._directory / str(step), what, "remove it, or choose another --out"):
            saved = self._checkpointer.checkpointables_metadata(step).metadata["state"]
            # Orbax would find another shape only while it reads, and its other reads complain in the background.
            if changed := _leaves(saved).items() ^ _leaves(shapes).items():
                raise ValueError(" or ".join(f"{name} {kind}" for name, kind in sorted(changed)[:2]))
            state = self._checkpointer.load_checkpointables(step, {"state": shapes})["state"]
            return state, json.loads((self._directory / str(step) / _RUN).read_text("utf-8"))["position"]

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            UserError: it failed; the older checkpoints are as they were.
        """
        with self._saving():
            self._checkpointer.wait()
        self._run = {}

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            path = self._directory / str(self._run.get("step", ""))
            with _explained(path, "cannot be saved", f"make room, and run again to go on from {self._newest()}"):
                yield
        except BaseException:
            self._losses.pop(self._run.get("step"), None)
            self._run = {}
            raise

    def _newest(self) -> str:
        return "the start" if self.latest is None else f"step {self.latest}"


def whole_checkpoints(directory: Path) -> tuple[dict[int, float | None], dict[int, str]]:
    """What a directory of `Checkpoints` holds; nothing is changed there, and a run may be writing into it.

    Returns:
        By step, the validation loss of each whole checkpoint (None where none was measured), and what is wrong with
        each damaged one.
    """
    losses, damages = {}, {}
    for folder in directory.glob("[0-9]*"):
        if not folder.name.isdecimal():  # one that is being written
            continue
        with suppress(FileNotFoundError):  # one that the run has just removed
            if damage := find_damage(folder / CONTENTS, folder):
                damages[int(folder.name)] = damage
            else:
                losses[int(folder.name)] = json.loads((folder / _RUN).read_text("utf-8"))["loss"]
    return losses, damages


def read_average(folder: Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Read nothing but the averaged parameters of the checkpoint in a folder.

    Args:
        folder: named by its step. shapes: of the trained parameters by dotted path, each with a sharding.

    Raises:
        UserError: it is damaged, or holds other parameters.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    what, remedy = "is gone, damaged, or of another configuration or version", "run again, or take another --step"
    with _explained(folder.absolute(), what, remedy), context:
        saved = ocp.checkpointables_metadata(folder.absolute()).metadata["state"]["ema"]
        if changed := _leaves(saved).items() ^ _leaves(dict(shapes)).items():
            raise ValueError(" or ".join(f"{name} {kind}" for name, kind in sorted(changed)[:2]))
        found = ocp.load_checkpointables(folder.absolute(), {"state": {"ema": dict(shapes)}})
    return dict(found["state"]["ema"])


@contextmanager
def _explained(path: Path, what: str, remedy: str = "choose another place") -> Iterator[None]:
    """Turn errors of files into one line; orbax and tensorstore raise many kinds."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, UserError):  # the former of the device, e.g. out of memory
        raise
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise UserError(f"{path}: {what} ({_reason(error)}): {remedy}") from error


def _reason(error: Exception) -> str:
    """In a few words: tensorstore says every call and path on the way to "No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return first.rsplit(": ", 1)[-1].split(" [os_error_code")[0] if "os_error_code" in first else first


def _leaves(tree: PyTree) -> dict[str, str]:
    """Type and shape by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{x.dtype}{list(x.shape)}" for path, x in leaves
    }


@jax.jit
def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating-point array of the tree has an infinite or undefined value."""
    # What rests in the host's memory is looked at on the device: not every backend computes there.
    on_device = jax.device_put(tree, jax.memory.Space.Device)
    floating = (leaf for leaf in jax.tree.leaves(on_device) if jnp.issubdtype(leaf.dtype, jnp.floating))
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floating]))
