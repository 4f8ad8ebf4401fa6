"""Plans of training: a stage's real step, with the state, the frozen networks and a batch where they would lie."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from svdjax.models.params import flat_params
from svdjax.planning.plan import Outline, Plan, make_plan, resident
from svdjax.tasks import task_of
from svdjax.training.config import RunConfig
from svdjax.training.flops import TrainingFlops, clip_shapes, stage_flops
from svdjax.training.optim import make_optimizer
from svdjax.training.sharding import BatchLayout, param_shardings, shape_at, spec_table, state_shardings
from svdjax.training.stage import Stage
from svdjax.training.state import TrainState, new_state
from svdjax.training.step import make_train_step
from svdjax.typing import PyTree

_Arguments = tuple[TrainState, PyTree, PyTree]


def outline_training(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> Outline:
    """What is known of a stage's step without compiling it: what stays in memory, and its FLOPs."""
    arguments, _ = _step(config, stage, mesh)
    return _outline(config, stage, mesh, topology, arguments)


def plan_training(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> Plan:
    """Compile a stage's step for a mesh of a topology's devices.

    Raises:
        UserError: it does not fit into the chips' memory.
    """
    arguments, step = _step(config, stage, mesh)
    outline = _outline(config, stage, mesh, topology, arguments)
    return make_plan(step, arguments, outline, turns=stage.accumulate)


def _outline(config: RunConfig, stage: Stage, mesh: Mesh, topology: str, arguments: _Arguments) -> Outline:
    state, frozen, batch = arguments
    flops, part = _flops(config, stage), stage.batch // stage.accumulate
    return Outline(
        name=stage.name,
        topology=topology,
        mesh=mesh,
        batch=stage.batch,
        memory=resident(
            parameters=state.params, moments=state.opt_state, average=state.ema, frozen=frozen, batch=batch
        ),
        flops=flops.model * stage.batch,
        executed=flops.executed * stage.batch,
        at_once=part // BatchLayout(mesh, part).parts,
    )


def shardings(config: RunConfig, stage: Stage, mesh: Mesh) -> Table:
    """How each parameter is cut, and its bytes on one chip, with those of its moments and its average."""
    trained, rest = _trained(config, stage), flat_params(stage.shapes(config.model))
    frozen = {path: x for path, x in rest.items() if path not in trained}
    beside = 0 if stage.offload else jnp.dtype(stage.optim.moment_dtype).itemsize + 4 + 4
    table, total = Table("parameter", "shape", "cut", "kept as", "bytes per chip"), 0
    for params, kept, size in (
        (trained, "float32" if stage.offload else "float32, moments, average", 4 + beside),
        (frozen, f"frozen, {stage.compute_dtype}", jnp.dtype(stage.compute_dtype).itemsize),
    ):
        for path, shape, spec, count in spec_table(params, mesh, dtype_bytes=size):
            cut = str(tuple(spec)) if any(spec) else "whole"
            table.add_row(path, " x ".join(map(str, shape)), cut, kept, f"{count:,}")
            total += count
    table.add_row("all", "", "", "", f"{total:,}")
    return table


def _step(config: RunConfig, stage: Stage, mesh: Mesh) -> tuple[_Arguments, jax.stages.Wrapped]:
    """What the step takes, as shapes where they lie, and the step."""
    model, optimizer = stage.shapes(config.model), make_optimizer(stage.optim, stage.steps)
    params = _trained(config, stage)
    state = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    placed = state_shardings(state, optimizer, mesh, offload=stage.offload)
    rest = {path: x for path, x in flat_params(model).items() if path not in params}
    where, dtype = param_shardings(rest, mesh), jnp.dtype(stage.compute_dtype)
    frozen = {path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where[path]) for path, x in rest.items()}
    layout = BatchLayout(mesh, stage.batch)
    clip = {name: ((stage.batch, *x.shape[1:]), x.dtype) for name, x in _clip(config, stage).items()}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(shape))
        for name, (shape, dtype) in clip.items()
    }
    step = make_train_step(stage, model, optimizer, config.seed, placed)
    return (jax.tree.map(shape_at, state, placed), frozen, batch), step


def _trained(config: RunConfig, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: x for path, x in flat_params(stage.shapes(config.model)).items() if stage.trains(path)}


def _clip(config: RunConfig, stage: Stage) -> dict[str, np.ndarray]:
    """A batch of one black clip, as the data pipeline would make it."""
    sampling, vae = config.data.sampling, config.model.vae
    frames, height, width = getattr(stage, "frames", None) or sampling.frames, *sampling.size
    batch = {
        "video": np.zeros((1, frames, height, width, 3), np.uint8),
        "fps": np.ones(1, np.float32),
        "motion_bucket": np.ones(1, np.float32),
    }
    if getattr(stage, "cache_latents", False):
        shape = (1, frames, height // vae.factor, width // vae.factor, vae.latent_channels)
        kept = frames if task_of(config.model).picture is None else 1
        batch |= {"video": batch["video"][:, :kept], "latents": np.zeros(shape, np.float32)}
    if sampling.captions:
        batch["caption"] = [""]
    if sampling.views:
        batch |= {"azimuths": np.zeros((1, frames), np.float32), "elevation": np.zeros(1, np.float32)}
    return stage.prepare(config.model, batch)


def _flops(config: RunConfig, stage: Stage) -> TrainingFlops:
    return stage_flops(stage, config.model, clip_shapes(_clip(config, stage)))
