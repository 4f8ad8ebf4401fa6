"""Embeddings, scores and aesthetics against transformers and torch; towers read from checkpoints; mismatches."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from svdjax.conversion.checkpoint import Checkpoint
from svdjax.conversion.clip import classic_keys, clip_text_table, clip_vision_table
from svdjax.conversion.mapping import to_ours
from svdjax.conversion.native import write_native_file
from svdjax.curation.clip import ClipFrames
from svdjax.curation.embeddings import (
    HEAD_LAYERS,
    ImageEmbedder,
    TextEmbedder,
    check_towers,
    clip_scores,
    open_image_embedder,
    open_text_embedder,
    read_head,
)
from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, load_flat
from svdjax.models.svd import SVDConfig
from svdjax.models.tokenizer import tokenize
from tests.conversion.tiny import tiny_config
from tests.parity.reference import randomise, relative
from tests.weights import random_checkpoint

WIDTH = 48
VISION = CLIPVisionConfig(
    width=64, layers=2, heads=4, mlp_dim=96, patch_size=28, image_size=112, projection_dim=WIDTH
)
TEXT = CLIPTextConfig(width=64, layers=2, heads=4, mlp_dim=96, projection_dim=WIDTH)
TEXTS = ["a rabbit in a meadow", "", "two " * 100, "Der Hase läuft"]


def clip(seed=0, height=90, width=160):
    stills = np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), np.uint8)
    return ClipFrames(name="clip", stills=stills, moving=stills, seconds=1.0, fps=24.0)


def state_of(reference):
    """The weights of a module of transformers under the classic keys."""
    saved = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    return {classic: saved[key] for classic, key in classic_keys(saved).items() if "position_ids" not in key}


@pytest.fixture(scope="module")
def images():
    """Our image tower, and transformers' with the same weights."""
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        patch_size=28, image_size=112, projection_dim=WIDTH, hidden_act="gelu",
    )  # fmt: skip
    reference = randomise(transformers.CLIPVisionModelWithProjection(config), 0)
    flat = to_ours(clip_vision_table(VISION, "diffusers"), state_of(reference), what="test")
    return ImageEmbedder(tower=load_flat(abstract(CLIPVision, VISION), flat, what="test")), reference


@pytest.fixture(scope="module")
def texts():
    """Our text tower, and transformers' with the same weights."""
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=49408, projection_dim=WIDTH, hidden_act="gelu", eos_token_id=49407,
    )  # fmt: skip
    reference = randomise(transformers.CLIPTextModelWithProjection(config), 1)
    state = state_of(reference)
    projection = state.pop("text_model.text_projection.weight").T
    flat = to_ours(clip_text_table(replace(TEXT, projection_dim=None), "diffusers"), state, what="test")
    flat |= {"text_projection": projection, "logit_scale": np.zeros((), np.float32)}
    return TextEmbedder(tower=load_flat(abstract(CLIPText, TEXT), flat, what="test")), reference


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@torch.no_grad()
def reference_images(reference, stills):
    pixels = np.array(preprocess(jnp.asarray(stills, jnp.float32) / 127.5 - 1, size=112))
    return unit(reference(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).image_embeds.numpy())


@torch.no_grad()
def reference_texts(reference, texts):
    return unit(reference(torch.from_numpy(tokenize(texts).astype(int))).text_embeds.numpy())


def test_stills_are_embedded_as_by_transformers(images):
    embedder, reference = images
    found = np.array(embedder(clip())["clip_embedding"])
    assert found.shape == (3, WIDTH)
    assert relative(found, reference_images(reference, clip().stills)) < 2e-5
    assert relative(found[0], found[1]) > 1e-3


def test_captions_are_embedded_as_by_transformers(texts):
    embedder, reference = texts
    found = embedder.embed(TEXTS)
    assert relative(found, reference_texts(reference, TEXTS)) < 2e-5
    assert min(relative(found[i], found[j]) for i in range(4) for j in range(i)) > 1e-3


