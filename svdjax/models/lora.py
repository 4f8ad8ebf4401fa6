"""Low-rank adaptation (LoRA, arXiv 2106.09685) of linear layers: injected to be trained, merged to be used.

A layer computes ``x W + (alpha / rank) (x A) B`` with a frozen W [in, out] and trained A [in, rank], ``lora_down``,
and B [rank, out], ``lora_up``. B starts at zero, so that training starts at the model as it is. Merged, the layer
is an ordinary one again, with the kernel ``W + scale (alpha / rank) A B``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.params import flat_params
from svdjax.typing import Array, Float, Key, ndarray

Module = TypeVar("Module", bound=nnx.Module)
Shapes = dict[str, jax.ShapeDtypeStruct]
DOWN, UP = "lora_down", "lora_up"
TEMPORAL_ATTENTION = "unet.*.temporal.attn?.*"
TEMPORAL_SELF_ATTENTION = "unet.*.temporal.attn1.*"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which layers a LoRA adapts, and how.

    Attributes:
        rank: of each update.
        alpha: the update counts ``alpha / rank`` times.
        targets: dotted paths of linear layers, in which ``*`` stands for any text and ``?`` for any letter. The
            paper (appendix D) adapts "the temporal attention blocks", by default both their attentions:
            3,319,808 parameters of SVD; ``unet.*.temporal.attn1.*`` is the one over frames alone, 1,597,440.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: str = TEMPORAL_ATTENTION

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: rank or alpha is out of range.
        """
        if self.rank < 1:
            raise UserError(f"lora.rank {self.rank}: must be at least 1 (16 is the paper's)")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha {self.alpha}: must be above 0 (the rank is usual)")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """A trained LoRA.

    Attributes:
        params: ``PATH.lora_down`` [in, rank] and ``PATH.lora_up`` [rank, out] of each adapted layer.
        alpha: see `LoRAConfig`.
        base: name of the model that it was trained on, for people; empty if unknown.
    """

    params: Mapping[str, Array | ndarray]
    alpha: float
    base: str = ""

    @property
    def layers(self) -> list[str]:
        """Paths of the adapted layers."""
        return [path.removesuffix(f".{DOWN}") for path in self.params if path.endswith(f".{DOWN}")]

    @property
    def rank(self) -> int:
        """Of every layer's update."""
        return self.params[f"{self.layers[0]}.{DOWN}"].shape[1]


class LoRALinear(nnx.Linear):
    """A linear layer with a low-rank update, computed beside it.

    In bfloat16 an update that is small beside W would be rounded away if it were added to W in each step.
    """

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool, config: LoRAConfig, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, use_bias=use_bias, rngs=rngs)
        self.lora_down = nnx.Param(jnp.zeros((inputs, config.rank)))
        self.lora_up = nnx.Param(jnp.zeros((config.rank, outputs)))
        self.scale = config.alpha / config.rank

    def __call__(self, x: Float[Array, "*lead c"]) -> Float[Array, "*lead c_out"]:
        """Apply to the last axis."""
        return super().__call__(x) + (x @ self.lora_down[...]) @ self.lora_up[...] * self.scale


def inject(module: Module, config: LoRAConfig) -> Module:
    """Put `LoRALinear` in the place of each layer that ``config`` names, without values; the module is changed.

    Args:
        module: made by `svdjax.models.params.abstract`. All its parameters keep their paths.

    Raises:
        UserError: the pattern names nothing, or something other than linear layers.
    """
    for layer, (inputs, outputs) in _targets(flat_params(module), config).items():
        *parents, name = layer.split(".")
        parent = reduce(_child, parents, module)
        use_bias = getattr(parent, name).bias is not None
        setattr(parent, name, _abstract_layer(inputs, outputs, use_bias, config))
    return module


def _child(module: nnx.Module, name: str) -> nnx.Module:
    return module[int(name)] if name.isdigit() else getattr(module, name)


def _abstract_layer(inputs: int, outputs: int, use_bias: bool, config: LoRAConfig) -> LoRALinear:
    return nnx.eval_shape(lambda: LoRALinear(inputs, outputs, use_bias=use_bias, config=config, rngs=nnx.Rngs(0)))


