"""A whole run: its stages in order, each resumable, and the finished model at the end."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from svdjax.conversion.source import load_model
from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params, initialise, load_flat, param_count
from svdjax.models.svd import SVD
from svdjax.sampling.images import from_uint8
from svdjax.training import hooks as on
from svdjax.training.checkpoint import Checkpoints
from svdjax.training.config import RunConfig, load_config
from svdjax.training.data import Clips, open_clips
from svdjax.training.directory import claim
from svdjax.training.export import save_model
from svdjax.training.loop import Hook, every, stop_on_signals, train
from svdjax.training.optim import make_optimizer
from svdjax.training.samples import write_grid
from svdjax.training.stage import Batch, Stage
from svdjax.training.state import TrainState, new_state
from svdjax.training.step import Frozen, make_train_step
from svdjax.typing import Array

VALIDATION_BATCHES = 4
GRID_ROWS = 4
DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def main(argv: Sequence[str]) -> int:
    """``svdjax train [CONFIG.py] [--option value ...]``; 0 when finished, or when stopped after saving."""
    run(load_config(argv, default=DEMO))
    return 0


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop; the same command goes on from here."""

    stage: str
    step: int


def run(config: RunConfig, console: Console | None = None) -> Path | Stopped:
    """Run the stages that are not finished yet, then export the model and a grid of samples.

    Returns:
        The path of the finished ``model.safetensors``, or where the run stopped (SIGTERM, Ctrl-C) after saving.

    Raises:
        UserError: the loss is no longer finite, the directory holds another run, or the data is unusable.
    """
    console = console or Console()
    claim(config)
    clips = open_clips(config.data, console)
    model = _initial_model(config)
    console.print(f"{param_count(model):,} parameters, {len(clips.train):,} clips; writing to {config.out}")
    with stop_on_signals() as stop:
        for stage in config.stages():
            finished = config.out / stage.name / "model.safetensors"
            if not finished.exists():
                stopped = StageRun(config, stage, model, clips, console).train(stop)
                if stopped:
                    console.print(f"stopped and saved at step {stopped.step} of {stage.name}: run again to go on")
                    return stopped
            model = load_model(finished, dtype=np.float32)
    return _export(config, model, clips, console)


def _initial_model(config: RunConfig) -> SVD:
    """Random weights, or those of a checkpoint of the same sizes, with its scaling of the latents."""
    if config.init_from is None:
        return initialise(SVD, config.model, config.seed)
    loaded = load_model(config.init_from, dtype=np.float32)
    ours, theirs = config.model, loaded.config
    vae = dataclasses.replace(ours.vae, scaling_factor=theirs.vae.scaling_factor)
    # None of these matters to the weights, which nevertheless have the same shapes with other heads or norm groups.
    unet = dataclasses.replace(theirs.unet, norm_eps=ours.unet.norm_eps, remat=ours.unet.remat)
    their_vae = dataclasses.replace(theirs.vae, remat=ours.vae.remat)
    for name, wanted, found in (("unet", ours.unet, unet), ("vae", vae, their_vae)):
        for key, value in dataclasses.asdict(wanted).items():
            if value != getattr(found, key):
                raise UserError(
                    f"--init-from {config.init_from}: its {name} has {key} {getattr(found, key)}, the model of "
                    f"this run {value}: give another checkpoint, or change model.{name}"
                )
    model = dataclasses.replace(ours, vae=vae)
    return load_flat(abstract(SVD, model), flat_params(loaded), what=config.init_from)


def _export(config: RunConfig, model: SVD, clips: Clips, console: Console) -> Path:
    path = config.out / "model.safetensors"
    save_model(model, path, dtype=config.export_dtype)
    written = [path]
    if config.unet is not None:
        written += write_grid(model, _grid_images(clips), config.out / "samples")
    for each in written:
        console.print(str(each))
    return path


def _grid_images(clips: Clips) -> np.ndarray:
    return from_uint8(clips.held_out(batch=GRID_ROWS, count=1)[0]["video"][:, 0])


class StageRun:
    """One stage of a run: its parameters, data, compiled step and hooks."""

    def __init__(self, config: RunConfig, stage: Stage, model: SVD, clips: Clips, console: Console) -> None:
        self.config, self.stage, self.model, self.clips, self.console = config, stage, model, clips, console
        self.directory = config.out / stage.name
        flat = flat_params(model)
        self.params = {path: value for path, value in flat.items() if stage.trains(path)}
        self.frozen: Frozen = {path: value for path, value in flat.items() if not stage.trains(path)}
        if not self.params:
            raise UserError(f"stage {stage.name} trains no parameter of this model: check the configuration")
        self.validation: Sequence[Batch] = stage.held_out(clips, count=VALIDATION_BATCHES)

    def train(self, stop: Callable[[], bool]) -> Stopped | None:
        """Train to the end and write the stage's model; or save a checkpoint and say where it stopped."""
        stage = self.stage
        data = stage.iterator(self.model, self.clips, seed=self.config.seed)
        self.directory.mkdir(parents=True, exist_ok=True)
        optimizer = make_optimizer(stage.optim, stage.steps)
        state = new_state(self.params, optimizer)
        with (
            Checkpoints(self.directory / "checkpoints", keep=stage.keep) as checkpoints,
            on.progress_bar(stage, self.console) as bar,
        ):
            if checkpoints.latest is not None:
                state = checkpoints.restore(state, data)
                self.console.print(f"{stage.name}: resuming at step {checkpoints.latest}")
            state = train(
                state,
                self.frozen,
                data,
                train_step=make_train_step(stage, abstract(SVD, self.model.config), optimizer, self.config.seed),
                steps=stage.steps,
                hooks=[every(1, bar), *self._hooks(checkpoints, data)],
                stop=stop,
            )
            if int(state.step) < stage.steps:
                if not jnp.isfinite(optax.tree.norm(state.params)):
                    raise UserError(
                        f"stage {stage.name} stopped at step {int(state.step)} with weights that are not finite, "
                        f"which are not saved: lower --{stage.name}.optim.rate, and run again"
                    )
                checkpoints.save(state, data, self.config.to_json())
                return Stopped(stage.name, int(state.step))
        self._finish(state)
        return None

    def _hooks(self, checkpoints: Checkpoints, data: object) -> list[Hook]:
        stage = self.stage
        log = on.MetricsLog(self.directory / "metrics.jsonl", stage, self.console)
        shapes = abstract(SVD, self.model.config)
        save = on.save_checkpoint(checkpoints, data, self.config.to_json(), stage.name)
        return [
            every(stage.log_every, log),
            every(stage.checkpoint_every, save),
            every(stage.validate_every, on.validate(stage, shapes, self.frozen, self.validation, log)),
            every(stage.sample_every, on.sample_grid(self._write_grid, self.directory / "samples")),
        ]

    def _write_grid(self, ema: dict[str, Array], path: Path) -> None:
        write_grid(self._with(ema), _grid_images(self.clips), path)

    def _with(self, params: dict[str, Array]) -> SVD:
        shapes = abstract(SVD, self.model.config)
        return load_flat(shapes, {**params, **self.frozen}, what="the trained model")

    def _finish(self, state: TrainState) -> None:
        model = self._with(state.ema)
        config = self.stage.finish(model, self.validation)
        model = load_flat(abstract(SVD, config), flat_params(model), what="the trained model")
        save_model(model, self.directory / "model.safetensors")
