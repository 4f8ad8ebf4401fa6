"""Analytic FLOPs of training and sampling, counted in the traced program: no weights, no compiling, any size.

What counts are the multiplications and additions of matrix products and convolutions (linear layers, attention),
two FLOPs each, as XLA's own count has it: padding and the holes of strided gradients cost nothing. Norms,
activations and the optimizer are left out, as is usual for model FLOPs utilisation. XLA's `cost_analysis` sees
neither into Pallas kernels nor how often a loop turns; here loops count by their length, and attention by its
portable form, of which the kernels compute the same products.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import PartitionSpec

from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD, SVDConfig
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training.stage import Stage
from svdjax.training.step import make_loss
from svdjax.typing import PyTree

# Dense bfloat16 FLOP/s by the start of a `device_kind`, from the vendors' data sheets; longer ones first.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device, e.g. of ``"TPU v5 lite"`` (v5e); None for a CPU or an unknown device."""
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def example_request(pipeline: Pipeline, videos: int) -> PyTree:
    """A request that a black clip without a caption would answer, whatever the task: for its shapes."""
    defaults = pipeline.settings.defaults
    shape = (videos, defaults.frames, defaults.height, defaults.width, 3)
    clips = {"video": np.zeros(shape, np.float32), "caption": [""] * videos}
    poses = {"elevation": np.zeros(videos, np.float32), "azimuths": np.zeros(shape[:2], np.float32)}
    return pipeline.request(**pipeline.task.inputs_from_batch(clips | poses))


@dataclass(frozen=True, kw_only=True)
class TrainingFlops:
    """FLOPs of the loss and its gradient.

    Attributes:
        forward: of the loss, frozen networks included.
        backward: of the gradient: each product has one more for each of its two factors that depends on a trained
            parameter, so twice the forward ones where both do.
        recompute: spent on activations that the forward pass made but did not keep (and a little on padding, by
            the form of temporal convolutions for CPUs).
    """

    forward: int
    backward: int
    recompute: int

    @property
    def model(self) -> int:
        """What the mathematics asks for, the numerator of MFU."""
        return self.forward + self.backward

    @property
    def executed(self) -> int:
        """What the program does."""
        return self.model + self.recompute


def count(function: Callable[..., PyTree], *args: PyTree) -> int:
    """FLOPs of one call.

    Args:
        function: what ``jax.jit`` could compile.
        args: arrays, or ``jax.ShapeDtypeStruct`` in their place.

    Raises:
        ValueError: it computes products in a loop whose length depends on the data.
    """
    closed = jax.make_jaxpr(function)(*args)
    return _walk(closed.jaxpr, [False] * len(closed.jaxpr.invars))[0].forward


def count_training(loss: Callable[..., tuple[PyTree, PyTree]], params: PyTree, *rest: PyTree) -> TrainingFlops:
    """FLOPs of ``(loss, metrics) = loss(params, *rest)`` and its gradient by ``params``.

    Raises:
        ValueError: as :func:`count`.
    """
    closed = jax.make_jaxpr(loss)(params, *rest)
    trained = len(jax.tree.leaves(params))
    cost, _ = _walk(closed.jaxpr, [i < trained for i in range(len(closed.jaxpr.invars))])
    executed = count(jax.value_and_grad(loss, has_aux=True), params, *rest)
    return TrainingFlops(
        forward=cost.forward, backward=cost.backward, recompute=executed - cost.forward - cost.backward
    )


def stage_flops(stage: Stage, config: SVDConfig, batch: Mapping[str, jax.ShapeDtypeStruct]) -> TrainingFlops:
    """FLOPs of one step of a stage, all but exactly proportional to the clips of the batch.

    Args:
        stage: says what is trained on which loss.
        config: the model's sizes.
        batch: shapes of a training batch, see :func:`clip_shapes`.
    """
    model = stage.shapes(config)
    flat = flat_params(model)
    params = {path: shape for path, shape in flat.items() if stage.trains(path)}
    frozen = {path: shape for path, shape in flat.items() if path not in params}
    return count_training(make_loss(stage, model), params, frozen, dict(batch), jax.random.key(0))