def test_the_score_of_a_caption_is_its_mean_cosine_with_the_stills(images, texts):
    captions = {"caption": TEXTS[0], "caption_image": TEXTS[2], "caption_video": TEXTS[3]}
    row = images[0](clip())
    found = clip_scores(texts[0], row["clip_embedding"], captions)
    cosines = reference_images(images[1], clip().stills) @ reference_texts(texts[1], list(captions.values())).T
    assert list(found) == ["clip_score", "clip_score_image", "clip_score_video"]
    np.testing.assert_allclose(list(found.values()), cosines.mean(0), atol=1e-5)
    assert clip_scores(texts[0], row["clip_embedding"], {}) == {}
    with pytest.raises(UserError, match=r"into 48 numbers and pictures into 5: give both towers of one CLIP"):
        check_towers(ImageEmbedder(tower=abstract(CLIPVision, replace(VISION, projection_dim=5))), texts[0])


def head_file(path, width=WIDTH, seed=0):
    """A head of LAION's shape with random weights, and the same in torch."""
    torch.manual_seed(seed)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    layers = torch.nn.Sequential(
        linear(width, 1024), dropout(0.2), linear(1024, 128), dropout(0.2),
        linear(128, 64), dropout(0.1), linear(64, 16), linear(16, 1),
    ).eval()  # fmt: skip
    assert [i for i, layer in enumerate(layers) if list(layer.parameters())] == list(HEAD_LAYERS)
    save_file({f"layers.{key}": value.numpy() for key, value in layers.state_dict().items()}, path)
    return layers


def test_the_head_rates_as_torch_does(images, tmp_path):
    layers = head_file(tmp_path / "head.safetensors")
    head = read_head(tmp_path / "head.safetensors")
    assert head.width == WIDTH
    row = replace(images[0], head=head)(clip(3))
    with torch.no_grad():
        wanted = layers(torch.from_numpy(reference_images(images[1], clip(3).stills))).mean()
    assert row["aesthetic"] == pytest.approx(float(wanted), abs=1e-5)
    assert "aesthetic" not in images[0](clip(3))


def test_towers_are_read_from_a_checkpoint(tmp_path):
    config = replace(tiny_config("sd21"), image_encoder=VISION, text_encoder=TEXT)
    path = tmp_path / "both.safetensors"
    write_native_file(random_checkpoint(config, 0), path)
    head_file(tmp_path / "head.safetensors")
    images, texts = open_image_embedder(path, tmp_path / "head.safetensors"), open_text_embedder(path)
    row = images(clip())
    np.testing.assert_allclose(np.linalg.norm(row["clip_embedding"], axis=1), 1, atol=1e-5)
    score = clip_scores(texts, row["clip_embedding"], {"caption": "a cat"})
    assert np.isfinite(row["aesthetic"]) and -1 <= score["clip_score"] <= 1
    head_file(tmp_path / "head.safetensors", width=40)
    with pytest.raises(
        UserError, match=r"head\.safetensors: rates embeddings of 40 numbers, but .*both.* gives 48"
    ):
        open_image_embedder(path, tmp_path / "head.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path, monkeypatch):
    def without_numbers(weights):
        towers = {"svd": (VISION, None), "sd": (None, replace(TEXT, last_block=False, projection_dim=None))}
        images, texts = towers[weights]
        return Checkpoint(what=weights, config=SVDConfig(image_encoder=images, text_encoder=texts), params={})

    head = tmp_path / "head.safetensors"
    head_file(head, width=40)
    with pytest.raises(UserError, match="nowhere: no such file"):
        open_image_embedder(tmp_path / "nowhere")
    monkeypatch.setattr("svdjax.curation.embeddings.open_checkpoint", without_numbers)
    monkeypatch.setattr("svdjax.curation.embeddings.load_flat", lambda module, flat, what: module)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for call, message in (
        (lambda: open_image_embedder("sd"), "sd: has no image encoder"),
        (lambda: open_text_embedder("svd"), "svd: has no text encoder"),
        (lambda: open_text_embedder("sd"), "sd: its text tower lacks the last block or the projection"),
        (lambda: read_head(tmp_path / "nowhere"), "no such file"),
        (lambda: read_head(tmp_path / "other.safetensors"), "not an aesthetics head: 10 missing"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    broken = {f"layers.{i}.{kind}": np.zeros((4, 4)[: 2 - (kind == "bias")], np.float32)
              for i in HEAD_LAYERS for kind in ("weight", "bias")}  # fmt: skip
    save_file(broken, head)
    with pytest.raises(UserError, match="do not follow one another"):
        read_head(head)
