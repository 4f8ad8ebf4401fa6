"""The image-to-video task: what enters the UNet, guidance's other branch, and dropout in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.params import with_dtype
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.tasks import Conditioning, DropRates, ImageRequest, ImageToVideo, drop, embed_scalars, network_of
from svdjax.tasks.conditioning import pad_to_multiple
from tests.weights import random_model

TINY = SVDConfig(
    unet=UNetConfig(
        channels=(32, 64),
        num_res_blocks=1,
        attention=(False, True),
        head_dim=32,
        context_dim=24,
        vector_dim=48,
        norm_groups=4,
    ),
    vae=VAEConfig(channels=(32, 32), num_res_blocks=1, norm_groups=4),
    image_encoder=CLIPVisionConfig(
        width=32, layers=1, heads=2, mlp_dim=64, patch_size=28, image_size=56, projection_dim=24
    ),
    scalars=(("fps", 16), ("motion_bucket", 16), ("noise_aug", 16)),
)


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, TINY)


@pytest.fixture(scope="module")
def condition(model):
    task = ImageToVideo(config=TINY)
    return jax.jit(lambda request, frames: task.condition(model, request, frames), static_argnums=1)


def request_for(seed, batch=2, size=16):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(-1, 1, (batch, size, size, 3)), jnp.float32)
    return ImageRequest(
        image=images,
        fps=jnp.full(batch, 7.0),
        motion_bucket=jnp.full(batch, 127.0),
        noise_aug=jnp.full(batch, 0.02),
        noise=jnp.asarray(rng.normal(size=images.shape), jnp.float32),
    )


def test_shapes_and_constancy_over_frames(condition):
    cond = condition(request_for(0), 3)
    assert cond.context.shape == (2, 1, 24)
    assert cond.concat.shape == (2, 3, 8, 8, 4)
    assert cond.vector.shape == (2, 3, 48)
    np.testing.assert_array_equal(cond.concat[:, 0], cond.concat[:, 2])


def test_fps_enters_one_lower_and_the_scalars_in_order(condition):
    cond = condition(request_for(0), 1)
    half = 8
    frequencies = np.exp(-np.log(10000) * np.arange(half) / half)
    for index, value in enumerate((6.0, 127.0, 0.02)):
        want = np.concatenate([np.cos(value * frequencies), np.sin(value * frequencies)])
        np.testing.assert_allclose(cond.vector[0, 0, 16 * index : 16 * (index + 1)], want, atol=2e-5)


def test_clip_sees_the_clean_picture_and_the_vae_the_noised_one(condition):
    request = request_for(0)
    clean = condition(request, 1)
    louder = condition(dataclasses.replace(request, noise_aug=jnp.full(2, 0.5)), 1)
    np.testing.assert_array_equal(clean.context, louder.context)
    assert np.abs(clean.concat - louder.concat).max() > 1e-3


def test_the_latent_is_the_unscaled_mode(model, condition):
    request = dataclasses.replace(request_for(0), noise_aug=jnp.zeros(2))
    cond = condition(request, 1)
    np.testing.assert_allclose(cond.concat[:, 0], model.vae.encode(request.image).mode(), atol=1e-5)


def test_the_unconditional_branch_keeps_the_scalars(model, condition):
    task = ImageToVideo(config=TINY)
    cond = condition(request_for(0), 2)
    uncond = task.unconditional(model, cond)
    assert not uncond.context.any() and not uncond.concat.any()
    np.testing.assert_array_equal(uncond.vector, cond.vector)


def test_a_training_clip_is_answered_by_its_first_frame():
    batch = {
        "video": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3, 8, 8, 3)), jnp.float32),
        "fps": jnp.full(4, 7.0),
        "motion_bucket": jnp.arange(4.0),
    }
    request = ImageToVideo(config=TINY).request_from_batch(batch, row_keys(jax.random.key(0), jnp.arange(4)))
    np.testing.assert_array_equal(request.image, batch["video"][:, 0])
    np.testing.assert_array_equal(request.motion_bucket, np.arange(4))
    assert (request.noise_aug > 0).all() and len(np.unique(request.noise_aug)) == 4


def test_padding_repeats_the_edge_and_can_be_cropped_back():
    image = np.random.default_rng(0).uniform(-1, 1, (30, 50, 3)).astype(np.float32)
    padded = pad_to_multiple(image, 64)
    assert padded.shape == (64, 64, 3)
    np.testing.assert_array_equal(padded[:30, :50], image)
    np.testing.assert_array_equal(padded[40, :50], image[-1])


def test_a_users_request_is_padded_for_the_networks_and_whole_for_clip(condition):
    """Of a picture of an odd size the token is that of the picture itself, the latent that of the padded one."""
    task, keys = ImageToVideo(config=TINY), row_keys(jax.random.key(3), jnp.arange(2))
    images = np.random.default_rng(4).uniform(-1, 1, (2, 14, 13, 3)).astype(np.float32)
    defaults = SamplingDefaults(height=14, width=13, fps=9.0, motion_bucket=30.0, noise_aug=0.1)
    request = task.request(defaults, images=images)
    assert request.noise is None and [float(x[0]) for x in (request.fps, request.motion_bucket)] == [9.0, 30.0]
    noise = np.stack([jax.random.normal(key, (16, 16, 3)) for key in keys])
    found = condition(task.complete(request, keys), 2)
    scalars = {"fps": request.fps, "motion_bucket": request.motion_bucket, "noise_aug": request.noise_aug}
    padded = pad_to_multiple(images, 4)
    clip_image = preprocess(jnp.asarray(images), size=56)
    want = ImageRequest(image=padded, noise=jnp.asarray(noise), clip_image=clip_image, **scalars)
    assert_same(found, condition(want, 2))


def test_a_request_for_another_model_or_size_is_refused():
    images = np.zeros((1, 16, 24, 3), np.float32)
    with pytest.raises(UserError, match="pictures of 16x24 pixels for videos of 16x16"):
        ImageToVideo(config=TINY).request(SamplingDefaults(height=16, width=16), images=images)
    with pytest.raises(UserError, match="no image encoder"):
        task = ImageToVideo(config=dataclasses.replace(TINY, image_encoder=None))
        task.request(SamplingDefaults(height=16, width=24), images=images)


def test_a_clip_answers_a_request_for_its_first_frame():
    video = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16, 3)).astype(np.float32)
    inputs = ImageToVideo(config=TINY).inputs_from_batch({"video": video, "caption": ["", ""]})
    assert set(inputs) == {"images"}
    np.testing.assert_array_equal(inputs["images"], video[:, 0])


def test_dropout_happens_as_often_as_asked():
    videos = 20_000
    cond = Conditioning(
        context=jnp.ones((videos, 1, 1)), concat=jnp.ones((videos, 1, 1, 1, 1)), vector=jnp.ones((videos, 1, 1))
    )
    rates = DropRates(context=0.1, concat=0.2, both=0.05)
    nothing = jax.tree.map(jnp.zeros_like, cond)
    dropped, counts = drop(cond, nothing, row_keys(jax.random.key(1), jnp.arange(videos)), rates)
    context, concat = np.asarray(dropped.context).ravel() == 0, np.asarray(dropped.concat).ravel() == 0
    # Four standard errors of a proportion around 0.2 with 20,000 draws are 0.011.
    assert np.mean(context & ~concat) == pytest.approx(0.1, abs=0.011)
    assert np.mean(concat & ~context) == pytest.approx(0.2, abs=0.011)
    assert np.mean(context & concat) == pytest.approx(0.05, abs=0.011)
    assert dropped.vector.all()
    np.testing.assert_array_equal(counts["dropped_context"], [context.sum(), videos])
    np.testing.assert_array_equal(counts["dropped_concat"], [concat.sum(), videos])


def test_dropout_rates_that_are_no_probabilities_are_refused():
    with pytest.raises(UserError, match="together at most 1"):
        DropRates(context=0.5, concat=0.5, both=0.1)


def assert_same(known, fresh):
    for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.fixture(scope="module")
def cache(model):
    """A batch, and what a cache holds of it: three noised first frames with their levels, and CLIP's embeddings."""
    rng = np.random.default_rng(5)
    video = jnp.asarray(rng.uniform(-1, 1, (2, 3, 16, 16, 3)), jnp.float32)
    levels = jnp.asarray([[0.01, 0.02, 0.04], [0.08, 0.16, 0.32]])
    noise = jnp.asarray(rng.normal(size=(2, 3, 16, 16, 3)), jnp.float32)
    encode = jax.jit(lambda images: model.vae.encode(images).mode())
    draws = [encode(video[:, 0] + levels[:, k, None, None, None] * noise[:, k]) for k in range(3)]
    batch = {"video": video, "fps": jnp.full(2, 7.0), "motion_bucket": jnp.full(2, 127.0)}
    cached = {
        "image_embedding": model.image_encoder(preprocess(video[:, 0], size=56)),
        "cond_latents": jnp.stack(draws, axis=1),
        "cond_noise_aug": levels,
    }
    return batch, cached, noise


