"""One video over several devices: the same outputs and gradients as on one, and with any recomputation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from svdjax.models.attention import attention
from svdjax.models.params import flat_params, with_dtype
from svdjax.models.remat import BLOCKS
from svdjax.models.sharding import constrain, context_size, spec_of
from svdjax.models.unet import UNet, UNetConfig
from svdjax.models.vae import VAE, VAEConfig
from tests.weights import random_model

# Attention only in the middle: what this file costs is the compilation of its few programs.
UNET = UNetConfig(
    channels=(16, 16),
    num_res_blocks=1,
    attention=(False, False),
    head_dim=8,
    context_dim=12,
    vector_dim=0,
    norm_groups=4,
)
VAE_SIZES = VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4)
# 24 columns divide by all of these numbers of devices, the 12 below them by 2 and 4; 3 frames by none.
MESHES = [(2, 2, 2), (1, 2, 4), (1, 1, 8)]
VIDEOS, FRAMES, ROWS, COLUMNS = 4, 3, 2, 24


@pytest.fixture(scope="module", autouse=True)
def double():
    """All in float64: rounding hides nothing."""
    with jax.enable_x64(True):
        yield


def mesh_of(sizes):
    return jax.make_mesh(sizes, ("data", "fsdp", "context"), axis_types=(AxisType.Auto,) * 3)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def pattern(shape):
    return jnp.sin(jnp.arange(np.prod(shape), dtype=float)).reshape(shape)


@jax.jit
def through_unet(unet, inputs):
    """The result, and the gradient of its product with a fixed pattern."""

    def loss(unet, x):
        out = unet(**(inputs | {"x": x}))
        return jnp.vdot(out, pattern(out.shape)), out

    (in_unet, in_x), out = jax.grad(loss, argnums=(0, 1), has_aux=True)(unet, inputs["x"])
    return out, in_x, flat_params(in_unet)


@jax.jit
def through_vae(vae, video):
    """Decoded frames and latents of the first ones, and the gradient of both."""

    def loss(vae, video):
        out, first = vae.decode(vae.encode(video).mode()), vae.encode(video[:, 0]).mode()
        return jnp.vdot(out, pattern(out.shape)) + jnp.sum(first**2), (out, first)

    (in_vae, in_video), outs = jax.grad(loss, argnums=(0, 1), has_aux=True)(vae, video)
    return *outs, in_video, flat_params(in_vae)


def same(found, wanted):
    """Equal to 1e-8 of the largest value of each array."""
    for (path, b), a in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * max(1e-3, np.abs(b).max()), err_msg=str(path))


def on_mesh(function, sizes, model, inputs):
    """``function`` with the videos of ``inputs`` split over a mesh."""
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        inputs = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        return function(jax.device_put(model, NamedSharding(mesh, PartitionSpec())), inputs)


def unet_of(remat):
    return with_dtype(random_model(UNet, replace(UNET, remat=remat)), float)


def vae_of(remat):
    return with_dtype(random_model(VAE, replace(VAE_SIZES, remat=remat)), float)


@pytest.fixture(scope="module")
def unet_on_one_device():
    shapes = {"x": (VIDEOS, FRAMES, ROWS, COLUMNS, 8), "c_noise": (VIDEOS,), "context": (VIDEOS, 5, 12)}
    inputs = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}
    return inputs, through_unet(unet_of(()), inputs)


# Each mesh with other kinds of block recomputed: one program is compared in both respects.
KINDS = [BLOCKS, ("spatial", "temporal"), ("residual", "feed_forward")]


@pytest.mark.parametrize(("sizes", "kinds"), list(zip(MESHES, KINDS, strict=True)))
def test_a_unet_gives_the_same_on_every_mesh_and_recomputed(sizes, kinds, unet_on_one_device):
    inputs, wanted = unet_on_one_device
    found = on_mesh(through_unet, sizes, unet_of(kinds), inputs)
    assert found[0].sharding.shard_shape(found[0].shape)[3] == COLUMNS // sizes[2]
    same(found, wanted)


@pytest.fixture(scope="module")
def vae_on_one_device():
    # Latents' columns divide too: where they do not, XLA doubles a gradient, and a run refuses such a mesh.
    video = normal(4, VIDEOS, FRAMES, 2 * ROWS, 2 * COLUMNS, 3)
    return video, through_vae(vae_of(False), video)


@pytest.mark.parametrize(("sizes", "remat"), list(zip(MESHES, (False, True, False), strict=True)))
def test_a_vae_gives_the_same_on_every_mesh_and_recomputed(sizes, remat, vae_on_one_device):
    video, wanted = vae_on_one_device
    same(on_mesh(through_vae, sizes, vae_of(remat), video), wanted)


@pytest.mark.parametrize("columns", [16, 10])
def test_each_device_attends_from_its_columns(columns):
    """Eight devices share an image's queries, or have all of them where columns do not divide."""
    q, k, v = (normal(seed, 2, 3, columns, 2, 8) for seed in range(3))
    found = on_mesh(lambda _, qkv: jax.jit(attention)(*qkv), (1, 1, 8), (), (q, k, v))
    share = columns // 8 if columns % 8 == 0 else columns
    assert found.sharding.shard_shape(found.shape)[2] == share
    same(found, attention(q, k, v))


def test_axes_are_split_as_far_as_they_divide():
    assert spec_of((8, 3, 4, 16, 5), "b ... w c") == PartitionSpec(*[None] * 5)
    assert context_size() == 1
    with jax.set_mesh(mesh_of((2, 2, 2))):
        assert context_size() == 2
        both, first = ("data", "fsdp"), ("data",)
        assert spec_of((8, 3, 4, 16, 5), "b ... w c") == PartitionSpec(both, None, None, ("context",), None)
        assert spec_of((6, 3, 4, 15, 5), "b ... w c") == PartitionSpec(first, None, None, None, None)
        assert spec_of((3, 4, 8, 8, 3), "b frames ...") == PartitionSpec(None, ("context",), None, None, None)


def test_without_a_mesh_and_inside_a_shard_map_nothing_is_constrained():
    x = normal(5, 4, 4, 16, 8)
    assert constrain(x) is x
    mesh = mesh_of((1, 1, 8))
    with jax.set_mesh(mesh):
        spec = PartitionSpec(None, None, "context")
        inside = jax.shard_map(lambda x: constrain(2 * x), in_specs=spec, out_specs=spec)
        text = str(jax.make_jaxpr(inside)(x))
        assert "sharding_constraint" in str(jax.make_jaxpr(constrain)(x))
    assert "sharding_constraint" not in text


def test_inside_a_shard_map_over_videos_their_columns_are_still_shared():
    seen = []

    def inside(x):
        seen.append((context_size(), spec_of(x.shape, "b ... w c")))
        return constrain(2 * x)

    rows = PartitionSpec("data")
    split = jax.shard_map(inside, mesh=mesh_of((2, 1, 4)), in_specs=rows, out_specs=rows, axis_names={"data"})
    x = normal(5, 4, 4, 16, 8)
    found = jax.jit(split)(x)
    assert seen[0] == (4, PartitionSpec(None, None, ("context",), None))
    assert found.sharding.shard_shape(found.shape) == (2, 4, 4, 8)
    same(found, 2 * x)
