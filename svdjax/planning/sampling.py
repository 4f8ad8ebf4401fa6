"""Plans of sampling: its three programs on one chip, or on those that share a video. Each holds the whole model.

More chips change nothing: they work on videos of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from svdjax.models.params import abstract, cast_floating
from svdjax.models.svd import SVD, SVDConfig
from svdjax.planning.plan import Outline, Plan, make_plan, resident
from svdjax.sampling.pipeline import Pipeline, Settings, check_context
from svdjax.training.flops import example_request, sampling_flops
from svdjax.training.sharding import shape_at
from svdjax.typing import Array, PyTree


@dataclass(frozen=True, kw_only=True)
class Program:
    """One of the programs of sampling, not compiled.

    Attributes:
        outline: what is known of it. turns: see `make_plan`.
        function, arguments: to be compiled. All weights are among the arguments: what is not used stays, too.
    """

    outline: Outline
    function: jax.stages.Wrapped
    arguments: tuple[PyTree, ...]
    turns: int

    def plan(self) -> Plan:
        """Compile it.

        Raises:
            UserError: it does not fit into the chips' memory.
        """
        return make_plan(self.function, self.arguments, self.outline, turns=self.turns)


def sampling_programs(
    config: SVDConfig, settings: Settings, devices: Sequence[jax.Device], topology: str
) -> Iterator[Program]:
    """Conditioning, sampling and decoding of ``settings.per_device`` videos, in bfloat16.

    Args:
        config: the model's sizes. settings: how to sample.
        devices: of the topology; the first ``settings.context`` are planned for.

    Raises:
        UserError: the chips cannot share the videos.
    """
    check_context(config, settings, len(devices))
    mesh = Mesh(np.array(devices[: settings.context]), ("context",))
    whole = NamedSharding(mesh, PartitionSpec())
    model = abstract(SVD, config)
    graph, state = nnx.split(model)
    weights = _on(jax.eval_shape(lambda state: cast_floating(state, jnp.bfloat16), state), whole)
    pipeline, flops = Pipeline(model, settings), sampling_flops(config, settings)
    videos = settings.per_device
    asked = _flat(example_request(pipeline, videos), whole)
    numbers, seed = _flat(np.zeros(videos, np.int32), whole), _flat(np.zeros((), np.uint32), whole)

    def program(stage: Callable[..., Any], *inputs: _Flat, turns: int = 1) -> tuple[Program, _Flat]:
        """A stage's program, and the shapes of its results."""
        name, shapes, trees = stage.__name__, [each.shapes for each in inputs], []

        def call(state: PyTree, shapes: list[list[Array]]) -> list[Array]:
            given = [each.tree.unflatten(leaves) for each, leaves in zip(inputs, shapes, strict=True)]
            leaves, tree = jax.tree.flatten(stage(nnx.merge(graph, state), *given))
            trees.append(tree)
            return leaves

        call.__name__ = module_of(name)
        outline = Outline(
            name=name,
            topology=topology,
            mesh=mesh,
            batch=videos,
            memory=resident(weights=weights, inputs=shapes),
            flops=videos * flops[name],
            executed=videos * flops[name],
            at_once=videos,
        )
        with jax.set_mesh(mesh):
            results = _on(jax.eval_shape(call, weights, shapes), whole)
        function = jax.jit(call, keep_unused=True)
        made = Program(outline=outline, function=function, arguments=(weights, shapes), turns=turns)
        return made, _Flat(results, trees[-1])

    condition, branches = program(pipeline.condition, seed, asked, numbers)
    yield condition
    # All steps as one program, where a run calls one of a single step: the same but for their number.
    sample, latents = program(pipeline.sample, seed, branches, numbers, turns=settings.defaults.steps)
    yield sample
    decode, _ = program(pipeline.decode, _flat((), whole), latents)
    yield decode


def module_of(stage: str) -> str:
    """What the compiler calls the program of a stage of sampling."""
    return f"sampling_{stage}"


@dataclass(frozen=True)
class _Flat:
    """Shapes out of the tree that they belong to: requests take arrays only."""

    shapes: list[jax.ShapeDtypeStruct]
    tree: jax.tree_util.PyTreeDef


def _flat(arrays: PyTree, sharding: NamedSharding) -> _Flat:
    leaves, tree = jax.tree.flatten(arrays)
    return _Flat(_on(leaves, sharding), tree)


def _on(shapes: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: shape_at(x, sharding), shapes)
