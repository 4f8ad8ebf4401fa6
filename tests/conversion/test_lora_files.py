"""LoRA files: every style read and written exactly, with the layout that PyTorch has, and mistakes named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from svdjax.conversion.checkpoint import shapes_of
from svdjax.conversion.lora import read_lora, write_lora
from svdjax.conversion.mapping import to_theirs
from svdjax.conversion.unet import unet_table
from svdjax.errors import UserError
from svdjax.models.lora import LoRA, LoRAConfig, lora_shapes, merge
from svdjax.models.params import flat_params
from tests.conversion.tiny import tiny_config

CONFIG = tiny_config("svd")
UNET = CONFIG.unet
MODULE = "mid_block.attentions.0.temporal_transformer_blocks.0.attn1"
OURS = "unet.mid.attn.0.temporal.attn1"


@pytest.fixture(scope="module")
def lora():
    shapes = lora_shapes(flat_params(shapes_of(CONFIG)), LoRAConfig(rank=4))
    rng = np.random.default_rng(0)
    params = {path: rng.standard_normal(x.shape).astype(np.float32) for path, x in shapes.items()}
    return LoRA(params=params, alpha=2.5, base="a tiny model")


def assert_same(a, b):
    assert a.params.keys() == b.params.keys()
    assert all(np.array_equal(a.params[path], b.params[path]) for path in a.params)
    assert all(a.params[path].dtype == b.params[path].dtype for path in a.params)


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_was_written_is_read_again_exactly(tmp_path, lora, style, dtype):
    half = replace(lora, params={path: x.astype(dtype) for path, x in lora.params.items()})
    path = tmp_path / "lora.safetensors"
    write_lora(path, half, UNET, style=style)
    again = read_lora(path, UNET)
    assert_same(again, half)
    assert (again.alpha, again.base, again.rank) == (2.5, "a tiny model", 4)
    with safe_open(path, "np") as file:
        header = file.metadata()
    assert (header["rank"], header["alpha"], header["base"]) == ("4", "2.5", "a tiny model")
    assert [each.name for each in tmp_path.iterdir()] == ["lora.safetensors"]


def test_the_keys_and_the_layout_are_those_of_the_styles(tmp_path, lora):
    paths = {style: tmp_path / f"{style}.safetensors" for style in ("diffusers", "kohya")}
    for style, path in paths.items():
        write_lora(path, lora, UNET, style=style)
    peft, kohya = (load_file(path) for path in paths.values())
    down, up = lora.params[f"{OURS}.out.lora_down"], lora.params[f"{OURS}.out.lora_up"]
    np.testing.assert_array_equal(peft[f"unet.{MODULE}.to_out.0.lora_A.weight"], down.T)
    np.testing.assert_array_equal(peft[f"unet.{MODULE}.to_out.0.lora_B.weight"], up.T)
    flat = f"lora_unet_{MODULE}.to_out.0".replace(".", "_")
    np.testing.assert_array_equal(kohya[f"{flat}.lora_down.weight"], down.T)
    np.testing.assert_array_equal(kohya[f"{flat}.lora_up.weight"], up.T)
    assert kohya[f"{flat}.alpha"] == 2.5
    with safe_open(paths["diffusers"], "np") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (4, 2.5)
    assert f"{MODULE}.to_out.0" in settings["unet.target_modules"]


def test_merging_means_what_it_means_to_pytorch(lora):
    """In PyTorch's layout: W + scale (alpha / rank) B A, with A [rank, in] and B [out, rank]."""
    rng, table, shapes = np.random.default_rng(1), unet_table(UNET, "diffusers"), flat_params(shapes_of(CONFIG))
    flat = {row.ours[0]: rng.standard_normal(shapes[f"unet.{row.ours[0]}"].shape, np.float32) for row in table}
    theirs = to_theirs(table, flat, what="a test")
    merged = merge({f"unet.{path}": x for path, x in flat.items()}, lora, scale=0.7)
    for name, ours in (("to_q", "q"), ("to_out.0", "out")):
        a, b = (lora.params[f"{OURS}.{ours}.lora_{part}"].T for part in ("down", "up"))
        wanted = theirs[f"{MODULE}.{name}.weight"] + 0.7 * 2.5 / 4 * b @ a
        np.testing.assert_allclose(merged[f"{OURS}.{ours}.kernel"].T, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "projections"),
    [
        ("unet.{module}.{name}.lora.{part}.weight", ("to_q", "to_k", "to_v", "to_out.0")),
        ("unet.{module}.processor.{name}_lora.{part}.weight", ("to_q", "to_k", "to_v", "to_out")),
    ],
)
def test_older_files_of_diffusers_are_read(tmp_path, lora, pattern, projections):
    tensors = {
        pattern.format(module=MODULE, name=name, part=part): np.ascontiguousarray(
            lora.params[f"{OURS}.{ours}.lora_{part}"].T
        )
        for name, ours in zip(projections, ("q", "k", "v", "out"), strict=True)
        for part in ("down", "up")
    }
    save_file(tensors, tmp_path / "old.safetensors")
    found = read_lora(tmp_path / "old.safetensors", UNET)
    assert_same(found, replace(lora, params={p: x for p, x in lora.params.items() if p.startswith(f"{OURS}.")}))
    assert found.alpha == found.rank == 4, "as diffusers takes it where nothing says more"


