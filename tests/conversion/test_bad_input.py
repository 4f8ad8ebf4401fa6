"""Mistakes with checkpoints: each one line that says what and where, and nothing is left half-written."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from svdjax.cli import main
from svdjax.conversion.checkpoint import Options
from svdjax.conversion.convert import convert
from svdjax.conversion.native import save_native
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.errors import UserError
from svdjax.models.params import initialise
from svdjax.models.svd import SVD
from tests.conversion.tiny import OPTIONS, write_original
from tests.parity.tiny import TinySizes, write_tiny_pipeline

SIZES = TinySizes(unet_channels=(32, 64), vae_channels=(32, 64), patch=56)
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_original(folder / "svd.safetensors", "svd", seed=1)
    write_tiny_pipeline(folder / "svd", seed=2, sizes=SIZES)
    convert(folder / "svd", folder / "native", to="svdjax")
    return folder


@pytest.fixture
def single(originals, tmp_path):
    return Path(shutil.copy(originals / "svd.safetensors", tmp_path / "svd.safetensors"))


@pytest.fixture
def folder(originals, tmp_path):
    return Path(shutil.copytree(originals / "svd", tmp_path / "svd"))


def refused(source, message, options=None):
    with pytest.raises(UserError, match=message) as raised:
        open_checkpoint(source, options)
    assert "\n" not in str(raised.value)


CONTENT = {
    "empty": (b"", "is empty"),
    "text": (b"these are not weights, I am afraid", "not a checkpoint: give a diffusers folder"),
    "html": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "not a checkpoint"),
    "short": (b"abc", "not a checkpoint"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9559625980\n", "git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(40), "damaged zip"),
    "json": (b'{"weights": [1, 2, 3], "more": "of this"}', "not a checkpoint"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_files_that_are_no_checkpoints(tmp_path, name):
    content, message = CONTENT[name]
    (tmp_path / "svd.safetensors").write_bytes(content)
    refused(tmp_path / "svd.safetensors", message)


@pytest.mark.parametrize(
    "missing", ["nothing.safetensors", "no/folder/at/all", "./someone/svd", "checkpoints/x.ckpt"]
)
def test_missing_paths(missing):
    refused(missing, "no such file or folder")


def test_a_missing_file_of_a_folder_that_is_here_is_no_repository(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    refused("runs/demo/model.safetensors", "no such file or folder")


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    refused(tmp_path, "not a checkpoint: give")


@pytest.mark.parametrize(
    ("keep", "message"), [(0.5, "truncated: .* bytes are missing"), (0.001, "truncated inside its header")]
)
def test_truncated(single, keep, message):
    content = single.read_bytes()
    single.write_bytes(content[: int(keep * len(content))])
    refused(single, message, OPTIONS)


def test_a_header_whose_length_begins_like_a_pickle_is_read(single):
    content = single.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = (0x80 - length) % 256
    header = (length + padding).to_bytes(8, "little") + content[8 : 8 + length] + b" " * padding
    assert header.startswith(b"\x80")
    single.write_bytes(header + content[8 + length :])
    assert open_checkpoint(single, OPTIONS).params


def edited(path, edit):
    """Save the file again after ``edit`` changed its dictionary of arrays."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return path


