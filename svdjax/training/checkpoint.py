"""Checkpoints: the training state, the position in the data and the resolved configuration, saved together."""

import json
from pathlib import Path
from types import TracebackType

import grain
import jax
from orbax.checkpoint import v1 as ocp

from svdjax.errors import UserError
from svdjax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one stage, in one directory; the newest ``keep`` stay.

    Saving happens in the background; a checkpoint appears under its final name only when it is whole.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState, *, position, config: str, loss=None) -> None:
        """Start to save; a step that is already saved stays as it is.

        Args:
            state: named by its step.
            data: the iterator; its position when this is called is what is saved.
            config: the resolved configuration as JSON.
        """
        step = int(state.step)
        if step != self.latest:
            self._checkpointer.save_checkpointables_async(
                step, {"state": state, "data": position}, force=True, custom_metadata=json.loads(config)
            )

    def restore(self, shapes):
        """Read the newest checkpoint: returns its state, and sets ``data`` to its position.

        Args:
            state: a state of the same shapes, values unused.
            data: the iterator to move.

        Raises:
            UserError: the checkpoint is damaged, or holds other parameters than this configuration.
        """
        try:
            loaded = self._checkpointer.load_checkpointables(self.latest, {"state": shapes, "data": {"next_batch": 0, "clips": 0}})
        except jax.errors.JaxRuntimeError:  # of the device, e.g. out of memory
            raise
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{self._checkpointer.directory}/{self.latest}: this checkpoint is damaged or of another "
                f"configuration ({reason}): remove it to go on from the one before, or choose another --out"
            ) from error
        return loaded["state"], loaded["data"]

    def wait(self) -> None:
        """Wait until the last save is on disk."""
        self._checkpointer.wait()