A, B = (f"unet.{MODULE}.to_q.lora_{part}.weight" for part in "AB")
KOHYA = f"lora_unet_{MODULE}_to_q".replace(".", "_")
RANK2 = {A: np.ones((2, 64), np.float32), B: np.ones((64, 2), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"conv_in.weight": np.ones(3)}, {}, "not a LoRA file"),
        ({A: np.ones((2, 64))}, {}, f"{OURS}.q has no lora_up: the file is incomplete"),
        (
            {**RANK2, "unet.x.lora_A.weight": np.ones(2)},
            {},
            "unet.x.lora_A.weight of its 3 keys belong to no",
        ),
        ({A: np.ones((2, 64)), B: np.ones((64, 3))}, {}, r"has matrices of shapes \(2, 64\) and \(64, 3\)"),
        (
            {**RANK2, A.replace("_q", "_k"): np.ones((3, 64)), B.replace("_q", "_k"): np.ones((64, 3))},
            {},
            r"ranks \[2, 3\]",
        ),
        (
            RANK2,
            {"lora_adapter_metadata": '{"unet.r": 8}'},
            "its lora_adapter_metadata says rank 8, its matrices have 2",
        ),
        (RANK2, {"lora_adapter_metadata": "[]"}, "lora_adapter_metadata is malformed"),
        (
            RANK2,
            {"lora_adapter_metadata": '{"unet.use_rslora": true}'},
            "a variant of LoRA whose layers count differently",
        ),
        (RANK2, {"lora_adapter_metadata": '{"unet.r": 1e999}'}, "lora_adapter_metadata is malformed"),
        (RANK2, {"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata is malformed"),
        (RANK2, {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}, "its alpha is nan, not a positive number"),
        (RANK2, {"lora_adapter_metadata": '{"unet.lora_alpha": -4}'}, "its alpha is -4, not a positive number"),
        (
            RANK2,
            {"lora_adapter_metadata": '{"unet.init_lora_weights": "pissa_niter_4"}'},
            "made by pissa_niter_4, which changes the model's own weights too",
        ),
        ({**RANK2, f"{KOHYA}.alpha": np.ones(())}, {}, None),
        ({A: RANK2[A] * np.nan, B: RANK2[B]}, {}, "NaN or infinite"),
    ],
)
def test_mistakes_are_named(tmp_path, tensors, metadata, message):
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata)
    if message is None:
        assert read_lora(path, UNET).alpha == 1
        return
    with pytest.raises(UserError, match=message):
        read_lora(path, UNET)


def test_the_alpha_of_pefts_own_files_is_beside_them(tmp_path):
    path, beside = tmp_path / "mine.safetensors", tmp_path / "adapter_config.json"
    save_file({key.replace("unet.", "base_model.model.", 1): x for key, x in RANK2.items()}, path)
    with pytest.raises(UserError, match=r"its alpha is in adapter_config.json, which PEFT writes beside it"):
        read_lora(path, UNET)
    beside.write_text('{"r": 2, "lora_alpha": 16, "init_lora_weights": true}')
    assert read_lora(path, UNET).alpha == 16
    beside.write_text('{"r": 4, "lora_alpha": 16}')
    with pytest.raises(UserError, match=r"its adapter_config.json says rank 4, its matrices have 2"):
        read_lora(path, UNET)
    beside.write_bytes(b"\xff\x00{")
    with pytest.raises(UserError, match=r"its adapter_config.json is malformed"):
        read_lora(path, UNET)
    metadata = {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 3}'}
    save_file({key.replace("unet.", "base_model.model.", 1): x for key, x in RANK2.items()}, path, metadata)
    assert read_lora(path, UNET).alpha == 3, "the header comes first"


def test_files_that_are_none_and_models_that_do_not_fit_are_refused(tmp_path, lora):
    with pytest.raises(UserError, match=r"nowhere.safetensors: no such LoRA file"):
        read_lora(tmp_path / "nowhere.safetensors", UNET)
    (tmp_path / "text.safetensors").write_text("no safetensors at all")
    with pytest.raises(UserError, match="safetensors"):
        read_lora(tmp_path / "text.safetensors", UNET)
    image = replace(UNET, temporal=False)
    with pytest.raises(UserError, match=r"adapts unet.*temporal.*, which this UNet does not have"):
        write_lora(tmp_path / "lora.safetensors", lora, image)
    write_lora(tmp_path / "lora.safetensors", lora, UNET)
    with pytest.raises(UserError, match="keys belong to no linear layer of the UNet: it is for another model"):
        read_lora(tmp_path / "lora.safetensors", image)
