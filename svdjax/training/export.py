"""``svdjax export``: the model of one of a run's checkpoints, as a file to sample from and to start from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from svdjax.errors import UserError, check_local
from svdjax.training.checkpoint import read_average, whole_checkpoints
from svdjax.training.config import RunConfig, load_with
from svdjax.training.directory import check_run
from svdjax.training.keep import best_of
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.model import Model
from svdjax.training.run import DEMO, start
from svdjax.training.sharding import shape_at
from svdjax.training.stage import Stage
from svdjax.training.vae_stage import VAEStage
from svdjax.typing import Array


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the averaged weights of a checkpoint: ``svdjax export CONFIG.py --to FILE [--option value ...]``.

    All other options are those with which ``svdjax train`` was called, but ``--distributed`` and ``--mesh...``: one
    process does it, on its own devices. The clips are not needed, nothing is changed in the run's directory, and
    the run may be going on.

    Attributes:
        to: the ``.safetensors`` file to write: a whole model, or of a LoRA's run the LoRA.
        step: which checkpoint: its number, ``best`` for the lowest validation loss, or ``last``.
    """

    to: Path
    step: str = "best"

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: ``to`` is an address.
        """
        check_local("to", self.to)


def main(argv: Sequence[str]) -> None:
    """``svdjax export [CONFIG.py] --to FILE [--step N|best|last] [--option value ...]``."""
    options, config = load_with(Export, argv, command="export", default=DEMO)
    export(options, config, Console())


def export(options: Export, config: RunConfig, console: Console) -> int:
    """Write the model of a checkpoint of the run's last stage that has begun.

    Returns:
        The checkpoint's step.

    Raises:
        UserError: ``to`` exists, there is no such run or checkpoint, or it is damaged.
    """
    if options.to.suffix != ".safetensors" or options.to.exists():
        wrong = "exists" if options.to.exists() else "does not end with .safetensors"
        raise UserError(f"--to {options.to}: {wrong}: choose another name")
    check_run(config)
    stages = config.stages()
    begun = [number for number, stage in enumerate(stages) if whole_checkpoints(_checkpoints(config, stage))[0]]
    if not begun:
        raise UserError(f"--out {config.out}: no stage of this run has saved a checkpoint yet: wait for one")
    *before, stage = stages[: begun[-1] + 1]
    if isinstance(stage, VAEStage):
        raise UserError(
            f"{config.out / stage.name}: how the latents are scaled is measured at this stage's end: take the "
            f"{stage.result} that it then leaves there"
        )
    _chosen(options.step, _checkpoints(config, stage))  # a mistake shows before the weights are read
    mesh = make_mesh(MeshConfig())
    model = start(config, mesh, console)
    for done in before:
        model = done.read(model, config.out / done.name / done.result, mesh=mesh)
    model = stage.begin(model, seed=config.seed, mesh=mesh)
    step = _chosen(options.step, _checkpoints(config, stage))  # a run that goes on may have removed the other
    params = {**model.params, **_averages(stage, model, _checkpoints(config, stage) / str(step))}
    stage.save(dataclasses.replace(model, params=params), options.to, dtype=config.export_dtype)
    console.print(f"step {step} of {stage.name}: {options.to}", soft_wrap=True)
    return step


def _checkpoints(config: RunConfig, stage: Stage) -> Path:
    return config.out / stage.name / "checkpoints"


def _chosen(step: str, directory: Path) -> int:
    """The step of a checkpoint that is asked for by number or by what it is.

    Raises:
        UserError: there is none such.
    """
    losses, _ = whole_checkpoints(directory)
    number = int(step) if step.isdecimal() else None
    chosen = {"last": max(losses, default=None), "best": best_of(losses)}.get(step, number)
    if chosen in losses:
        return chosen
    there = ", ".join(f"{number}" for number in sorted(losses)) or "none"
    unmeasured = " (no checkpoint has a validation loss)" if step == "best" else ""
    raise UserError(f"--step {step}: {directory} has no such checkpoint{unmeasured}: choose one of {there}")


def _averages(stage: Stage, model: Model, checkpoint: Path) -> dict[str, Array]:
    """What a checkpoint holds as averages of the parameters that the stage trains, where these lie."""
    trained = {path: value for path, value in model.params.items() if stage.trains(path)}
    return read_average(checkpoint, {path: shape_at(value, value.sharding) for path, value in trained.items()})
