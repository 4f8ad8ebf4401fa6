"""Diffusers folders: ones that diffusers wrote, and ones that diffusers reads."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.convert import convert
from svdjax.conversion.diffusers import write_diffusers
from svdjax.conversion.diffusers_config import read_config, write_configs
from svdjax.conversion.source import open_checkpoint
from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig
from tests.conversion.tiny import OPTIONS, assert_same, tiny_checkpoint, tiny_config, write_original
from tests.parity.tiny import TinySizes, write_tiny_pipeline

SIZES = TinySizes(unet_channels=(32, 64), vae_channels=(32, 64), patch=56)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_pipeline(tmp_path_factory.mktemp("original") / "svd", seed=1, sizes=SIZES)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "svd"))


def _state(module):
    return {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}


def test_diffusers_loads_what_came_from_an_original_file(tmp_path):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=2)
    convert(source, tmp_path / "svd", to="diffusers", options=OPTIONS)
    pipe = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "svd")
    assert list(pipe.unet.config.num_attention_heads) == [1, 2]
    assert pipe.scheduler.config.sigma_max == 700.0 and pipe.scheduler.config.use_karras_sigmas
    assert list(pipe.feature_extractor.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    for name in ("unet", "vae", "image_encoder"):
        (file,) = (tmp_path / "svd" / name).glob("*.safetensors")
        saved, loaded = load_file(file), _state(getattr(pipe, name))
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_full_size_configurations_are_diffusers_defaults():
    files = write_configs(SVDConfig.svd_xt())
    published = inspect.signature(UNetSpatioTemporalConditionModel).parameters  # its defaults are SVD-XT's
    ours = json.loads(files["unet/config.json"])
    for name, value in ours.items():
        if not name.startswith("_") and name != "sample_size":
            default = published[name].default
            assert value == (list(default) if isinstance(default, tuple) else default), name
    for preset in ("svd", "svd_xt", "sv3d_u", "sv3d_p"):
        config = getattr(SVDConfig, preset)()
        again = read_config(write_configs(config), "folder")
        assert again.vae == config.vae and again.image_encoder == config.image_encoder
        assert (again.scalars, again.task, again.defaults) == (config.scalars, config.task, config.defaults)


def _image_folder(folder: Path) -> Path:
    """A Stable Diffusion 2.1 with few, thin layers, as diffusers saves it."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=48,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=40,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    for name, module in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        module.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_sd21_folder_to_our_format_and_back(tmp_path):
    folder = _image_folder(tmp_path / "sd")
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    assert config.preconditioning == "discrete_eps" and not config.unet.temporal and config.unet.head_dim == 32
    assert config.vae.post_quant_conv and config.text_encoder.layers == 3 and not config.text_encoder.last_block
    convert(folder, tmp_path / "a.safetensors", to="svdjax")
    convert(tmp_path / "a.safetensors", tmp_path / "back", to="diffusers")
    assert_same(open_checkpoint(tmp_path / "back").params, checkpoint.params)
    loaded = CLIPTextModel.from_pretrained(tmp_path / "back" / "text_encoder")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            loaded.parameters(), CLIPTextModel.from_pretrained(folder / "text_encoder").parameters(), strict=True
        )
    )


def test_diffusers_loads_an_image_model_from_an_original_file(tmp_path):
    source = write_original(tmp_path / "a.safetensors", "sd21", seed=4)
    convert(source, tmp_path / "sd", to="diffusers", options=OPTIONS)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", tokenizer=None, safety_checker=None)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    for name in ("unet", "vae"):
        (file,) = (tmp_path / "sd" / name).glob("*.safetensors")
        saved, loaded = load_file(file), _state(getattr(pipe, name))
        assert saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved)
    assert pipe.text_encoder.config.num_hidden_layers == tiny_config("sd21").text_encoder.layers - 1


