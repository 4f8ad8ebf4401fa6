"""The tasks with known frames: what enters the UNet, that nothing of the others does, and who learns what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.conversion.convert import convert
from svdjax.conversion.native import save_native
from svdjax.conversion.source import load_model
from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.params import flat_params, load_flat
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.tasks import DropRates, KnownFrames, Task, embed_scalars, task_of
from svdjax.tasks.conditioning import pad_to_multiple
from svdjax.tasks.known_frames import PATTERNS, beginning, ends, scattered
from svdjax.training.diffusion_stage import DiffusionStage
from tests.training.tiny import MODEL
from tests.weights import random_model

T, FACTOR = 5, 2
TINY = dataclasses.replace(
    MODEL,
    unet=dataclasses.replace(MODEL.unet, in_channels=9),
    task="frame_interpolation",
    missing_frame=(8, 8, 4),
    defaults=dataclasses.replace(MODEL.defaults, frames=T),
)


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, TINY)


@pytest.fixture(scope="module")
def task():
    return KnownFrames(config=TINY)


@pytest.fixture(scope="module")
def condition(model, task):
    return jax.jit(lambda request: task.condition(model, request, T))


def keys(count=2):
    return row_keys(jax.random.key(0), jnp.arange(count))


def clips(seed=0, size=(16, 16)):
    return np.random.default_rng(seed).uniform(-1, 1, (2, T, *size, 3)).astype(np.float32)


def request_for(task, video, known=None, **scalars):
    known = np.array([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]], bool) if known is None else known
    defaults = SamplingDefaults(frames=T, height=video.shape[2], width=video.shape[3], fps=9.0, noise_aug=0.1)
    request = task.request(defaults, video=video, known=known)
    return task.complete(dataclasses.replace(request, **scalars), keys())


SILENT = {"noise_aug": np.zeros(2, np.float32)}


def test_known_frames_bring_their_latents_and_the_others_the_learned_one(task, model, condition):
    video = clips()
    concat = condition(request_for(task, video, **SILENT)).concat
    assert concat.shape == (2, T, 8, 8, 5)
    latents = model.vae.encode(jnp.asarray(video)).mode() * TINY.vae.scaling_factor
    known = np.array([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]], bool)
    np.testing.assert_allclose(concat[known][..., :4], latents[known], atol=1e-5)
    np.testing.assert_array_equal(concat[~known][..., :4], np.broadcast_to(model.missing_frame[...], (6, 8, 8, 4)))
    np.testing.assert_array_equal(concat[..., 4], np.broadcast_to(known[..., None, None], (2, T, 8, 8)))


def test_the_noise_is_on_the_known_latents_alone(task, condition):
    video = clips()
    request = request_for(task, video)
    clean = condition(dataclasses.replace(request, **SILENT)).concat
    noised = condition(request).concat
    known = np.asarray(request.known)
    np.testing.assert_allclose((noised - clean)[known][..., :4], 0.1 * request.noise[known], atol=1e-5)
    np.testing.assert_array_equal(noised[~known], clean[~known])


def test_the_tokens_are_of_the_first_and_the_last_known_frame(task, model, condition):
    video = clips()
    context = condition(request_for(task, video)).context
    seen = np.stack([video[0, 0], video[0, 4], video[1, 1], video[1, 2]])
    want = model.image_encoder(preprocess(jnp.asarray(seen), size=32)).reshape(2, 2, 8)
    np.testing.assert_allclose(context, want, atol=2e-5)


def test_pixels_of_unknown_frames_change_nothing(task, condition):
    video = clips()
    request = request_for(task, video)
    other = np.where(np.asarray(request.known)[..., None, None, None], video, clips(seed=1))
    for a, b in zip(*(jax.tree.leaves(condition(request_for(task, v))) for v in (video, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_scalars_and_the_branch_without_frames(task, model, condition):
    cond = condition(request_for(task, clips()))
    values = {"fps": jnp.full(2, 8.0), "motion_bucket": jnp.full(2, 127.0), "noise_aug": jnp.full(2, 0.1)}
    np.testing.assert_allclose(cond.vector, embed_scalars(TINY.scalars, values, T), atol=1e-6)
    nothing = task.unconditional(model, cond)
    assert not nothing.context.any() and not nothing.concat[..., 4].any()
    np.testing.assert_array_equal(
        nothing.concat[..., :4], np.broadcast_to(model.missing_frame[...], (2, T, 8, 8, 4))
    )
    np.testing.assert_array_equal(nothing.vector, cond.vector)


def test_training_and_sampling_condition_alike(task, condition):
    """For one clip, from its pixels or from a cache of latents and embeddings."""
    batch = {"video": jnp.asarray(clips()), "fps": jnp.full(2, 9.0), "motion_bucket": jnp.full(2, 127.0)}
    trained = task.request_from_batch(batch, keys())
    asked = task.request(
        SamplingDefaults(frames=T, height=16, width=16, fps=9.0),
        **task.inputs_from_batch({**batch, "video": clips()}),
    )
    asked = dataclasses.replace(asked, noise_aug=trained.noise_aug, noise=trained.noise)
    want = jax.tree.leaves(condition(asked))
    for a, b in zip(jax.tree.leaves(condition(trained)), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cache_of_latents_and_embeddings_is_what_the_encoders_say(task, model, condition):
    batch = {"video": jnp.asarray(clips()), "fps": jnp.full(2, 9.0), "motion_bucket": jnp.full(2, 127.0)}
    cached = task.encoded(model, batch, keys(), 0) | {"latents": model.vae.encode(batch["video"]).mode()}
    scalars = {name: batch[name] for name in ("fps", "motion_bucket")}
    known = condition(task.request_from_batch(scalars | cached, keys()))
    for a, b in zip(
        *(jax.tree.leaves(c) for c in (known, condition(task.request_from_batch(batch, keys())))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    with pytest.raises(UserError, match="lacks frame_embedding"):
        task.prepare(scalars | {"latents": cached["latents"]})
    assert set(task.prepare({**batch, "caption": ["", ""]})) == set(batch)


def test_odd_sizes_are_padded_for_the_vae_and_z_m_is_resized(task, model, condition):
    video = clips(size=(14, 21))
    concat = condition(request_for(task, video, **SILENT)).concat
    assert concat.shape == (2, T, 7, 11, 5)
    padded = jnp.asarray(pad_to_multiple(video, FACTOR))
    want = model.vae.encode(padded[:1, 0]).mode() * TINY.vae.scaling_factor
    np.testing.assert_allclose(concat[:1, 0, ..., :4], want, atol=1e-5)
    resized = jax.image.resize(model.missing_frame[...], (7, 11, 4), "linear")
    np.testing.assert_allclose(concat[0, 1, ..., :4], resized, atol=1e-6)


def test_finished_videos_hold_the_given_frames_and_following_ones_begin_with_them(task):
    video, made = clips(), clips(seed=1)
    request = request_for(task, video)
    finished = task.finish(request, made)
    known = np.asarray(request.known)
    np.testing.assert_array_equal(finished[known], video[known])
    np.testing.assert_array_equal(finished[~known], made[~known])
    following = task.following(request, made[:, -2:])
    np.testing.assert_array_equal(following.known, [[1, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(following.video[:, :2], made[:, -2:])


def test_each_pattern_shows_what_it_says():
    drawn = {
        name: np.stack([pattern(key, T) for key in jax.random.split(jax.random.key(1), 60)])
        for name, pattern in {"ends": ends, "beginning": beginning, "scattered": scattered}.items()
    }
    assert (drawn["ends"] == [True, False, False, False, True]).all()
    assert set(drawn["beginning"].sum(axis=1)) == {1, 2} and drawn["beginning"][:, 0].all()
    assert drawn["scattered"].any(axis=1).all() and len(np.unique(drawn["scattered"], axis=0)) > 20
    mixed = jax.vmap(lambda key: PATTERNS["known_frames"](key, T))(jax.random.split(jax.random.key(2), 2000))
    share = np.mean((np.asarray(mixed) == drawn["ends"][0]).all(axis=1))
    # 0.4 are ends on purpose, and 0.2 / 32 by chance; four standard errors are 0.044.
    assert share == pytest.approx(0.4 + 0.2 / 32, abs=0.044)


def test_the_gradient_reaches_the_learned_latent_and_the_stage_trains_it(model):
    stage, flat = DiffusionStage(batch=2, drop=DropRates(context=0.0, concat=0.0, both=0.0)), flat_params(model)
    assert stage.trains("missing_frame") and not stage.trains("vae.encoder.conv_in.kernel")
    batch = {
        "latents": jnp.asarray(np.random.default_rng(0).normal(size=(2, T, 8, 8, 4)), jnp.float32),
        "frame_embedding": jnp.ones((2, T, 8)),
        "fps": jnp.full(2, 7.0),
        "motion_bucket": jnp.full(2, 127.0),
        "row": jnp.arange(2),
    }

    def loss(learned):
        filled = load_flat(model, {**flat, "missing_frame": learned}, what="a test")
        return stage.loss(filled, batch, jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))(flat["missing_frame"])
    assert (jnp.max(jnp.abs(gradient), axis=(0, 1)) > 1e-6).all()


def test_own_formats_hold_the_learned_latent_and_others_refuse(model, tmp_path):
    path = tmp_path / "known.safetensors"
    save_native(model, path)
    convert(path, tmp_path / "folder", to="svdjax")
    read = load_model(tmp_path / "folder")
    np.testing.assert_array_equal(read.missing_frame[...], model.missing_frame[...])
    assert read.config == TINY and isinstance(task_of(read.config), Task)
    for to in ("sgm", "diffusers"):
        with pytest.raises(UserError, match="has a latent for missing frames"):
            convert(path, tmp_path / to, to=to)


def test_bad_input_is_named(task):
    video, known = clips(), np.zeros((2, T), bool)
    defaults = SamplingDefaults(frames=T, height=16, width=16)
    with pytest.raises(UserError, match="no frame is given"):
        task.request(defaults, video=video, known=known)
    with pytest.raises(UserError, match=r"frames of 5x16x16 .* for videos of 5x16x24"):
        task.request(dataclasses.replace(defaults, width=24), video=video, known=~known)
    with pytest.raises(UserError, match="needs a latent for missing frames"):
        KnownFrames(config=dataclasses.replace(TINY, missing_frame=None))
    with pytest.raises(UserError, match="no image encoder"):
        lacking = dataclasses.replace(TINY, image_encoder=None)
        KnownFrames(config=lacking).request(defaults, video=video, known=~known)


def test_the_full_size_model_is_the_papers():
    config = SVDConfig.frame_interpolation()
    assert config.unet.in_channels == 2 * config.vae.latent_channels + 1
    assert config.missing_frame == (576 // 8, 1024 // 8, 4)
    assert SVDConfig.from_json(config.to_json()) == config
