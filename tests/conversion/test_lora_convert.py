"""``svdjax convert`` of LoRA files: the same bits under other names, whatever UNet they are for; mistakes named."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from svdjax.cli import main
from svdjax.conversion.checkpoint import Options, shapes_of
from svdjax.conversion.convert import convert
from svdjax.conversion.lora import _EVERY_LAYER, _styles, read_lora, write_lora
from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.errors import UserError
from svdjax.models.lora import LoRA, LoRAConfig, lora_shapes
from svdjax.models.params import flat_params
from svdjax.models.unet import UNetConfig
from tests.conversion.tiny import assert_same, tiny_config, write_original

CONFIG = tiny_config("svd")


@pytest.fixture(scope="module")
def lora():
    shapes = lora_shapes(flat_params(shapes_of(CONFIG)), LoRAConfig(rank=4))
    rng = np.random.default_rng(0)
    params = {path: rng.standard_normal(x.shape).astype(np.float32) for path, x in shapes.items()}
    return LoRA(params=params, alpha=2.5, base="a tiny model")


@pytest.fixture
def peft(tmp_path, lora):
    write_lora(tmp_path / "pan.safetensors", lora, CONFIG.unet)
    return tmp_path / "pan.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory, lora):
    """A LoRA, and what can go wrong with one."""
    folder = tmp_path_factory.mktemp("files")
    huge = replace(lora, params={path: 1e30 * x for path, x in lora.params.items()})
    for name, each in (("pan", lora), ("huge", huge)):
        write_lora(folder / f"{name}.safetensors", each, CONFIG.unet)
    write_original(folder / "svd.safetensors", "svd", seed=1)
    save_file({"unet.x.lora_A.weight": np.ones((2, 4))}, folder / "other.safetensors")
    (folder / "text.safetensors").write_text("no safetensors at all")
    (folder / "there.safetensors").write_text("mine")
    return folder


def same_files(a, b):
    assert_same(read_safetensors(a)[0], read_safetensors(b)[0])
    assert read_safetensors(a)[1] == read_safetensors(b)[1]
    return True


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("alpha", [2.5, 0.1])  # exact in float32, and not
def test_there_and_back_gives_the_same_file(tmp_path, lora, dtype, alpha):
    """And on the way the file that the LoRA's own UNet gives."""
    lora = LoRA(params={path: x.astype(dtype) for path, x in lora.params.items()}, alpha=alpha, base=lora.base)
    names = ("a", "there", "back", "kohya")
    a, there, back, kohya = (tmp_path / f"{name}.safetensors" for name in names)
    write_lora(a, lora, CONFIG.unet, header={"ss_tag": "pan"})
    write_lora(kohya, lora, CONFIG.unet, style="kohya", header={"ss_tag": "pan"})
    convert(a, there, to="kohya")
    convert(there, back, to="diffusers")
    assert same_files(there, kohya) and same_files(back, a)
    assert read_lora(there, CONFIG.unet).alpha == alpha
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)


def test_the_command(peft, tmp_path, capsys):
    out = tmp_path / "pan_kohya.safetensors"
    with pytest.raises(SystemExit) as raised:
        main(["convert", str(peft), str(out), "--to", "kohya"])
    assert raised.value.code == 0 and capsys.readouterr().out.strip() == str(out)
    assert all(key.startswith("lora_unet_") for key in load_file(out))


def test_an_older_file_becomes_one_of_today(peft, tmp_path, lora):
    tensors = {
        key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): x
        for key, x in load_file(peft).items()
    }
    save_file(tensors, tmp_path / "old.safetensors")
    convert(tmp_path / "old.safetensors", tmp_path / "new.safetensors", to="diffusers")
    assert_same(read_safetensors(tmp_path / "new.safetensors")[0], read_safetensors(peft)[0])
    with safe_open(tmp_path / "new.safetensors", "np") as file:
        assert file.metadata()["alpha"] == "4", "the rank, where nothing is said"


def test_matrices_are_cast(peft, tmp_path):
    convert(peft, tmp_path / "half.safetensors", to="diffusers", dtype="float16")
    whole, half = load_file(peft), load_file(tmp_path / "half.safetensors")
    assert whole.keys() == half.keys()
    assert all(half[key].dtype == np.float16 for key in half)
    assert all(np.array_equal(half[key], whole[key].astype(np.float16)) for key in half)


@pytest.mark.parametrize("unet", [UNetConfig.svd(), UNetConfig.sv3d_p(), UNetConfig.sd21(), UNetConfig.tiny()])
def test_the_names_of_a_unet_are_known_and_mean_its_layers(unet):
    every, own = _styles(_EVERY_LAYER), _styles(unet)
    for style, layers in own.items():
        unknown = [layer for layer, keys in layers.items() if every[style].get(layer) != keys]
        assert len(layers) > 100 and all(re.search(r"res\.\d\.spatial\.emb$", layer) for layer in unknown)
        assert unet.temporal or len(unknown) == (style != "oldest") * 22
        assert not (unet.temporal and unknown)


def test_no_two_layers_share_a_name():
    for layers in _styles(_EVERY_LAYER).values():
        keys = [key for parts in layers.values() for key in parts.values()]
        assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "svdjax"}, r"pan.safetensors: a LoRA, which --to svdjax cannot hold: choose diffusers or kohya"),
        ({"to": "sgm"}, "a LoRA, which --to sgm cannot hold"),
        (
            {"options": Options(head_dim=64, variant="fp16")},
            "for which --variant and --head-dim means nothing",
        ),
        ({"destination": "folder"}, r"folder: a LoRA is one file: give a name that ends with \.safetensors"),
        ({"destination": "there.safetensors"}, "there.safetensors: exists already: .*--overwrite"),
        ({"source": "nowhere.safetensors"}, "nowhere.safetensors: no such file or folder"),
        ({"source": "other.safetensors"}, "unet.x.lora_A.weight of its 1 keys belong to no linear layer"),
        ({"source": "text.safetensors"}, "text.safetensors: not a checkpoint"),
        ({"source": "huge.safetensors", "dtype": "float16"}, "values beyond the range of float16"),
        ({"source": "svd.safetensors", "options": Options(head_dim=32, clip_heads=4)}, "a whole checkpoint, and"),
    ],
)
def test_mistakes_are_named(files, arguments, message):
    before = {path: path.read_bytes() for path in files.iterdir()}
    given = {"source": "pan.safetensors", "destination": "out.safetensors", "to": "kohya"} | arguments
    source, destination = (files / given.pop(name) for name in ("source", "destination"))
    with pytest.raises(UserError, match=message) as raised:
        convert(source, destination, **given)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_an_older_output_is_replaced_if_asked(peft, tmp_path):
    (tmp_path / "out.safetensors").write_text("mine")
    convert(peft, tmp_path / "out.safetensors", to="diffusers", overwrite=True)
    assert same_files(tmp_path / "out.safetensors", peft)
