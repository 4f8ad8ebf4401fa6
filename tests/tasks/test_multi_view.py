"""The multi-view task: which scalars enter, in which units, of which view, for SVD-MV and both SV3D."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.conversion.checkpoint import shapes_of
from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.tasks import MultiView, task_of

GOLDEN = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens")) / "sgm_sv3d_p"
SCALARS = {
    "svd_mv": (("fps", 8), ("motion_bucket", 8), ("noise_aug", 8), ("elevation", 8)),
    "sv3d_u": (("noise_aug", 8),),
    "sv3d_p": (("noise_aug", 8), ("polar", 16), ("azimuth", 16)),
}
DEFAULTS = SamplingDefaults(frames=3, height=8, width=8, noise_aug=1e-5, fps=9.0, motion_bucket=40.0)


def config_of(kind):
    return SVDConfig(
        unet=UNetConfig(
            channels=(32,), num_res_blocks=1, attention=(False,), head_dim=32, context_dim=8, norm_groups=4
        ),
        vae=VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4),
        image_encoder=CLIPVisionConfig(
            width=16, layers=1, heads=1, mlp_dim=16, patch_size=16, image_size=32, projection_dim=8
        ),
        task="multi_view",
        scalars=SCALARS[kind],
        defaults=DEFAULTS,
    )


def task(kind):
    return task_of(config_of(kind))


def sinusoids(value, width):
    """Of one number, as every scalar is embedded."""
    angles = value * 10000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)])


def vector_of(one, request, frames=3):
    """The embedded scalars of a request; what the encoders would say is given, so that none has to run."""
    videos = len(request.fps)
    known = {"embedding": jnp.zeros((videos, 8)), "latent": jnp.zeros((videos, 4, 4, 4))}
    request = dataclasses.replace(jax.tree.map(jnp.asarray, request), **known)
    return np.asarray(one.condition(shapes_of(one.config), request, frames).vector)


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "video": rng.uniform(-1, 1, (2, 3, 8, 8, 3)).astype(np.float32),
        "fps": np.full(2, 9.0, np.float32),
        "motion_bucket": np.full(2, 40.0, np.float32),
        "azimuths": np.float32([[200, 320, 80], [0, 120, 240]]),
        "elevation": np.float32([-5, 30]),
    }


def test_a_checkpoint_of_sv3d_is_of_this_task():
    for config in (SVDConfig.sv3d_u(), SVDConfig.sv3d_p()):
        assert isinstance(task_of(config), MultiView) and task_of(config).picture == -1
    assert task("svd_mv").picture == 0


def test_angles_of_sv3d_are_polar_and_relative_to_the_last_view(batch):
    """Elevation -5 is 95 degrees from the pole; of azimuths 200, 320, 80 the last is 0, the others 120 and 240."""
    sv3d = task("sv3d_p")
    request = sv3d.request_from_batch(on_device(batch), row_keys(jax.random.key(0), jnp.arange(2)))
    vector = vector_of(sv3d, request)
    assert vector.shape == (2, 3, 40)
    for video, elevation in enumerate((-5, 30)):
        for view, azimuth in enumerate((120, 240, 0)):
            polar, turn = np.deg2rad(90 - elevation), np.deg2rad(azimuth)
            want = [sinusoids(1e-5, 8), sinusoids(polar, 16), sinusoids(turn, 16)]
            np.testing.assert_allclose(vector[video, view], np.concatenate(want), atol=2e-6)


def test_svd_mv_is_told_its_scalars_and_the_elevation_in_degrees(batch):
    request = task("svd_mv").request_from_batch(on_device(batch), row_keys(jax.random.key(0), jnp.arange(2)))
    vector = vector_of(task("svd_mv"), request)
    assert len(np.unique(request.noise_aug)) == 2, "levels are drawn"
    for video, elevation in enumerate((-5, 30)):
        values = (8.0, 40.0, float(request.noise_aug[video]), elevation)
        want = np.concatenate([sinusoids(value, 8) for value in values])
        np.testing.assert_allclose(vector[video], np.tile(want, (3, 1)), atol=2e-5)


@pytest.mark.parametrize("kind", SCALARS)
def test_training_and_sampling_ask_for_the_same(kind, batch):
    """Of the same clip; from the requests on they go the same way."""
    one, keys = task(kind), row_keys(jax.random.key(3), jnp.arange(2))
    trained = one.request_from_batch(on_device(batch), keys)
    sampled = one.complete(one.request(DEFAULTS, **one.inputs_from_batch(batch)), keys)
    assert [float(x) for x in sampled.noise_aug] == pytest.approx([1e-5] * 2)
    view = {"svd_mv": 0}.get(kind, -1)
    np.testing.assert_array_equal(trained.image, batch["video"][:, view])
    np.testing.assert_array_equal(sampled.image, trained.image)
    assert sampled.unpadded is None and sampled.noise.shape == trained.noise.shape
    if kind == "svd_mv":  # whose level is drawn in training and chosen in sampling
        trained = dataclasses.replace(trained, noise_aug=sampled.noise_aug)
    np.testing.assert_allclose(vector_of(one, trained), vector_of(one, sampled), rtol=1e-5, atol=1e-6)


def test_left_out_poses_are_a_level_turn_ten_degrees_up():
    images = np.zeros((2, 8, 8, 3), np.float32)
    request = task("sv3d_p").request(DEFAULTS, images=images)
    np.testing.assert_array_equal(request.elevation, [10, 10])
    np.testing.assert_array_equal(request.azimuths, [[120, 240, 0]] * 2)
    assert task("sv3d_u").request(DEFAULTS, images=images).azimuths is None


def test_only_sv3d_returns_the_picture_as_the_last_view():
    images = np.random.default_rng(1).uniform(-1, 1, (1, 7, 8, 3)).astype(np.float32)  # padded to 8 rows
    frames = np.zeros((1, 3, 7, 8, 3), np.float32)
    defaults = dataclasses.replace(DEFAULTS, height=7)
    for kind, overwritten in (("sv3d_u", True), ("sv3d_p", True), ("svd_mv", False)):
        made = task(kind).finish(task(kind).request(defaults, images=images), frames)
        assert made.shape == frames.shape and not made[:, :2].any()
        np.testing.assert_array_equal(made[:, 2], images if overwritten else frames[:, 2])


@pytest.mark.parametrize(
    "kind, poses, says",
    [
        ("sv3d_u", {"elevation": np.zeros(1)}, "--elevation: this model does not read it"),
        ("svd_mv", {"azimuths": np.zeros((1, 3))}, "--azimuths: this model does not read it"),
        ("sv3d_p", {"azimuths": np.zeros((1, 2))}, "azimuths: 2 given for 3 views"),
        ("sv3d_p", {"elevation": np.zeros((1, 2))}, "--elevation: 2 given for 3 views"),
        ("sv3d_p", {"azimuths": np.array([[240.0, 120.0, 0.0]])}, "azimuths: must rise"),
    ],
)
def test_poses_that_make_no_orbit_are_refused(kind, poses, says):
    with pytest.raises(UserError, match=says):
        task(kind).request(DEFAULTS, images=np.zeros((1, 8, 8, 3), np.float32), **poses)


def test_clips_without_poses_are_refused_where_they_are_read(batch):
    plain = {name: batch[name] for name in ("video", "fps", "motion_bucket")}
    for kind, missing in (("sv3d_p", "elevation and azimuths"), ("svd_mv", "elevation")):
        for method in (task(kind).prepare, task(kind).inputs_from_batch):
            with pytest.raises(UserError, match=f"clips without {missing}, .* set --data.sampling.views"):
                method(plain)
    assert task("sv3d_u").prepare({**plain, "caption": ["", ""]}).keys() == plain.keys()


@pytest.mark.parametrize("kind", SCALARS)
def test_the_frame_that_a_cache_keeps_is_the_one_asked_by(kind, batch):
    one, keys = task(kind), row_keys(jax.random.key(0), jnp.arange(2))
    known = on_device(batch) | {"image_embedding": jnp.zeros((2, 8))}
    kept = one.encoded(shapes_of(one.config), known, keys, 0)["video"]
    np.testing.assert_array_equal(kept[:, 0], batch["video"][:, one.picture])
    again = one.request_from_batch({**known, "video": kept}, keys)
    np.testing.assert_array_equal(again.image, batch["video"][:, one.picture])


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN} is not there (set SVDJAX_GOLDENS)")
def test_the_vector_of_the_original_code():
    """Its case has elevations of 5, 10 and 15 degrees and an even turn; float32 there and here."""
    with np.load(GOLDEN / "golden" / "conditioner.npz") as file:
        golden = file["c_vector"]
    scalars = (("noise_aug", 32), ("polar", 64), ("azimuth", 64))
    original = MultiView(config=dataclasses.replace(config_of("sv3d_p"), scalars=scalars))
    elevation, images = np.float32([[5, 10, 15]]), np.zeros((1, 8, 8, 3), np.float32)
    request = original.request(DEFAULTS, images=images, elevation=elevation)
    np.testing.assert_allclose(vector_of(original, request)[0], golden, atol=1e-6)
