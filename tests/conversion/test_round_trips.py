"""There and back again, bit for bit, for every kind of model and every format."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from svdjax.conversion import native
from svdjax.conversion.checkpoint import Options
from svdjax.conversion.convert import convert
from svdjax.conversion.native import save_native
from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.errors import UserError
from svdjax.models.params import flat_params
from tests.conversion.tiny import KINDS, OPTIONS, assert_same, tiny_config, write_original
from tests.parity.tiny import TinySizes, write_tiny_pipeline

GOLDENS = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
SIZES = TinySizes(unet_channels=(32, 64), vae_channels=(32, 64), patch=56)


def _assert_comes_back(source, middle):
    convert(source, middle, to="svdjax", options=OPTIONS)
    convert(middle, middle.with_name("back.safetensors"), to="sgm")
    assert_same(read_safetensors(source)[0], read_safetensors(middle.with_name("back.safetensors"))[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sgm_and_back_through_a_directory(tmp_path, dtype):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=1, dtype=dtype)
    _assert_comes_back(source, tmp_path / "middle")
    assert open_checkpoint(tmp_path / "middle").config == tiny_config("svd")


def test_a_model_loads_the_same_however_little_is_read_at_once(tmp_path, monkeypatch):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=1)
    convert(source, tmp_path / "middle", to="svdjax", options=OPTIONS)
    monkeypatch.setattr(native, "_READ_AT_ONCE", 4000)
    whole, pieces = (flat_params(load_model(path, options=OPTIONS)) for path in (source, tmp_path / "middle"))
    assert all(np.array_equal(whole[path], pieces[path]) for path in whole)


def test_float64_weights_where_jax_is_told_so(tmp_path, x64):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=1)
    model = load_model(source, dtype=np.float64, options=OPTIONS)
    assert {value.dtype for value in flat_params(model).values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_back(tmp_path, kind):
    source = write_original(tmp_path / "a.safetensors", kind, seed=2)
    _assert_comes_back(source, tmp_path / "middle.safetensors")
    assert open_checkpoint(tmp_path / "middle.safetensors").config == tiny_config(kind)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="set SVDJAX_GOLDENS to the recorded cases")
@pytest.mark.parametrize("case", ["sgm_i2v", "sgm_sv3d_p"])
def test_original_files_and_back(tmp_path, case):
    source = GOLDENS / case / "svd.safetensors"
    convert(source, tmp_path / "a.safetensors", to="svdjax", options=OPTIONS)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="sgm")
    assert_same(read_safetensors(source)[0], read_safetensors(tmp_path / "b.safetensors")[0])


def _assert_same_folder(a: Path, b: Path) -> None:
    names = {path.relative_to(a) for path in a.rglob("*") if path.is_file()}
    assert names == {path.relative_to(b) for path in b.rglob("*") if path.is_file()}
    for name in names:
        if name.suffix == ".safetensors":
            assert_same(read_safetensors(a / name)[0], read_safetensors(b / name)[0])
        else:
            assert (a / name).read_text() == (b / name).read_text()


@pytest.mark.parametrize("middle", ["middle", "middle.safetensors"])
def test_diffusers_and_back(tmp_path, middle):
    folder = write_tiny_pipeline(tmp_path / "a", seed=3, sizes=SIZES)
    convert(folder, tmp_path / middle, to="svdjax")
    assert open_checkpoint(tmp_path / middle).config.unet.norm_eps == "diffusers"
    convert(tmp_path / middle, tmp_path / "b", to="diffusers")
    _assert_same_folder(folder, tmp_path / "b")


def test_diffusers_through_sgm_and_back(tmp_path, capsys):
    folder = write_tiny_pipeline(tmp_path / "a", seed=4, sizes=SIZES)
    convert(folder, tmp_path / "b.safetensors", to="sgm")
    assert capsys.readouterr().err.count("left out, the source does not have them") == 1
    convert(tmp_path / "b.safetensors", tmp_path / "c", to="diffusers")
    for name in ("unet", "vae", "image_encoder"):
        (a,), (b,) = ((tmp_path / x / name).glob("*.safetensors") for x in ("a", "c"))
        assert_same(read_safetensors(a)[0], read_safetensors(b)[0])


def test_a_model_is_saved_and_loaded(tmp_path):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=5)
    model = load_model(source, options=OPTIONS)
    for name in ("b", "b.safetensors"):
        save_native(model, tmp_path / name)
        again = load_model(tmp_path / name)
        assert again.config == model.config
        mine, loaded = flat_params(model), flat_params(again)
        assert mine.keys() == loaded.keys()
        assert all(np.array_equal(mine[path], loaded[path]) for path in mine)


def test_casts_every_parameter(tmp_path):
    source = write_original(tmp_path / "a.safetensors", "sv3d_u", seed=6)
    convert(source, tmp_path / "b.safetensors", to="svdjax", dtype="bfloat16", options=OPTIONS)
    wide, cast = open_checkpoint(source, OPTIONS), open_checkpoint(tmp_path / "b.safetensors")
    for name, tensor in (cast.params | cast.extras).items():
        assert tensor.dtype == ml_dtypes.bfloat16
        expected = (wide.params | wide.extras)[name].load().astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(tensor.load(), expected)
    model = load_model(source, dtype=ml_dtypes.bfloat16, options=OPTIONS)
    assert all(np.array_equal(value, cast.params[path].load()) for path, value in flat_params(model).items())


def test_mixed_dtypes_are_kept_or_cast_with_a_notice(tmp_path, capsys):
    folder = write_tiny_pipeline(tmp_path / "a", seed=7, sizes=SIZES)
    convert(folder, tmp_path / "half", to="diffusers", dtype="float16")
    (tmp_path / "half" / "vae" / "diffusion_pytorch_model.safetensors").replace(
        folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    capsys.readouterr()
    convert(folder, tmp_path / "kept.safetensors", to="svdjax")
    assert "mixed dtypes (float16, float32): kept as they are" in capsys.readouterr().err
    dtypes = {
        path.split(".")[0]: tensor.dtype
        for path, tensor in open_checkpoint(tmp_path / "kept.safetensors").params.items()
    }
    assert dtypes == {"unet": np.float32, "vae": np.float16, "image_encoder": np.float32}
    convert(folder, tmp_path / "cast.safetensors", to="svdjax", dtype="bfloat16")
    assert "mixed dtypes (float16, float32): cast to bfloat16" in capsys.readouterr().err
    assert {t.dtype.name for t in open_checkpoint(tmp_path / "cast.safetensors").params.values()} == {"bfloat16"}


def test_heads_come_from_the_options(tmp_path):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=8)
    config = open_checkpoint(source, Options(head_dim=16, clip_heads=8)).config
    assert config.unet.head_dim == 16 and config.image_encoder.heads == 8


def test_a_conversion_replaces_nothing_but_what_conversions_write(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    source = write_original(tmp_path / "models" / "a.safetensors", "svd", seed=1)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    monkeypatch.chdir(tmp_path / "papers")
    for destination, says in (
        (tmp_path / "models", "holds the source"),
        (source, "holds the source"),
        (tmp_path / "papers", r"other files in it \(thesis.txt\)"),
        (Path(), r"other files in it \(thesis.txt\)"),
        (Path("/"), "holds the source"),
    ):
        for to in ("diffusers", "svdjax", "sgm"):
            with pytest.raises(UserError, match=says):
                convert(source, destination, to=to, options=OPTIONS, overwrite=True)
    assert source.exists() and (tmp_path / "papers" / "thesis.txt").read_text() == "precious"
    for to in ("diffusers", "svdjax", "diffusers", "sgm"):
        convert(source, tmp_path / "made", to=to, options=OPTIONS, overwrite=True)
    assert (tmp_path / "made").is_file()
