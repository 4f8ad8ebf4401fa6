"""Plans of sampling: its three programs on one chip, which holds the whole model. Several chips change nothing:
each works on videos of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from svdjax.models.params import abstract, cast_floating
from svdjax.models.svd import SVD, SVDConfig
from svdjax.planning.plan import Plan, make_plan
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training.flops import sampling_flops
from svdjax.typing import PyTree


def plan_sampling(config: SVDConfig, settings: Settings, device: jax.Device, topology: str) -> list[Plan]:
    """Compile conditioning, sampling and decoding of ``settings.per_device`` videos, in bfloat16.

    Args:
        config: the model's sizes. settings: how to sample.
        device: a chip of the topology.

    Raises:
        UserError: one of them does not fit into the chip's memory.
    """
    mesh = Mesh(np.array([device]), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    model = abstract(SVD, config)
    graph, state = nnx.split(model)
    weights = _on(jax.eval_shape(lambda state: cast_floating(state, jnp.bfloat16), state), whole)
    pipeline, flops = Pipeline(model, settings), sampling_flops(config, settings)
    videos, defaults = settings.per_device, settings.defaults
    images = np.zeros((videos, defaults.height, defaults.width, 3), np.float32)
    request = _on(pipeline.request(images=images), whole)
    numbers = _on(np.zeros(videos, np.int32), whole)

    def plan(stage: Callable[..., Any], *inputs: PyTree, turns: int = 1) -> tuple[Plan, PyTree]:
        """A stage's plan, and where its results lie as shapes."""
        name = stage.__name__
        call = jax.jit(lambda state, *inputs: stage(nnx.merge(graph, state), *inputs))
        made = make_plan(
            call,
            (weights, *inputs),
            name=name,
            topology=topology,
            mesh=mesh,
            batch=videos,
            resident={"weights": weights, "inputs": inputs},
            flops=videos * flops[name],
            executed=videos * flops[name],
            turns=turns,
        )
        with jax.set_mesh(mesh):
            return made, _on(jax.eval_shape(call, weights, *inputs), whole)

    condition, cond = plan(pipeline.condition, request, numbers)
    sample, latents = plan(pipeline.sample, cond, request, numbers, turns=defaults.steps)
    decode, _ = plan(pipeline.decode, latents)
    return [condition, sample, decode]


def _on(shapes: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
