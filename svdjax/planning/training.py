"""Plans of training: a stage's real step, with the state, the frozen networks and a batch where they would lie."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from svdjax.data.cache import LatentCache, is_cache
from svdjax.data.pipeline import to_batch
from svdjax.data.sampling import Shape
from svdjax.models.params import flat_params
from svdjax.planning.plan import Outline, Plan, make_plan, resident
from svdjax.tasks import task_of
from svdjax.training.config import RunConfig
from svdjax.training.data import no_pixels
from svdjax.training.diffusion_stage import DiffusionStage, check_alike
from svdjax.training.flops import clip_shapes, stage_flops
from svdjax.training.optim import make_optimizer
from svdjax.training.sharding import BatchLayout, param_shardings, shape_at, spec_table, state_shardings
from svdjax.training.stage import Stage
from svdjax.training.state import TrainState, new_state
from svdjax.training.step import make_train_step
from svdjax.typing import PyTree, ndarray

STEP = "train_step"  # what the compiler calls a stage's step
_Arguments = tuple[TrainState, PyTree, PyTree]


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """The clip that a step is planned for.

    Attributes:
        batch: of this clip alone, as it would come to a device.
        said: of its shape, where several are trained on or where a cache alone can tell.
    """

    batch: dict[str, ndarray]
    said: str = ""


def outline_training(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> Outline:
    """What is known of a stage's step without compiling it: what stays in memory, and its FLOPs."""
    clip = _clip(config, stage)
    arguments, _ = _step(config, stage, mesh, clip)
    return _outline(config, stage, mesh, topology, clip, arguments)


def plan_training(config: RunConfig, stage: Stage, mesh: Mesh, topology: str) -> Plan:
    """Compile a stage's step for a mesh of a topology's devices.

    Raises:
        UserError: it does not fit into the chips' memory.
    """
    clip = _clip(config, stage)
    arguments, step = _step(config, stage, mesh, clip)
    outline = _outline(config, stage, mesh, topology, clip, arguments)
    return make_plan(step, arguments, outline, turns=stage.accumulate)


def _outline(
    config: RunConfig, stage: Stage, mesh: Mesh, topology: str, clip: _Clip, arguments: _Arguments
) -> Outline:
    state, frozen, batch = arguments
    flops, part = stage_flops(stage, config.model, clip_shapes(clip.batch)), stage.batch // stage.accumulate
    return Outline(
        name=stage.name + clip.said,
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


def _step(config: RunConfig, stage: Stage, mesh: Mesh, clip: _Clip) -> tuple[_Arguments, jax.stages.Wrapped]:
    """What the step takes, as shapes where they lie, and the step."""
    model, optimizer = stage.shapes(config.model), make_optimizer(stage.optim, stage.steps)
    params = _trained(config, stage)
    state = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    placed = state_shardings(state, optimizer, mesh, offload=stage.offload)
    rest = {path: x for path, x in flat_params(model).items() if path not in params}
    where, dtype = param_shardings(rest, mesh), jnp.dtype(stage.compute_dtype)
    frozen = {path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where[path]) for path, x in rest.items()}
    layout = BatchLayout(mesh, stage.batch)
    batch = {
        name: shape_at(x, layout.sharding(x.shape)) for name, x in clip_shapes(clip.batch, stage.batch).items()
    }
    step = make_train_step(stage, model, optimizer, config.seed, placed)
    return (jax.tree.map(shape_at, state, placed), frozen, batch), step


def _trained(config: RunConfig, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: x for path, x in flat_params(stage.shapes(config.model)).items() if stage.trains(path)}


def _clip(config: RunConfig, stage: Stage) -> _Clip:
    """A black clip as the data pipeline would make it, of the shape with most pixels; or one of the latent cache.

    Raises:
        UserError: the stage cannot train from the cache, or not keep clips like these in memory.
    """
    if is_cache(config.data.train):
        return _cached(config, stage)
    fixed = getattr(stage, "frames", None)
    shape = max(((fixed or frames, *size) for frames, *size in config.data.sampling.shapes), key=math.prod)
    said = f" (clips of {_words(shape)}, the largest bucket)" if config.data.sampling.buckets else ""
    return _Clip(batch=stage.prepare(config.model, _black(config, stage, *shape)), said=said)


def _cached(config: RunConfig, stage: Stage) -> _Clip:
    """The first clip of a latent cache's largest shape: what was encoded is no part of the step, as in training."""
    if not isinstance(stage, DiffusionStage):
        raise no_pixels(config.data.train)
    cache = LatentCache(config.data.train)
    largest = max(cache.groups, key=lambda group: math.prod(group.shape))
    batch = stage.prepare(config.model, to_batch([cache[largest.indices[0]]]))
    return _Clip(batch=batch, said=f" (cached clips of {_words(largest.shape)})")


def _words(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _black(config: RunConfig, stage: Stage, frames: int, height: int, width: int) -> dict[str, Any]:
    """A batch of one black clip, with its latents if the stage keeps these in memory."""
    sampling, vae = config.data.sampling, config.model.vae
    batch = {
        "video": np.zeros((1, frames, height, width, 3), np.uint8),
        "fps": np.ones(1, np.float32),
        "motion_bucket": np.ones(1, np.float32),
    }
    if isinstance(stage, DiffusionStage) and stage.cache_latents:
        check_alike(config.data)
        shape = (1, frames, height // vae.factor, width // vae.factor, vae.latent_channels)
        kept = frames if task_of(config.model).picture is None else 1
        batch |= {"video": batch["video"][:, :kept], "latents": np.zeros(shape, np.float32)}
    if sampling.captions:
        batch["caption"] = [""]
    if sampling.views:
        batch |= {name: np.zeros((1, frames), np.float32) for name in ("azimuths", "elevation")}
    return batch
