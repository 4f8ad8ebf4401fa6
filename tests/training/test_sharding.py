"""What lies where, and that it does not matter to the result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.optim import OptimConfig, make_optimizer
from svdjax.training.sharding import (
    PARAM_AXES,
    AtRest,
    BatchLayout,
    gather,
    param_shardings,
    param_spec,
    place,
    place_whole,
    spec_table,
    state_shardings,
)
from svdjax.training.state import new_state


def mesh_of(devices: int = 8, **sizes: int):
    return make_mesh(MeshConfig(**sizes), jax.devices()[:devices])


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"fsdp": 2}, (4, 2, 1)),
        ({"context": 4}, (1, 2, 4)),
        ({"fsdp": 2, "context": 2}, (2, 2, 2)),
    ],
)
def test_data_takes_what_the_other_axes_leave(sizes, shape):
    assert tuple(mesh_of(**sizes).shape.values()) == shape


def test_axes_that_do_not_divide_the_devices_are_refused():
    with pytest.raises(UserError, match=r"--mesh.fsdp 3 x --mesh.context 1 does not divide the 8 devices"):
        mesh_of(fsdp=3)
    with pytest.raises(UserError, match="must be at least 1"):
        mesh_of(context=0)


@pytest.mark.parametrize(
    ("shape", "parts", "spec"),
    [
        ((3, 3, 320, 640), 8, P(None, None, None, PARAM_AXES)),  # the largest axis
        ((3, 3, 640, 320), 64, P(None, None, PARAM_AXES)),
        ((1024, 1024), 16, P(None, PARAM_AXES)),  # of equal ones the last
        ((1280, 320), 64, P(PARAM_AXES)),
        ((3, 3, 320, 4), 64, P(None, None, PARAM_AXES)),  # under 2**14 values it would stay whole
        ((3, 3, 8, 320), 64, P(None, None, None, PARAM_AXES)),
        ((1280,), 8, P()),
        ((3, 3, 3, 1009), 8, P()),  # nothing divides
        ((1280, 320), 1, P()),
    ],
)
def test_a_parameter_is_cut_along_its_largest_divisible_axis(shape, parts, spec):
    assert param_spec(shape, parts) == (P() if np.prod(shape) < 2**14 else spec)


def test_a_sixty_fourth_of_svd_is_a_sixty_fourth_of_its_bytes():
    """320 = 64 x 5: every level divides, so that a chip of 64 holds little more than its share."""
    mesh = jax.sharding.AbstractMesh((1, 16, 4), ("data", "fsdp", "context"))
    params = flat_params(abstract(SVD, SVDConfig.svd()).unet)
    rows = spec_table(params, mesh)
    total = sum(4 * int(np.prod(shape)) for _, shape, _, _ in rows)
    assert total == 4 * 1_524_623_082
    assert sum(size for *_, size in rows) == pytest.approx(total / 64, rel=0.1)


def test_moments_and_average_lie_where_their_parameter_lies():
    mesh = mesh_of()
    params = {"big.kernel": jnp.zeros((256, 512)), "small.bias": jnp.zeros(8)}
    optimizer = make_optimizer(OptimConfig(), 10)
    state = jax.eval_shape(lambda: new_state(params, optimizer))
    for offload, kind in ((False, "device"), (True, "pinned_host")):
        shardings = state_shardings(state, optimizer, mesh, offload=offload)
        moments = optax.tree.get(shardings.opt_state, "mu")
        assert moments["big.kernel"].spec == shardings.ema["big.kernel"].spec == P(None, PARAM_AXES)
        assert moments["big.kernel"].memory_kind == shardings.ema["big.kernel"].memory_kind == kind
        assert shardings.params["big.kernel"].memory_kind == "device"
        assert shardings.params["small.bias"].spec == shardings.step.spec == P()


@pytest.mark.parametrize(("size", "parts"), [(8, 8), (16, 8), (2, 2), (4, 4), (3, 1)])
def test_a_batch_lies_on_as_many_devices_as_divide_it(size, parts):
    layout = BatchLayout(mesh_of(fsdp=4), size)
    assert layout.parts == parts
    assert layout.rows == list(range(size))
    values = np.arange(size * 3).reshape(size, 3)
    placed = layout.place({"x": values})["x"]
    assert np.array_equal(gather(placed), values)
    assert placed.addressable_data(0).shape == (size // parts, 3)


@pytest.mark.parametrize(("width", "columns"), [(16, 4), (10, 10)])
def test_devices_that_share_a_video_hold_its_columns(width, columns):
    layout = BatchLayout(mesh_of(fsdp=2, context=4), 2)
    video = np.arange(2 * 3 * 4 * width * 3).reshape(2, 3, 4, width, 3)
    placed = layout.place({"video": video, "fps": np.ones(2)})
    assert placed["video"].addressable_data(0).shape == (1, 3, 4, columns, 3)
    assert placed["fps"].addressable_data(0).shape == (1,)
    assert np.array_equal(gather(placed["video"]), video)


def test_what_is_placed_is_gathered_whole():
    mesh = mesh_of()
    values = {"kernel": np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)}
    placed = place(values, mesh)["kernel"]
    assert placed.sharding == param_shardings(values, mesh)["kernel"]
    assert placed.addressable_data(3).shape == (128, 32)
    assert np.array_equal(gather(placed), values["kernel"])
    assert np.array_equal(gather(place_whole({"x": values["kernel"][:16]}, mesh)["x"]), values["kernel"][:16])


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2}, {"fsdp": 1}])
def test_what_rests_in_the_hosts_memory_comes_back_where_it_was(sizes):
    values = {"kernel": np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)}
    placed = place(values, mesh_of(**sizes))["kernel"]
    resting = AtRest.of(placed)
    sharding = placed.sharding
    placed.delete()
    assert sum(part.nbytes for part in resting.parts.values()) == values["kernel"].nbytes  # one copy
    assert resting.placed().sharding == sharding
    assert np.array_equal(resting.placed(), values["kernel"]) and np.array_equal(gather(resting), values["kernel"])


def test_parameters_of_one_shape_are_gathered_by_one_program(monkeypatch, caplog):
    params = place({f"{i}": np.full((128, 256), i, np.float32) for i in range(3)}, mesh_of())
    # As with several processes, of which each holds a part.
    monkeypatch.setattr(type(params["0"]), "is_fully_addressable", property(lambda array: False))
    with jax.log_compiles():
        assert [int(gather(value).max()) for value in params.values()] == [0, 1, 2]
    assert len([record for record in caplog.records if "Compiling jit" in record.getMessage()]) == 1
