"""CLIP against transformers, diffusers and the recorded outputs of the original code."""

import gzip
import os
from functools import partial
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from svdjax.conversion.clip import classic_keys, clip_text_table, clip_vision_table
from svdjax.conversion.mapping import to_ours, to_theirs
from svdjax.models.clip_preprocess import MEAN, STD, preprocess
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.tokenizer import _vocabulary, tokenize
from tests.parity.reference import randomise, relative

GOLDENS = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason="set SVDJAX_GOLDENS to the recorded cases")
BAR = {"float64": 1e-9, "float32": 2e-5}


def vision_reference(config, seed):
    return randomise(
        transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                patch_size=config.patch_size,
                image_size=config.image_size,
                projection_dim=config.projection_dim,
                hidden_act="gelu",
            )
        ),
        seed,
    )


def text_reference(config, seed):
    return randomise(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.held_layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.context_length,
                hidden_act="gelu",
            )
        ),
        seed,
    )


def run(tower, x, **options):
    """The compiled tower: one compilation costs less than that of every operation by itself."""
    return jax.jit(partial(tower, **options))(jnp.asarray(x))


def read_saved(reference, folder, table, dtype):
    """Our flat parameters of what ``save_pretrained`` wrote."""
    reference.save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    tensors = {classic: saved[key].astype(dtype) for classic, key in classic_keys(saved).items()}
    return to_ours(table, tensors, what="test")


@pytest.fixture(params=["float64", "float32"])
def dtype(request, x64):
    return request.param


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        (0, {}),
        (1, {}),
        (2, {"width": 96, "heads": 3, "layers": 2, "patch_size": 16, "image_size": 80, "projection_dim": 40}),
    ],
)
def test_image_tower(seed, sizes, dtype, tmp_path):
    config = CLIPVisionConfig(**{"width": 64, "layers": 3, "heads": 4, "mlp_dim": 160, "patch_size": 28} | sizes)
    reference = vision_reference(config, seed).to(getattr(torch, dtype))
    flat = read_saved(reference, tmp_path, clip_vision_table(config, "diffusers"), dtype)
    tower = load_flat(abstract(CLIPVision, config), flat, what="test")
    images = np.random.default_rng(seed).normal(size=(2, config.image_size, config.image_size, 3)).astype(dtype)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).image_embeds
    out = run(tower, images)
    assert out.dtype == dtype
    assert relative(out, expected) < BAR[dtype]


@pytest.mark.parametrize(("seed", "length"), [(0, 77), (1, 77), (2, 20)])
def test_text_tower(seed, length, dtype, tmp_path):
    config = CLIPTextConfig(width=64, layers=4, heads=4, mlp_dim=160, vocab_size=99, projection_dim=None)
    reference = text_reference(config, seed).to(getattr(torch, dtype))
    flat = read_saved(reference, tmp_path, clip_text_table(config, "diffusers"), dtype)
    tower = load_flat(abstract(CLIPText, config), flat, what="test")
    tokens = np.random.default_rng(seed).integers(0, 99, (2, length))
    with torch.no_grad():
        states = reference(torch.from_numpy(tokens), output_hidden_states=True)
        penultimate = reference.get_submodule("final_layer_norm")(states.hidden_states[-2])
    assert relative(run(tower, tokens, layer="last"), states.last_hidden_state) < BAR[dtype]
    assert relative(run(tower, tokens), penultimate) < BAR[dtype]


def test_text_tower_without_its_last_block_is_the_shorter_reference(dtype, tmp_path):
    config = CLIPTextConfig(
        width=64, layers=4, heads=4, mlp_dim=160, vocab_size=99, last_block=False, projection_dim=None
    )
    reference = text_reference(config, 3).to(getattr(torch, dtype))
    assert reference.config.num_hidden_layers == 3
    flat = read_saved(reference, tmp_path, clip_text_table(config, "diffusers"), dtype)
    tower = load_flat(abstract(CLIPText, config), flat, what="test")
    tokens = np.random.default_rng(3).integers(0, 99, (2, 77))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).last_hidden_state
    assert relative(run(tower, tokens), expected) < BAR[dtype]


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_transformers_loads_what_we_write(kind, tmp_path):
    """Classic key names, as in every published folder; nothing missing, nothing left over."""
    rng = np.random.default_rng(0)
    if kind == "vision":
        make, config, options = CLIPVision, CLIPVisionConfig.tiny(), {}
        reference, table = vision_reference(config, 0), clip_vision_table(config, "diffusers")
        x = rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
        theirs, output = torch.from_numpy(x.transpose(0, 3, 1, 2)), "image_embeds"
    else:
        make, options = CLIPText, {"layer": "last"}
        config = CLIPTextConfig(width=64, layers=3, heads=4, mlp_dim=160, vocab_size=99, projection_dim=None)
        reference, table = text_reference(config, 0), clip_text_table(config, "diffusers")
        x = rng.integers(0, 99, (1, 77))
        theirs, output = torch.from_numpy(x), "last_hidden_state"
    shapes = {path: leaf.shape for path, leaf in flat_params(abstract(make, config)).items()}
    flat = {path: rng.normal(size=shape).astype(np.float32) / 8 for path, shape in shapes.items()}
    reference.config.save_pretrained(tmp_path)
    written = {key: np.ascontiguousarray(value) for key, value in to_theirs(table, flat, what="test").items()}
    save_file(written, tmp_path / "model.safetensors")
    loaded, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = loaded.eval()(theirs)[output]
    out = run(load_flat(abstract(make, config), flat, what="test"), x, **options)
    assert relative(out, expected) < BAR["float32"]


