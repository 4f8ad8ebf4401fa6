"""One stage of a run: its parameters on the mesh, its data, its compiled step, its hooks and its checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from svdjax.data.pipeline import stream
from svdjax.errors import UserError
from svdjax.models.params import cast_floating
from svdjax.training import hooks as on
from svdjax.training import processes
from svdjax.training.checkpoint import Checkpoints
from svdjax.training.config import RunConfig
from svdjax.training.data import Clips
from svdjax.training.loop import Hook, every, train
from svdjax.training.metrics import MetricsLog
from svdjax.training.model import Model
from svdjax.training.optim import make_optimizer
from svdjax.training.samples import grid_clips, write_grid
from svdjax.training.sharding import AtRest, BatchLayout, on_mesh, place_whole, shape_at, state_shardings
from svdjax.training.stage import Batch, Stage
from svdjax.training.state import TrainState, new_state
from svdjax.training.step import Frozen, compiled_loss, make_train_step
from svdjax.typing import Array

# Every process has the validation clips in memory, whole, and reads them before the first step.
VALIDATION_BATCHES, VALIDATION_CLIPS = 4, 64


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop; the same command goes on from here."""

    stage: str
    step: int


def validation_size(part: int, spread: int) -> tuple[int, int]:
    """Clips of a validation batch, and how many batches to take.

    They are as large as training's, up to `VALIDATION_CLIPS` in all: the same clips with the same noise wherever
    ``spread`` divides these. What is spread further has one clip everywhere.

    Args:
        part: clips that training takes at once.
        spread: groups of devices that each take as many of them.
    """
    batch = min(part, max(spread, VALIDATION_CLIPS // spread * spread))
    return batch, max(1, min(VALIDATION_BATCHES, VALIDATION_CLIPS // batch))


class StageRun:
    """One stage of a run, on a mesh."""

    def __init__(
        self, config: RunConfig, stage: Stage, model: Model, clips: Clips, mesh: Mesh, console: Console
    ) -> None:
        """Nothing is trained or read yet but the validation clips.

        Raises:
            UserError: the stage trains no parameter of this model.
        """
        model = stage.begin(model, seed=config.seed, mesh=mesh)
        self.config, self.stage, self.model, self.clips = config, stage, model, clips
        self.mesh, self.console = mesh, console
        self.directory = config.out / stage.name
        if not any(stage.trains(path) for path in model.params):
            raise UserError(f"stage {stage.name} trains no parameter of this model: check the configuration")
        self.params = {path: value for path, value in model.params.items() if stage.trains(path)}
        self.rest = {path: value for path, value in model.params.items() if path not in self.params}
        self.frozen: Frozen = jax.jit(cast_floating, static_argnums=1)(self.rest, jnp.dtype(stage.compute_dtype))
        self.optimizer = make_optimizer(stage.optim, stage.steps)
        self.start = partial(new_state, optimizer=self.optimizer)
        shapes = jax.eval_shape(self.start, self.params)
        self.shardings = state_shardings(shapes, self.optimizer, mesh, offload=stage.offload)
        self.shapes = jax.tree.map(shape_at, shapes, self.shardings)
        self.layout = BatchLayout(mesh, stage.batch)
        part = stage.batch // stage.accumulate
        batch, count = validation_size(part, BatchLayout(mesh, part).parts)
        self.validation: Sequence[Batch] = [
            self._prepared(batch) for batch in stage.held_out(clips, batch=batch, count=count)
        ]

    def train(self, stop: Callable[[int], bool]) -> Stopped | Model:
        """Train to the end and write the stage's model; or save a checkpoint and say where it stopped.

        Returns:
            Where it stopped; or the model that it began with, for `Stage.read`: of its parameters those that were
            trained are deleted, and those that were frozen may be at rest. The model that was given is used up.
        """
        stage = self.stage
        make_batches = on_mesh(self.mesh, stage.batches)
        batches = make_batches(self.model.module, self.clips, seed=self.config.seed, rows=self.layout.rows)
        self._rest()
        step = make_train_step(stage, self.model.shapes, self.optimizer, self.config.seed, self.shardings)
        with (
            Checkpoints(self.directory / "checkpoints", keep=stage.keep) as checkpoints,
            on.watching(
                self.config,
                stage,
                self.console,
                saved=lambda: checkpoints.latest,
                flops_per_clip=on.clip_flops(stage, self.model.config, lambda: self._prepared(batches[0])),
            ) as watch,
        ):
            guard = on.Guard(stage)
            save = partial(self._save, checkpoints, guard, watch.log)
            state = self._state(checkpoints)
            state = train(
                state,
                self.frozen,
                stream(
                    batches,
                    start=int(state.step),
                    threads=self.config.data.threads,
                    workers=self.config.data.workers,
                ),
                train_step=on_mesh(self.mesh, processes.compiled_together(step, f"step of {stage.name}")),
                place=self._place,
                steps=stage.steps,
                hooks=[guard, *watch.hooks, *self._hooks(save, watch.log)],
                stop=stop,
            )
            if int(state.step) < stage.steps:
                save(state)
                return Stopped(stage.name, int(state.step))
        self._finish(state)
        return self.model

    def _rest(self) -> None:
        """Take the frozen parameters to the hosts' memory, but for those that networks compute with as they are.

        Only what is written needs them; on the devices they would take twice the room of ``self.frozen``.
        """
        moved = {path: value for path, value in self.rest.items() if value.dtype != self.frozen[path].dtype}
        at_rest = {path: AtRest.of(value) for path, value in moved.items()}
        for value in moved.values():
            value.delete()
        self.rest = {**self.rest, **at_rest}
        self.model = replace(self.model, params={**self.model.params, **at_rest})

    def _state(self, checkpoints: Checkpoints) -> TrainState:
        """The newest checkpoint, or the state before the first step; the parameters go into it, or are given up."""
        params, self.params = self.params, {}
        if checkpoints.latest is None:
            return jax.jit(self.start, out_shardings=self.shardings, donate_argnums=0)(params)
        for value in params.values():  # which the run's model has too: they would stay until the stage's end
            value.delete()
        state, position = checkpoints.restore(self.shapes)
        self._check(position, int(state.step))
        self.console.print(f"{self.stage.name}: resuming at step {int(state.step)}")
        return state

    def _place(self, batch: Batch) -> Batch:
        return self.layout.place(self._prepared(batch))

    def _prepared(self, batch: Batch) -> Batch:
        return self.stage.prepare(self.model.config, batch)

    def _hooks(self, save: Callable[[TrainState], None], log: MetricsLog) -> list[Hook]:
        stage = self.stage
        loss = compiled_loss(stage.for_validation(), self.model.shapes, self.mesh)
        loss = on_mesh(self.mesh, processes.compiled_together(loss, f"loss of {stage.name}"))
        return [
            every(stage.validate_every, on.validate(loss, self._averages, self.frozen, self._held_out, log)),
            every(stage.checkpoint_every, lambda moment: save(moment.state)),
            every(stage.sample_every, on.sample_grid(self._averages, self._write_grid, self.directory / "samples")),
        ]

    def _held_out(self) -> Iterator[Batch]:
        """The validation batches on the mesh, one at a time: between validations they take no room there."""
        return (place_whole(batch, self.mesh) for batch in self.validation)

    def _averages(self, state: TrainState) -> Mapping[str, Array]:
        """The averaged parameters where networks compute with them, though they may rest in the host's memory."""
        return jax.device_put(state.ema, self.shardings.params)

    def _position(self, step: int) -> dict[str, int]:
        """Where the data goes on, and how much of it there is: with other clips, the order would be another."""
        return {"next_batch": step, "clips": len(self.clips.train)}

    def _check(self, position: Mapping[str, int], step: int) -> None:
        if position != self._position(step):
            raise UserError(
                f"{self.directory} was trained on {position.get('clips')} clips, now there are "
                f"{len(self.clips.train)}: give it the same data, or choose another --out"
            )

    def _save(self, checkpoints: Checkpoints, guard: on.Guard, log: MetricsLog, state: TrainState) -> None:
        guard.check()
        step = int(state.step)
        checkpoints.save(
            state,
            position=self._position(step),
            config=self.config.to_json(),
            loss=log.measured("val_loss", step),
        )

    def _averaged(self, ema: Mapping[str, Array]) -> Model:
        return replace(self.model, params={**ema, **self.rest})

    def _write_grid(self, ema: Mapping[str, Array], path: Path) -> None:
        whole = self._averaged(ema).whole(self.stage.compute_dtype)
        if processes.is_main():
            write_grid(whole, grid_clips(self.clips, whole.config.defaults.frames), path)
        processes.barrier("samples written")

    def _finish(self, state: TrainState) -> None:
        averages = self._averages(state)
        module = replace(self.model, params={**averages, **self.frozen}).module
        config = on_mesh(self.mesh, self.stage.finish)(module, list(self._held_out()))
        self.stage.save(replace(self._averaged(averages), config=config), self.directory / self.stage.result)
        processes.barrier(f"{self.stage.name} finished")