def test_a_cached_embedding_is_what_the_encoder_says(cache, condition):
    batch, cached, _ = cache
    keys = row_keys(jax.random.key(0), jnp.arange(2))
    task = ImageToVideo(config=TINY)
    fresh = condition(task.request_from_batch(batch, keys), 2)
    known = condition(task.request_from_batch(batch | {"image_embedding": cached["image_embedding"]}, keys), 2)
    assert_same(known, fresh)


def test_cached_conditioning_latents_are_what_the_encoder_makes_of_the_same_noise(cache, condition):
    batch, cached, noise = cache
    scalars = {name: batch[name] for name in ("fps", "motion_bucket")}
    seen = set()
    for seed in range(8):
        keys = row_keys(jax.random.key(seed), jnp.arange(2))
        request = ImageToVideo(config=TINY).request_from_batch(scalars | cached, keys)
        assert request.image is None
        drawn = [int(np.argmin(np.abs(cached["cond_noise_aug"][row] - request.noise_aug[row]))) for row in (0, 1)]
        seen |= {(row, k) for row, k in enumerate(drawn)}
        if seed == 0:
            picked = jnp.stack([noise[row, k] for row, k in enumerate(drawn)])
            aug = request.noise_aug
            encoded = ImageRequest(image=batch["video"][:, 0], noise_aug=aug, noise=picked, **scalars)
            known, fresh = condition(request, 2), condition(encoded, 2)
            assert_same(known, fresh)
    assert len(seen) == 6, "every draw of every video is used"


