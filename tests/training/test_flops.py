"""The FLOP counter against formulas, against XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.remat import BLOCKS
from svdjax.models.unet import UNet, UNetConfig
from svdjax.models.vae import VAE, VAEConfig
from svdjax.training.flops import clip_shapes, count, count_training, peak_flops, sampling_flops, stage_flops
from tests.training.tiny import MODEL, tiny_run

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: jax.jit(jnp.matmul)(x, x), 1),
        (lambda x: lax.fori_loop(0, 7, lambda _, y: y @ x, x), 7),
        (lambda x: lax.map(lambda y: y @ x, jnp.stack([x] * 3)), 3),
        (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x), 2),
        (lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x @ x), 1),
        (lambda x: lax.while_loop(lambda y: y.sum() > 0, lambda y: y + 1, x @ x), 1),
    ],
)
def test_products_count_as_often_as_they_are_made(function, products):
    assert count(function, SQUARE) == products * PRODUCT


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="length depends on the data"):
        count(lambda x: lax.while_loop(lambda y: y.sum() > 0, lambda y: y @ y, x), SQUARE)


def test_each_device_counts_its_share_and_copies_count_once():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count(split, SQUARE, SQUARE) == PRODUCT


def test_a_kernel_counts_once_for_each_point_of_its_grid():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    rows = pl.BlockSpec((2, 8), lambda i: (i, 0))
    whole = pl.BlockSpec((8, 8), lambda i: (0, 0))
    call = pl.pallas_call(kernel, grid=(4,), in_specs=[rows, whole], out_specs=rows, out_shape=SQUARE)
    assert count(call, SQUARE, SQUARE) == PRODUCT


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 2))])
@pytest.mark.parametrize("holes", [(1, 1), (2, 2)])
def test_a_convolution_of_ones_says_how_many_products_it_makes(strides, padding, holes):
    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, strides, padding, lhs_dilation=holes, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    image, kernel = jnp.ones((2, 7, 8, 3)), jnp.ones((3, 3, 3, 5))
    assert count(convolve, image, kernel) == 2 * int(convolve(image, kernel).sum())


def test_the_gradient_makes_a_product_for_each_trained_factor():
    def loss(params, x):
        return ((x @ params["first"]) @ params["second"]).sum(), {}

    flops = count_training(loss, {"first": SQUARE, "second": SQUARE}, SQUARE)
    # The first layer's input is data: only its kernel has a gradient.
    assert (flops.forward, flops.backward, flops.recompute) == (2 * PRODUCT, 3 * PRODUCT, 0)


def test_activations_made_again_are_no_model_flops():
    def loss(kernel, x):
        return jax.checkpoint(lambda x: jnp.sin(x @ kernel) @ kernel)(x).sum(), {}

    flops = count_training(loss, SQUARE, SQUARE)
    assert (flops.forward, flops.backward, flops.recompute) == (2 * PRODUCT, 3 * PRODUCT, PRODUCT)
    assert flops.executed == 6 * PRODUCT and flops.model == 5 * PRODUCT


UNET = UNetConfig(
    channels=(128, 256), num_res_blocks=1, attention=(True, False), head_dim=64, context_dim=64, vector_dim=64
)
CLIP = CLIPVisionConfig(width=256, layers=2, heads=4, mlp_dim=1024, patch_size=16, image_size=64, projection_dim=64)
NETWORKS = {
    "unet": (
        abstract(UNet, UNET),
        (shape(1, 2, 16, 16, 8), shape(1), shape(1, 3, 64), shape(1, 2, 64)),
        lambda model, *inputs: model(*inputs),
    ),
    "vae": (
        abstract(VAE, VAEConfig(channels=(128, 128), num_res_blocks=1)),
        (shape(2, 16, 16, 3),),
        lambda model, images: model.decode(model.encode(images).mode()[None]),
    ),
    "clip": (abstract(CLIPVision, CLIP), (shape(2, 64, 64, 3),), lambda model, images: model(images)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_xla_counts_the_same_and_a_little_for_what_is_no_product(name):
    """Of the program before fusion, in which nothing is compiled away."""
    model, inputs, call = NETWORKS[name]
    flat = flat_params(model)

    def loss(params, *inputs):
        return jnp.sum(jnp.square(call(load_flat(model, params, what=name), *inputs))), {}

    flops = count_training(loss, flat, *inputs)
    gradient = jax.value_and_grad(loss, has_aux=True)
    for function, ours in ((loss, flops.forward), (gradient, flops.executed)):
        xla = jax.jit(function).lower(flat, *inputs).cost_analysis()["flops"]
        assert ours <= xla <= 1.05 * ours


def test_the_compiled_program_does_what_is_counted():
    model, inputs, call = NETWORKS["clip"]
    flat = flat_params(model)

    def run(params, *inputs):
        return call(load_flat(model, params, what="clip"), *inputs)

    ours = count(run, flat, *inputs)
    assert ours <= jax.jit(run).lower(flat, *inputs).compile().cost_analysis()["flops"] <= 1.05 * ours


def test_svds_unet_at_full_size_takes_what_the_tpu_compiler_says():
    """For 2 videos of 14 frames of 576x1024 pixels: 177 ms at the 459 TFLOP/s of a v5p."""
    graph, state = nnx.split(abstract(UNet, UNetConfig.svd()))
    inputs = (shape(2, 14, 72, 128, 8), shape(2), shape(2, 1, 1024), shape(2, 14, 768))
    flops = count(lambda state, *inputs: nnx.merge(graph, state)(*inputs), state, *inputs)
    assert flops / peak_flops("TPU v5p") == pytest.approx(0.177, rel=0.05)


def test_remat_changes_what_is_executed_only(tmp_path):
    stage = tiny_run(tmp_path).unet
    batch = clip_shapes({"video": shape(4, 2, 16, 16, 3, dtype=jnp.uint8), "fps": shape(4), "caption": ["a"] * 4})
    batch["motion_bucket"] = shape(1)
    plain = stage_flops(stage, MODEL, batch)
    again = stage_flops(
        stage, dataclasses.replace(MODEL, unet=dataclasses.replace(MODEL.unet, remat=BLOCKS)), batch
    )
    assert plain.model == again.model and plain.executed < again.executed
    assert batch["video"].shape[0] == 1 and "caption" not in batch


def test_the_steps_of_a_stage_cost_in_proportion_to_their_clips(tmp_path):
    stage = tiny_run(tmp_path).vae
    one, four = (
        stage_flops(stage, MODEL, {"video": shape(clips, 1, 16, 16, 3, dtype=jnp.uint8)}) for clips in (1, 4)
    )
    assert four.model == 4 * one.model
    assert 1.9 * one.forward < one.backward < 2 * one.forward


def test_sampling_costs_two_branches_at_every_step_and_decoding():
    single, two, six = (
        sampling_flops(
            dataclasses.replace(MODEL, defaults=dataclasses.replace(MODEL.defaults, steps=steps, guidance=guidance))
        )
        for steps, guidance in ((2, (1.0, 1.0)), (2, (1.0, 2.0)), (6, (1.0, 2.0)))
    )
    assert six["sample"] == 3 * two["sample"]
    assert two["sample"] == pytest.approx(2 * single["sample"], rel=1e-3)  # the branches share embeddings of frames
    assert six["decode"] == single["decode"] > 0 and six["condition"] == single["condition"] > 0


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("NVIDIA H100 80GB HBM3", 989e12)],
)
def test_peaks_are_found_by_the_devices_own_name(kind, peak):
    assert peak_flops(kind) == peak
    assert peak_flops("cpu") is None