def torch_preprocess(images, mode):
    """diffusers' own resize; kornia's differs in that it doesn't blur a picture that only grows."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if mode == "diffusers" or max(x.shape[-2:]) > 224:
        x = _resize_with_antialiasing(x, (224, 224))
    else:
        x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", align_corners=True)
    return ((x.permute(0, 2, 3, 1) + 1) / 2 - torch.tensor(MEAN, dtype=x.dtype)) / torch.tensor(STD, dtype=x.dtype)


@pytest.mark.parametrize("mode", ["sgm", "diffusers"])
@pytest.mark.parametrize("size", [(576, 1024), (320, 576), (64, 128), (300, 37), (225, 1000), (224, 224), (2, 3)])
def test_preprocessing(size, mode, dtype):
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(dtype)
    out = preprocess(jnp.asarray(images), mode=mode)
    assert out.dtype == dtype
    exact = torch_preprocess(images.astype("float64"), mode)
    assert relative(out, exact) < {"float64": 1e-12, "float32": 1e-6}[dtype]
    # torch places its samples in the picture's dtype, so on noise its own float32 is this far off.
    assert relative(out, torch_preprocess(images, mode)) < {"float64": 1e-12, "float32": 1e-4}[dtype]


def golden(case, name):
    return dict(np.load(GOLDENS / case / "golden" / name))


def tensors_under(path, prefix):
    with safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


@needs_goldens
@pytest.mark.parametrize("case", ["sgm_i2v", "sgm_sv3d_p"])
def test_recorded_image_embedding(case):
    recorded = golden(case, "conditioner.npz")
    images = jnp.asarray(recorded["image"], jnp.float32)[None] / 127.5 - 1
    pixels = preprocess(images)
    assert relative(pixels.transpose(0, 3, 1, 2), recorded["pixel_values"]) < 3e-6
    tensors = tensors_under(GOLDENS / case / "svd.safetensors", "conditioner.embedders.0.open_clip.model.")
    config = CLIPVisionConfig(
        width=64,
        layers=3,
        heads=4,
        mlp_dim=160,
        patch_size=28,
        projection_dim=64,
        leftover_text=(*tensors["token_embedding.weight"].shape[:1], *tensors["positional_embedding"].shape),
    )
    table = clip_vision_table(config, "sgm")
    flat = to_ours(table, tensors, what=case)
    tower = load_flat(abstract(CLIPVision, config), flat, what=case)
    assert relative(run(tower, pixels)[:, None], recorded["c_crossattn"]) < 5e-6
    back = to_theirs(table, {path: np.asarray(value) for path, value in flat_params(tower).items()}, what=case)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


@needs_goldens
def test_recorded_text_embeddings():
    recorded = golden("text", "text.npz")
    config = CLIPTextConfig.tiny()
    tensors = tensors_under(GOLDENS / "text" / "open_clip_text.safetensors", "cond_stage_model.model.")
    table = clip_text_table(config, "sgm")
    tower = load_flat(abstract(CLIPText, config), to_ours(table, tensors, what="text"), what="text")
    tokens = tokenize([str(prompt) for prompt in recorded["prompts"]])
    np.testing.assert_array_equal(tokens, recorded["input_ids"])
    for layer in ("penultimate", "last"):
        assert relative(run(tower, tokens, layer=layer), recorded[layer]) < 5e-6
    back = to_theirs(table, {path: np.asarray(value) for path, value in flat_params(tower).items()}, what="text")
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_tokens_equal_those_of_transformers():
    """transformers spells the end tokens differently and reads "!" as padding, hence neither occurs here."""
    vocabulary, _ = _vocabulary()
    packed = resources.files("svdjax").joinpath("assets/clip_bpe_merges.txt.gz").read_bytes()
    merges = [tuple(line.split(" ")) for line in gzip.decompress(packed).decode().splitlines()]
    reference = transformers.CLIPTokenizer(
        vocab=vocabulary | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}, merges=merges
    )
    prompts = [
        "",
        "a photograph of an astronaut riding a horse",
        "It's 3:45, they've left; 10,000 UNBELIEVABLE counter-revolutionaries",
        "naïve café — déjà vu Ünïcödé Привет 日本語 x²",
        "emoji 🙂👍🏽 \t tabs\nand  spaces",
        "word " * 100,
    ]
    ids = reference(prompts, padding="max_length", max_length=77, truncation=True)
    expected = np.array(ids["input_ids"]) * np.array(ids["attention_mask"])
    np.testing.assert_array_equal(tokenize(prompts), expected)