def test_a_batch_without_pixels_needs_the_whole_cache():
    task = ImageToVideo(config=TINY)
    batch = {"latents": np.zeros(1), "cond_latents": np.zeros(1), "cond_noise_aug": np.zeros(1)}
    with pytest.raises(UserError, match="lacks image_embedding"):
        task.prepare(batch)
    whole = batch | {"image_embedding": np.zeros(1)}
    assert task.prepare({**whole, "caption": ["a hill"]}) == whole


def test_scalars_may_differ_per_frame():
    poses = jnp.asarray([[0.1, 0.2, 0.3]])
    embedded = embed_scalars((("azimuth", 8), ("noise_aug", 8)), {"azimuth": poses, "noise_aug": jnp.ones(1)}, 3)
    assert embedded.shape == (1, 3, 16)
    assert len(np.unique(np.asarray(embedded[0, :, 0]))) == 3
    np.testing.assert_array_equal(embedded[0, 0, 8:], embedded[0, 2, 8:])


def test_the_network_computes_in_its_own_type_and_answers_in_the_callers(model, condition):
    half = with_dtype(model, jnp.bfloat16)
    cond = condition(request_for(0), 2)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 8, 8, 4)), jnp.float32)
    full, rounded = (jax.jit(network_of(m.unet))(x, jnp.zeros(2), cond) for m in (model, half))
    assert rounded.dtype == jnp.float32
    difference = np.abs(full - rounded).max() / np.abs(full).max()
    assert 1e-4 < difference < 5e-2, "bfloat16 rounding should be visible, and small"
