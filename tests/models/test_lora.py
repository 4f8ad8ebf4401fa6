"""LoRA: how many parameters, that it starts as the base, and that merged and injected compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.conversion.checkpoint import shapes_of
from svdjax.errors import UserError
from svdjax.models.lora import (
    TEMPORAL_SELF_ATTENTION,
    LoRA,
    LoRAConfig,
    LoRALinear,
    draw_lora,
    inject,
    lora_shapes,
    merge,
)
from svdjax.models.params import abstract, cast_floating, flat_params, load_flat
from svdjax.models.svd import SVDConfig
from svdjax.models.transformer import Transformer
from tests.weights import random_model

CONFIG = LoRAConfig(rank=3, alpha=6.0, targets="temporal.attn?.*")
KERNEL = "temporal.attn1.q"


class Small(Transformer):
    def __init__(self, config, *, rngs):
        super().__init__(32, groups=4, head_dim=16, context_dim=24, rngs=rngs)


def lora_of(params, seed=0):
    """A LoRA with no zeros in it."""
    shapes = lora_shapes(params, CONFIG)
    rng = np.random.default_rng(seed)
    return LoRA(params={k: rng.normal(0, 0.3, x.shape).astype(np.float32) for k, x in shapes.items()}, alpha=6.0)


@pytest.fixture(scope="module")
def base():
    return random_model(Small, None)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    shapes = (2, 3, 2, 2, 32), (2, 5, 24)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def injected(base, lora):
    module = inject(abstract(Small, None), CONFIG)
    return load_flat(module, {**flat_params(base), **lora}, what="a test")


def apply(module, inputs):
    graph, state = nnx.split(module)
    return jax.jit(lambda state, *args: nnx.merge(graph, state)(*args))(state, *inputs)


@pytest.mark.parametrize(
    ("targets", "count"), [(LoRAConfig().targets, 3_319_808), (TEMPORAL_SELF_ATTENTION, 1_597_440)]
)
def test_the_parameters_of_svd(targets, count):
    """The sum of r (in + out): 128 c of an attention over frames, 96 c + 2 r 1024 of one to the context."""
    shapes = lora_shapes(flat_params(shapes_of(SVDConfig.svd())), LoRAConfig(targets=targets))
    assert sum(x.size for x in shapes.values()) == count
    layers = {path.rpartition(".")[0].rpartition(".")[2] for path in shapes}
    assert layers == {"q", "k", "v", "out"}


def test_before_the_first_step_the_model_is_the_base_bit_for_bit(base, inputs):
    drawn = draw_lora(lora_shapes(flat_params(base), CONFIG), jax.random.key(0))
    down = drawn[f"{KERNEL}.lora_down"]
    assert float(down.std()) == pytest.approx(32**-0.5, rel=0.3) and not drawn[f"{KERNEL}.lora_up"].any()
    np.testing.assert_array_equal(apply(injected(base, drawn), inputs), apply(base, inputs))


def test_merged_is_plain_arithmetic_and_several_add_up(base):
    flat = flat_params(base)
    one, two = lora_of(flat, 0), lora_of(flat, 1)
    merged = merge(merge(flat, one, scale=0.5), two, scale=-1.5)
    for path, kernel in flat.items():
        layer, wanted = path.removesuffix(".kernel"), np.asarray(kernel, np.float64)
        if layer in one.layers:
            for lora, scale in ((one, 0.5), (two, -1.5)):
                down, up = (np.float64(lora.params[f"{layer}.lora_{name}"]) for name in ("down", "up"))
                wanted = wanted + scale * 6 / 3 * down @ up
        np.testing.assert_allclose(merged[path], wanted, rtol=1e-5, atol=1e-6)
    assert len(one.layers) == 8 and one.rank == 3


def test_injected_and_merged_compute_the_same(base, inputs):
    lora = lora_of(flat_params(base))
    merged = load_flat(base, merge(flat_params(base), lora), what="a test")
    beside = apply(injected(base, lora.params), inputs)
    np.testing.assert_allclose(beside, apply(merged, inputs), rtol=1e-4, atol=1e-4)
    assert np.abs(beside - apply(base, inputs)).max() > 0.05


def test_beside_a_bfloat16_kernel_a_small_update_is_not_rounded_away():
    """An update of a thousandth, where the kernel's next number is a 128th away."""
    layer = LoRALinear(4, 4, use_bias=True, config=LoRAConfig(rank=1, alpha=1.0), rngs=nnx.Rngs(0))
    small = {"kernel": jnp.eye(4), "bias": jnp.zeros(4), "lora_down": jnp.ones((4, 1))}
    small["lora_up"] = jnp.asarray([[1e-3, 0.0, 0.0, 0.0]])
    layer = load_flat(layer, cast_floating(small, jnp.bfloat16), what="a test")
    x = jnp.asarray([0.0, 1.0, 1.0, 1.0], jnp.bfloat16)
    assert float(layer(x)[0]) == pytest.approx(3e-3, rel=0.01)
    rounded = merge(
        {"a.kernel": small["kernel"].astype(jnp.bfloat16) + 1},
        LoRA(params={"a.lora_down": small["lora_down"], "a.lora_up": small["lora_up"]}, alpha=1.0),
    )
    assert rounded["a.kernel"].dtype == jnp.bfloat16 and float(rounded["a.kernel"][1, 0]) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank 0: must be at least 1"),
        ({"alpha": 0.0}, r"lora.alpha 0.0: must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LoRAConfig(**settings)


def test_patterns_must_name_linear_layers():
    shapes = flat_params(shapes_of(SVDConfig.svd()))
    with pytest.raises(UserError, match=r"lora.targets unet.\*.atn1: names no layer of this model"):
        lora_shapes(shapes, LoRAConfig(targets="unet.*.atn1"))
    with pytest.raises(UserError, match=r"unet.conv_in is no linear layer"):
        lora_shapes(shapes, LoRAConfig(targets="unet.conv_*"))


def test_a_lora_of_another_model_is_refused(base):
    flat = flat_params(base)
    lora = lora_of(flat)
    with pytest.raises(UserError, match=r"adapts 8 layers that this model lacks, temporal.attn1.k among them"):
        merge({path: x for path, x in flat.items() if "attn" not in path}, lora)
    with pytest.raises(UserError, match=r"its update of temporal.attn1.q is 32 x 32, the model's layer 32 x 64"):
        merge({**flat, f"{KERNEL}.kernel": jnp.zeros((32, 64))}, lora)