EDITS = {
    "missing key": (
        lambda t: t.pop(f"{UNET}middle_block.0.in_layers.2.bias"),
        r"1 missing: .*middle_block.0.in_layers.2.bias",
    ),
    "missing level": (
        lambda t: [t.pop(key) for key in list(t) if "input_blocks.1." in key],
        "not a UNet of SVD|missing",
    ),
    "missing unet": (
        lambda t: [t.pop(key) for key in list(t) if key.startswith(UNET)],
        "no key begins with model.diff",
    ),
    "missing encoder": (
        lambda t: [t.pop(key) for key in list(t) if "embedders.3." in key],
        "first_stage_model|missing|wrong shape|fit no known task",
    ),
    "extra key": (lambda t: t.update({f"{UNET}adapter.weight": np.zeros(3)}), r"1 unexpected: .*adapter.weight"),
    "wrong shape": (
        lambda t: t.update({f"{UNET}out.0.weight": np.zeros(33, np.float32)}),
        r"wrong shapes: .*out.0.weight has shape \(33,\)",
    ),
    "wrong axes": (
        lambda t: t.update({f"{UNET}middle_block.0.in_layers.2.weight": np.zeros((64, 64), np.float32)}),
        r"wrong shape: .*middle_block.0.in_layers.2.weight \(64, 64\)",
    ),
    "quantised": (
        lambda t: t.update({f"{UNET}out.2.bias": np.zeros(4, np.int8)}),
        r"out.2.bias is not floating-point",
    ),
    "vector width": (
        lambda t: t.update({f"{UNET}label_emb.0.0.weight": np.zeros((128, 97), np.float32)}),
        "97 channels of vector conditioning",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_keys_and_shapes(single, name):
    edit, message = EDITS[name]
    refused(edited(single, edit), message, OPTIONS)


OTHERS = {
    "kohya LoRA": (
        {"lora_unet_down_blocks_0_attentions_0.lora_up.weight": (4, 4)},
        "a LoRA, not a whole checkpoint",
    ),
    "diffusers LoRA": (
        {"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 4)},
        "a LoRA, not a whole checkpoint",
    ),
    "SDXL": (
        {f"{UNET}label_emb.0.0.weight": (64, 2816), f"{UNET}out.2.bias": (4,)},
        "looks like Stable Diffusion XL",
    ),
    "SD 1": (
        {f"{UNET}out.2.bias": (4,), "cond_stage_model.transformer.text_model.embeddings.x": (2,)},
        "looks like Stable Diffusion 1",
    ),
    "a classifier": ({"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512)}, "no checkpoint of SVD"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(tmp_path, name):
    shapes, message = OTHERS[name]
    save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", message)


HEADS = {
    "unet": (Options(head_dim=24, clip_heads=4), "--head-dim"),
    "unet, zero": (Options(head_dim=0, clip_heads=4), "--head-dim"),
    "unet, default": (Options(clip_heads=4), "--head-dim"),
    "clip": (Options(head_dim=32, clip_heads=7), "--clip-heads"),
    "clip, default": (Options(head_dim=32), "--clip-heads"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_do_not_divide(originals, name):
    options, message = HEADS[name]
    refused(originals / "svd.safetensors", message, options)


@pytest.mark.parametrize("options", [Options(head_dim=16), Options(clip_heads=2)])
@pytest.mark.parametrize("source", ["svd", "native"])
def test_heads_that_contradict_the_configuration(originals, source, options):
    refused(originals / source, "contradicts its configuration", options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("destination", ["out", "out.safetensors"])
def test_weights_that_are_not_finite(single, tmp_path, value, destination):
    def spoil(tensors):
        tensors[f"{UNET}out.2.weight"][1, 2, 0, 1] = value

    edited(single, spoil)
    with pytest.raises(UserError, match=r"model.diffusion_model.out.2.weight: has NaN or infinite weights"):
        convert(single, tmp_path / destination, to="svdjax", options=OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["svd.safetensors"]
    with pytest.raises(UserError, match=r"out.2.weight: has NaN"):
        load_model(single, options=OPTIONS)


CONFIGS = {
    "no JSON": ("unet", lambda text: text[:-5], "unet/config.json: no valid JSON"),
    "a list": ("vae", lambda text: "[]", "vae/config.json: should be a JSON object"),
    "another class": (
        "unet",
        lambda text: text.replace("SpatioTemporalCondition", "3DCondition"),
        "_class_name is",
    ),
    "another vae": (
        "vae",
        lambda text: text.replace("AutoencoderKLTemporalDecoder", "AsymmetricKL"),
        "_class_name is",
    ),
    "another activation": (
        "image_encoder",
        lambda text: text.replace('"gelu"', '"quick_gelu"'),
        "hidden_act is 'quick",
    ),
    "a text for a number": (
        "unet",
        lambda text: text.replace('"in_channels": 8', '"in_channels": "8"'),
        "in_channels",
    ),
    "missing field": ("unet", lambda text: text.replace("block_out_channels", "widths"), "block_out_channels"),
    "uneven heads": ("unet", lambda text: text.replace("num_attention_heads", "x"), "num_attention_heads"),
    "other sizes": (
        "vae",
        lambda text: text.replace('"latent_channels": 4', '"latent_channels": 8'),
        "wrong shapes",
    ),
    "other group norms": (
        "vae",
        lambda text: text.replace("{", '{"norm_num_groups": 16,', 1),
        "norm_num_groups is 16; only 32",
    ),
    "other blocks": ("unet", lambda text: text.replace("CrossAttnDown", "Attn2Down"), "is not a block of SVD"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(folder, name):
    component, edit, message = CONFIGS[name]
    path = folder / component / "config.json"
    assert edit(path.read_text()) != path.read_text()
    path.write_text(edit(path.read_text()))
    refused(folder, message)


def test_missing_components(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, r"different variants .*vae: none")
    shutil.rmtree(folder / "vae")
    refused(folder, "vae/config.json is missing")


def test_a_missing_shard_and_a_broken_index(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(tensors)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({key: tensors[key] for key in tensors if weight_map[key] == names[0]}, path.with_name(names[0]))
    refused(folder, r"00002-of-00002.safetensors: missing: one of 2 parts")
    save_file({key: tensors[key] for key in list(tensors)[3::2]}, path.with_name(names[1]))
    refused(folder, "does not hold what its index lists")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../../svd.safetensors")}))
    refused(folder, "missing: one of 1 parts")
    index.write_text("{}")
    refused(folder, "not the index of a sharded file")


def test_a_damaged_directory(originals, tmp_path):
    folder = Path(shutil.copytree(originals / "native", tmp_path / "native"))
    (folder / "files.json").write_text(json.dumps({"../../../evil.sh": "rm"}))
    refused(folder, "no file of a diffusers folder")
    (folder / "files.json").unlink()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("in_channels", "in_channel"))
    refused(folder, "config.json: not a configuration of svdjax: unknown fields in_channel")
    (folder / "config.json").write_text(text)
    largest = max((folder / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-100])
    refused(folder, rf"{largest.name}: {len(content) - 100} bytes long instead of {len(content)}: .*copy it again")
    largest.unlink()
    refused(folder, f"{largest.name}: missing: the checkpoint is damaged")
    (folder / "contents.json").write_text("{")
    refused(folder, r"contents\.json: unreadable: the checkpoint is damaged")


def test_outputs(originals, tmp_path):
    source = originals / "svd"
    (tmp_path / "file").write_text("mine")
    for to in ("svdjax", "diffusers", "sgm"):
        with pytest.raises(UserError, match=r"file: exists already: .*--overwrite"):
            convert(source, tmp_path / "file", to=to)
        with pytest.raises(UserError, match="cannot be written"):
            convert(source, tmp_path / "file" / "below", to=to)
    assert (tmp_path / "file").read_text() == "mine"
    convert(source, tmp_path / "file", to="svdjax", overwrite=True)
    convert(source, tmp_path / "file", to="diffusers", overwrite=True)
    assert open_checkpoint(tmp_path / "file").config == open_checkpoint(source).config
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="only local paths can be written"):
        convert(source, Path("gs://bucket/svd"), to="svdjax")


def test_a_failed_overwrite_keeps_what_was_there(originals, tmp_path):
    source = Path(shutil.copy(originals / "svd.safetensors", tmp_path / "svd.safetensors"))
    edited(source, lambda tensors: tensors[f"{UNET}out.2.bias"].fill(np.nan))
    model = load_model(originals / "native")
    for name in ("model", "model.safetensors"):
        save_native(model, tmp_path / name)
        with pytest.raises(UserError, match="NaN"):
            convert(source, tmp_path / name, to="svdjax", options=OPTIONS, overwrite=True)
        assert open_checkpoint(tmp_path / name).config == model.config


@pytest.mark.parametrize("to", ["diffusers", "sgm"])
def test_group_norms_that_pytorchs_networks_do_not_have(originals, tmp_path, to):
    config = open_checkpoint(originals / "native").config
    vae = dataclasses.replace(config.vae, norm_groups=16)
    save_native(initialise(SVD, dataclasses.replace(config, vae=vae), 0), tmp_path / "toy.safetensors")
    with pytest.raises(UserError, match=r"toy.safetensors: its VAE has norm_groups 16; .*only svdjax"):
        convert(tmp_path / "toy.safetensors", tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_formats_of_other_kinds(originals, tmp_path):
    with pytest.raises(UserError, match="unknown dtype int4: choose one of float32, bfloat16, float16, keep"):
        convert(originals / "svd", tmp_path / "x", to="svdjax", dtype="int4")
    with pytest.raises(UserError, match="unknown format onnx"):
        convert(originals / "svd", tmp_path / "x", to="onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing.safetensors", "out", "--to", "svdjax"],
        ["{originals}/svd.safetensors", "{out}", "--to", "svdjax", "--head-dim", "5"],
        ["{originals}/svd", "{out}", "--to", "svdjax", "--dtype", "int4"],
        ["{originals}/svd", "{out}", "--to", "svdjax", "--variant", "fp8"],
        ["{originals}/svd", "{out}"],
    ],
)
def test_the_command_exits_with_2(originals, tmp_path, capsys, arguments):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as raised:
        main(["convert", *(argument.format(originals=originals, out=out) for argument in arguments)])
    assert raised.value.code == 2
    assert not out.exists() and "Traceback" not in capsys.readouterr().err


def test_the_command_converts(originals, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["convert", str(originals / "svd"), str(tmp_path / "out.safetensors"), "--to", "svdjax"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.safetensors")
    assert open_checkpoint(tmp_path / "out.safetensors").config == open_checkpoint(originals / "svd").config