def test_names_of_old_vaes_are_understood(tmp_path):
    folder = _image_folder(tmp_path / "sd")
    new = open_checkpoint(shutil.copytree(folder, tmp_path / "new"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in load_file(path).items():
        for ours, theirs in old.items():
            key = key.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        tensors[key] = value
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, path)
    assert_same(
        {name: tensor for name, tensor in open_checkpoint(folder).params.items() if name.startswith("vae.")},
        {name: tensor for name, tensor in new.params.items() if name.startswith("vae.")},
    )


def test_sharded_files(original, folder):
    whole = open_checkpoint(original)
    pipe = StableVideoDiffusionPipeline.from_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="2MB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    assert_same(open_checkpoint(folder).params, whole.params)


def _add_variant(folder: Path, names: tuple[str, ...], *, keep: bool = True) -> None:
    """Halve the numbers of every file into an fp16 variant, so that it shows which one was read."""
    for name in names:
        (path,) = (folder / name).glob("*.safetensors")
        save_file(
            {key: (value / 2).half() for key, value in load_file(path).items()},
            path.with_suffix(".fp16.safetensors"),
        )
        if not keep:
            path.unlink()


ALL = ("unet", "vae", "image_encoder")


def test_the_plain_variant_is_the_default_and_options_choose(folder):
    plain = open_checkpoint(folder)
    _add_variant(folder, ALL)
    assert_same(open_checkpoint(folder).params, plain.params)
    half = open_checkpoint(folder, Options(variant="fp16"))
    assert {tensor.dtype.name for tensor in half.params.values()} == {"float16"}
    path = "unet.conv_in.kernel"
    np.testing.assert_array_equal(half.params[path].load(), (plain.params[path].load() / 2).astype(np.float16))
    with pytest.raises(UserError, match="--variant"):
        open_checkpoint(folder, Options(variant="bf16"))


def test_a_variant_that_is_alone_is_taken(folder):
    _add_variant(folder, ALL, keep=False)
    checkpoint = open_checkpoint(folder)
    assert {tensor.dtype.name for tensor in checkpoint.params.values()} == {"float16"}
    assert "reading the fp16 files" in checkpoint.notices


def test_components_in_different_variants_are_refused(folder):
    _add_variant(folder, ("vae",), keep=False)
    with pytest.raises(UserError, match=r"different variants \(unet: plain; vae: fp16; image_encoder: plain\)"):
        open_checkpoint(folder)


def test_a_retrained_model_gets_configurations_that_fit(folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    config = replace(checkpoint.config, vae=replace(checkpoint.config.vae, scaling_factor=0.5))
    write_diffusers(replace(checkpoint, config=config), tmp_path / "new", lambda count: None)
    assert json.loads((tmp_path / "new" / "vae" / "config.json").read_text())["scaling_factor"] == 0.5


def test_a_folder_that_we_wrote_keeps_what_diffusers_has_no_place_for(tmp_path):
    config = tiny_config("svd")
    defaults = replace(config.defaults, height=320, width=576, guidance=(1.0, 3.0), sigma_max=80.0)
    config = replace(config, unet=replace(config.unet, norm_eps="sgm"), defaults=defaults)
    write_diffusers(replace(tiny_checkpoint("svd", seed=4), config=config), tmp_path, lambda count: None)
    assert open_checkpoint(tmp_path).config == config
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"sigma_max": 100.0}))
    changed = open_checkpoint(tmp_path).config
    assert (changed.defaults.sigma_max, changed.unet.norm_eps) == (100.0, "diffusers"), "changed: it speaks itself"


@pytest.mark.parametrize(("kind", "preconditioning"), [("sd21", "v"), ("svd", "discrete_v")])
def test_models_that_diffusers_would_sample_wrongly_are_refused(tmp_path, kind, preconditioning):
    checkpoint = tiny_checkpoint(kind, seed=4)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, preconditioning=preconditioning))
    with pytest.raises(UserError, match=rf'preconditioning "{preconditioning}".* choose --to svdjax'):
        write_diffusers(checkpoint, tmp_path / "out", lambda count: None)
    assert not (tmp_path / "out").exists()


def test_options_that_a_folder_contradicts_or_has_no_use_for_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="--prediction eps contradicts its configuration, which says v"):
        open_checkpoint(folder, Options(prediction="eps"))
    convert(folder, tmp_path / "a.safetensors", to="svdjax")
    with pytest.raises(UserError, match=r"--variant fp16: .*a\.safetensors is no diffusers folder"):
        open_checkpoint(tmp_path / "a.safetensors", Options(variant="fp16"))