def lora_shapes(params: Mapping[str, Any], config: LoRAConfig) -> Shapes:
    """Shapes of a LoRA's float32 parameters by path, for a model's parameters (or their shapes) by path.

    Raises:
        UserError: the pattern names nothing, or something other than linear layers.
    """
    shapes = {}
    for layer, (inputs, outputs) in _targets(params, config).items():
        shapes[f"{layer}.{DOWN}"] = jax.ShapeDtypeStruct((inputs, config.rank), jnp.float32)
        shapes[f"{layer}.{UP}"] = jax.ShapeDtypeStruct((config.rank, outputs), jnp.float32)
    return shapes


def _targets(params: Mapping[str, Any], config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Inputs and outputs of the layers that ``config`` names."""
    kernels = {path.removesuffix(".kernel"): x.shape for path, x in params.items() if path.endswith(".kernel")}
    named = {layer: shape for layer, shape in kernels.items() if fnmatchcase(layer, config.targets)}
    if not named:
        raise UserError(f"lora.targets {config.targets}: names no layer of this model: mend the pattern")
    if others := [layer for layer, shape in named.items() if len(shape) != 2]:
        raise UserError(f"lora.targets {config.targets}: {others[0]} is no linear layer: mend the pattern")
    return named


def draw_lora(shapes: Shapes, key: Key[Array, ""]) -> dict[str, Array]:
    """Parameters before the first step: A normal with variance 1 / in, B zero; to be called under `jax.jit`."""

    def draw(number: int, path: str, shape: tuple[int, ...]) -> Array:
        if path.endswith(UP):
            return jnp.zeros(shape)
        return jax.random.normal(jax.random.fold_in(key, number), shape) / math.sqrt(shape[0])

    return {path: draw(number, path, x.shape) for number, (path, x) in enumerate(shapes.items())}


def check_fits(lora: LoRA, params: Mapping[str, Any], *, what: str) -> None:
    """Check that a model has every layer that a LoRA adapts.

    Args:
        lora: the LoRA. params: the model's parameters or their shapes by path. what: the LoRA, for messages.

    Raises:
        UserError: a layer is missing or has another size.
    """
    missing = [layer for layer in lora.layers if f"{layer}.kernel" not in params]
    if missing:
        raise UserError(
            f"{what}: adapts {len(missing)} layers that this model lacks, {missing[0]} among them: it belongs to "
            "another model"
        )
    for layer in lora.layers:
        update = (lora.params[f"{layer}.{DOWN}"].shape[0], lora.params[f"{layer}.{UP}"].shape[1])
        if (shape := tuple(params[f"{layer}.kernel"].shape)) != update:
            raise UserError(
                f"{what}: its update of {layer} is {update[0]} x {update[1]}, the model's layer {shape[0]} x "
                f"{shape[1]}: it belongs to another model"
            )


def update_of(lora: LoRA, layer: str, scale: float = 1.0) -> Float[ndarray, "c c_out"]:
    """What a LoRA adds to a layer's kernel, ``scale (alpha / rank) A B``, in float32."""
    down, up = (np.asarray(lora.params[f"{layer}.{name}"], np.float32) for name in (DOWN, UP))
    return np.float32(scale * lora.alpha / lora.rank) * (down @ up)


def merge(params: Mapping[str, Array | ndarray], lora: LoRA, *, scale: float = 1.0) -> dict[str, Array | ndarray]:
    """A model's parameters with a LoRA in them; several are merged one after the other, and add up.

    Args:
        params: of the model by path. Added in float32 and cast to their type, in which an update that is small
            beside a kernel is rounded away: so merge before casting to bfloat16.
        lora: the LoRA. scale: how strongly it acts; 1 as trained, -1 is the opposite.

    Raises:
        UserError: the LoRA belongs to another model.
    """
    check_fits(lora, params, what="the LoRA")
    merged = dict(params)
    for layer in lora.layers:
        kernel = params[f"{layer}.kernel"]
        merged[f"{layer}.kernel"] = (kernel.astype(jnp.float32) + update_of(lora, layer, scale)).astype(
            kernel.dtype
        )
    return merged