def clip_shapes(batch: Mapping[str, object], clips: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of ``clips`` clips like those of ``batch``; what is no array (captions) is left out."""
    arrays = {name: value for name, value in batch.items() if hasattr(value, "shape")}
    return {name: jax.ShapeDtypeStruct((clips, *value.shape[1:]), value.dtype) for name, value in arrays.items()}


def sampling_flops(config: SVDConfig, settings: Settings | None = None) -> dict[str, int]:
    """FLOPs of one video: of ``condition``, of ``sample`` (all steps, both branches) and of ``decode``.

    Args:
        config: the model's sizes.
        settings: how to sample; by default as the model is meant to be sampled.
    """
    settings = settings or Settings(defaults=config.defaults)
    pipeline = Pipeline(abstract(SVD, config), settings)
    graph, state = nnx.split(abstract(SVD, config))

    def condition(state: PyTree, *asked: PyTree) -> PyTree:
        return pipeline.condition(nnx.merge(graph, state), *asked)

    def sample(state: PyTree, seed: PyTree, request: PyTree, video: PyTree) -> PyTree:
        return pipeline.sample(nnx.merge(graph, state), seed, condition(state, seed, request, video), video)

    def decode(state: PyTree, *asked: PyTree) -> PyTree:
        return pipeline.decode(nnx.merge(graph, state), (), sample(state, *asked))

    asked = jnp.uint32(0), example_request(pipeline, 1), np.zeros(1, np.int32)
    first, second, third = (count(stage, state, *asked) for stage in (condition, sample, decode))
    return {"condition": first, "sample": second - first, "decode": third - second}


@dataclass(frozen=True)
class _Cost:
    """FLOPs of the program, and of transposing the part of it that is differentiated."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "_Cost":
        return _Cost(self.forward * times, self.backward * times)


Walked = tuple[_Cost, list[bool]]


def _walk(jaxpr: Jaxpr, active: Sequence[bool]) -> Walked:
    """Cost of a program whose ``active`` inputs are differentiated by, and which of its outputs depend on those."""
    depends = dict(zip(jaxpr.invars, active, strict=True))
    platform_choices: dict[object, int] = {}
    total = _Cost()
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(v, Literal) and depends.get(v, False) for v in eqn.invars]
        if eqn.primitive.name == "platform_index":
            platform_choices[eqn.outvars[0]] = _portable(eqn.params["platforms"])
        if eqn.primitive.name == "cond":
            selector = eqn.invars[0]
            choice = None if isinstance(selector, Literal) else platform_choices.get(selector)
            cost, outputs = _cond(eqn, inputs, choice)
        else:
            cost, outputs = _RULES.get(eqn.primitive.name, _other)(eqn, inputs)
        total += cost
        depends.update(zip(eqn.outvars, outputs, strict=True))
    return total, [not isinstance(v, Literal) and depends.get(v, False) for v in jaxpr.outvars]


def _portable(platforms: Sequence[Sequence[str] | None]) -> int:
    """The branch for a CPU, which has no kernels."""
    return next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)


def _dot(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    flops = 2 * summed * eqn.outvars[0].aval.size
    return _Cost(flops, flops * sum(inputs)), [any(inputs)]


def _conv(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    numbers = eqn.params["dimension_numbers"]
    (image, kernel), out = (v.aval.shape for v in eqn.invars), eqn.outvars[0].aval.shape
    products = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    for i, (image_axis, kernel_axis, out_axis) in enumerate(axes):
        # Where each tap of the kernel falls for each output: on a value, on padding, or into a hole.
        position = (
            np.arange(out[out_axis])[:, None] * eqn.params["window_strides"][i]
            + np.arange(kernel[kernel_axis]) * eqn.params["rhs_dilation"][i]
            - eqn.params["padding"][i][0]
        )
        holes = eqn.params["lhs_dilation"][i]
        on_value = (position >= 0) & (position < image[image_axis] * holes) & (position % holes == 0)
        products *= int(on_value.sum())
    return _Cost(2 * products, 2 * products * sum(inputs)), [any(inputs)]


def _cond(eqn: JaxprEqn, inputs: Sequence[bool], choice: int | None) -> Walked:
    """The branch of the platform; of other branches the dearest."""
    branches = eqn.params["branches"] if choice is None else [eqn.params["branches"][choice]]
    walked = [_walk(branch.jaxpr, inputs[1:]) for branch in branches]
    cost = max((cost for cost, _ in walked), key=lambda cost: cost.forward)
    return cost, [any(outputs) for outputs in zip(*(outputs for _, outputs in walked), strict=True)]


def _scan(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    body = _open(eqn.params["jaxpr"])
    # Told by what has an axis of steps: JAX 0.11 gives the numbers no longer.
    carried = _alike(eqn.outvars, body.outvars)
    constants = _alike(eqn.invars, body.invars) - carried
    inputs = list(inputs)
    while True:
        cost, outputs = _walk(body, inputs)
        before = inputs[constants : constants + carried]
        after = [a or b for a, b in zip(before, outputs[:carried], strict=True)]
        if before == after:
            return cost * eqn.params["length"], outputs
        inputs[constants : constants + carried] = after


def _alike(outside: Sequence[Var | Literal], inside: Sequence[Var | Literal]) -> int:
    """How many values of a scan have no axis of steps."""
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _while(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    body = _open(eqn.params["body_jaxpr"])
    cost, _ = _walk(body, [False] * len(body.invars))
    if cost.forward:
        raise ValueError("products in a loop whose length depends on the data cannot be counted")
    return _other(eqn, inputs)


def _shard_map(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    """The body is one device's share; devices that repeat the same work are counted once."""
    used = {name for spec in eqn.params["in_specs"] for name in _names(spec)}
    cost, outputs = _walk(eqn.params["jaxpr"], inputs)
    return cost * math.prod(eqn.params["mesh"].shape[name] for name in used), outputs


def _names(spec: PartitionSpec) -> Iterator[str]:
    for part in spec:
        yield from (part,) if isinstance(part, str) else part or ()


def _pallas_call(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    body = eqn.params["jaxpr"]
    cost, _ = _walk(body, [any(inputs)] * len(body.invars))
    return cost * math.prod(eqn.params["grid_mapping"].grid), [any(inputs)] * len(eqn.outvars)


def _other(eqn: JaxprEqn, inputs: Sequence[bool]) -> Walked:
    """A call walks into its body (`jit`, `checkpoint`, `custom_vjp`); anything else costs nothing."""
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(body, ClosedJaxpr | Jaxpr):
        return _walk(_open(body), inputs)
    differentiable = eqn.primitive.name != "stop_gradient" and any(inputs)
    return _Cost(), [differentiable and _is_real(v.aval) for v in eqn.outvars]


def _open(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _is_real(aval: object) -> bool:
    return jnp.issubdtype(getattr(aval, "dtype", np.dtype(int)), jnp.floating)


_RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "scan": _scan,
    "while": _while,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
}
