"""The text-conditioned task: captions become tokens, then context; a dropped caption becomes the empty one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.tokenizer import tokenize
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.tasks import DropRates, Task, TextToVideo, drop, embed_scalars, task_of
from tests.weights import random_model

TINY = SVDConfig(
    unet=UNetConfig(
        in_channels=4,
        channels=(32,),
        num_res_blocks=1,
        attention=(False,),
        head_dim=32,
        context_dim=8,
        vector_dim=8,
        norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4),
    image_encoder=None,
    text_encoder=CLIPTextConfig(width=8, layers=2, heads=1, mlp_dim=8, context_length=12, projection_dim=None),
    task="text_to_video",
    scalars=(("fps", 4), ("motion_bucket", 4)),
)
CAPTIONS = ["a dog runs", "waves"]


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, TINY)


@pytest.fixture(scope="module")
def batch():
    captioned = {"caption": CAPTIONS, "fps": np.float32([7, 24]), "motion_bucket": np.float32([1, 200])}
    return TextToVideo(config=TINY).prepare(captioned)


def keys(count):
    return row_keys(jax.random.key(0), jnp.arange(count))


def conditioning(model, batch, frames=3):
    task = TextToVideo(config=TINY)
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    return task.condition(model, task.request_from_batch(arrays, keys(2)), frames)


def test_captions_become_tokens_on_the_host(batch):
    assert set(batch) == {"tokens", "fps", "motion_bucket"}
    np.testing.assert_array_equal(batch["tokens"], tokenize(CAPTIONS, context_length=12))
    assert batch["tokens"].dtype == np.int32


def test_without_any_text_the_batch_is_refused():
    with pytest.raises(UserError, match="needs captions"):
        TextToVideo(config=TINY).prepare({"fps": np.ones(1)})


def test_the_context_is_the_text_towers_and_fps_enters_one_lower(model, batch):
    cond = conditioning(model, batch)
    np.testing.assert_array_equal(cond.context, model.text_encoder(tokenize(CAPTIONS, context_length=12)))
    values = {"fps": jnp.asarray([6.0, 23.0]), "motion_bucket": jnp.asarray([1.0, 200.0])}
    np.testing.assert_array_equal(cond.vector, embed_scalars(TINY.scalars, values, 3))
    assert cond.concat is None


def test_a_cached_embedding_is_what_the_encoder_says(model, batch):
    embedding = model.text_encoder(batch["tokens"])
    cached = {name: batch[name] for name in ("fps", "motion_bucket")} | {"text_embedding": embedding}
    known = conditioning(model, TextToVideo(config=TINY).prepare({**cached, "caption": CAPTIONS}))
    for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(conditioning(model, batch)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropped_texts_become_the_empty_one(model, batch):
    cond = conditioning(model, batch)
    empty = TextToVideo(config=TINY).unconditional(model, cond)
    np.testing.assert_array_equal(empty.context[0], model.text_encoder(tokenize([""], context_length=12))[0])
    np.testing.assert_array_equal(empty.vector, cond.vector)
    many, none = (jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, axis=0), c) for c in (cond, empty))
    dropped, counts = drop(many, none, keys(4000), DropRates(context=0.15, concat=0.0, both=0.0))
    lost = (np.asarray(dropped.context) == np.asarray(none.context)).all((1, 2))
    kept = (np.asarray(dropped.context) == np.asarray(many.context)).all((1, 2))
    assert (lost ^ kept).all()
    # Four standard errors of a proportion of 0.15 with 4,000 draws.
    assert lost.mean() == pytest.approx(0.15, abs=0.023)
    assert set(counts) == {"dropped_context"} and int(counts["dropped_context"][0]) == lost.sum()


def test_a_users_request_is_what_a_clip_of_that_caption_answers(model, batch):
    task = TextToVideo(config=TINY)
    inputs = task.inputs_from_batch({"caption": CAPTIONS, "video": None})
    request = jax.tree.map(jnp.asarray, task.request(SamplingDefaults(fps=7.0, motion_bucket=1.0), **inputs))
    asked = task.condition(model, task.complete(request, keys(2)), 3)
    answered = conditioning(model, batch)
    np.testing.assert_array_equal(asked.context, answered.context)
    np.testing.assert_array_equal(asked.vector[0], answered.vector[0])
    with pytest.raises(UserError, match="need held-out clips with captions"):
        task.inputs_from_batch({"video": None})


def test_a_negative_and_a_temporal_prompt_reach_their_branches(model):
    """The temporal layers get their own tokens; both kinds move away from the negative text."""
    task = TextToVideo(config=TINY)

    def embedded(*texts):
        return model.text_encoder(tokenize(texts, context_length=12))

    given = {"prompts": CAPTIONS, "negative_prompt": "blurry", "temporal_prompt": "panning"}
    request = jax.tree.map(jnp.asarray, task.request(SamplingDefaults(), **given))
    cond = task.condition(model, request, 2)
    np.testing.assert_array_equal(cond.context, embedded(*CAPTIONS))
    np.testing.assert_array_equal(cond.temporal_context, embedded("panning", "panning"))
    uncond = task.unconditional(model, cond, request)
    for context in (uncond.context, uncond.temporal_context):
        np.testing.assert_array_equal(context, embedded("blurry", "blurry"))


def test_a_request_needs_a_text_encoder():
    with pytest.raises(UserError, match="no text encoder"):
        TextToVideo(config=dataclasses.replace(TINY, text_encoder=None)).request(SamplingDefaults(), prompts=[""])


def test_an_image_model_has_no_scalars(model, batch):
    task = task_of(dataclasses.replace(TINY, task="text_to_image", scalars=()))
    request = task.request_from_batch({"tokens": jnp.asarray(batch["tokens"])}, keys(2))
    assert task.condition(model, request, 1).vector is None


def test_tasks_are_found_by_name():
    for name in ("image_to_video", "text_to_video", "text_to_image"):
        assert isinstance(task_of(dataclasses.replace(TINY, task=name)), Task)
    with pytest.raises(UserError, match="no task frame_dropping"):
        task_of(dataclasses.replace(TINY, task="frame_dropping"))
