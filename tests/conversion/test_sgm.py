"""Single files in the original naming: what is inferred, what is left out, what is kept and what is derived."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from svdjax.conversion.checkpoint import Options, shapes_of
from svdjax.conversion.convert import convert
from svdjax.conversion.mapping import to_theirs
from svdjax.conversion.safetensors_file import read_safetensors, write_safetensors
from svdjax.conversion.sgm import Layout, read_sgm, sgm_table, write_sgm
from svdjax.conversion.source import open_checkpoint
from svdjax.conversion.tensors import Tensor
from svdjax.errors import UserError
from svdjax.models.params import flat_params
from svdjax.models.svd import SVDConfig
from tests.conversion.tiny import KINDS, OPTIONS, assert_same, tiny_checkpoint, tiny_config, write_original


def _weightless(config):
    """The tensors of a file of any size, without numbers."""
    shapes = flat_params(shapes_of(config))
    dtype = np.dtype(np.float32)
    ours = {path: Tensor(path, s.shape, dtype, lambda: pytest.fail("loaded")) for path, s in shapes.items()}
    return to_theirs(sgm_table(config, Layout.of(config)), ours, what="file")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["svd", "sv3d_p", "sd21"])
def test_released_models_are_recognised_by_their_shapes(preset):
    config = getattr(SVDConfig, preset)()
    found = read_sgm(_weightless(config), {}, Options(), f"models/{preset}.safetensors")
    assert found.config == config


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_models_are_recognised_by_their_shapes(tmp_path, kind):
    source = write_original(tmp_path / "a.safetensors", kind, seed=1)
    assert open_checkpoint(source, OPTIONS).config == tiny_config(kind)


@pytest.mark.parametrize(
    ("name", "frames"), [("svd_xt_1_1", 25), ("my-xt", 25), ("svd", 14), ("next", 14), ("context_1", 14)]
)
def test_svd_xt_is_recognised_by_its_name_and_that_is_said(tmp_path, name, frames):
    checkpoint = open_checkpoint(write_original(tmp_path / f"{name}.safetensors", "svd", seed=1), OPTIONS)
    assert checkpoint.config.defaults == (SVDConfig.svd_xt() if frames == 25 else SVDConfig.svd()).defaults
    assert any(notice.startswith(f"assumed {frames} frames") for notice in checkpoint.notices)


@pytest.mark.parametrize(("given", "found"), [(None, "discrete_v"), ("v", "discrete_v"), ("eps", "discrete_eps")])
def test_sd21_predicts_what_the_option_says(tmp_path, given, found):
    source = write_original(tmp_path / "a.safetensors", "sd21", seed=1)
    checkpoint = open_checkpoint(source, replace(OPTIONS, prediction=given))
    assert checkpoint.config.preconditioning == found
    assert any("--prediction" in notice for notice in checkpoint.notices) == (given is None)


def test_an_ldm_ckpt_without_its_constants(tmp_path):
    write_original(tmp_path / "a.safetensors", "sd21", seed=2)
    weights = {
        key: torch.from_numpy(t.load()) for key, t in read_safetensors(tmp_path / "a.safetensors")[0].items()
    }
    constants = {
        "betas": torch.rand(1000),
        "alphas_cumprod_prev": torch.rand(1000),
        "sqrt_recipm1_alphas_cumprod": torch.rand(1000),
        "posterior_mean_coef2": torch.rand(1000),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.diffusion_modelout2bias": torch.rand(4),
        "cond_stage_model.model.attn_mask": torch.rand(9, 9),
    }
    torch.save({"state_dict": weights | constants, "global_step": 9}, tmp_path / "b.ckpt")
    plain, ckpt = (
        open_checkpoint(tmp_path / "a.safetensors", OPTIONS),
        open_checkpoint(tmp_path / "b.ckpt", OPTIONS),
    )
    assert ckpt.config == plain.config
    assert_same(ckpt.params, plain.params)
    assert any(notice.startswith("left out, no weights of the model: 8 tensors") for notice in ckpt.notices)


def test_our_files_remember_their_configuration(tmp_path):
    config = replace(
        tiny_config("text_to_video"), unet=replace(tiny_config("text_to_video").unet, norm_eps="diffusers")
    )
    checkpoint = replace(tiny_checkpoint("text_to_video", 3), config=config)
    metadata = {"svdjax_config": config.to_json()}
    write_safetensors(tmp_path / "a.safetensors", write_sgm(checkpoint)[0], metadata)
    assert open_checkpoint(tmp_path / "a.safetensors").config == config  # heads included, without options


def test_extras_are_what_the_model_does_not_compute_with(tmp_path):
    checkpoint = open_checkpoint(write_original(tmp_path / "a.safetensors", "svd", seed=4), OPTIONS)
    groups = {".".join(key.split(".")[:4]) for key in checkpoint.extras}
    assert {key for key in checkpoint.extras if key.startswith("model.")} == set()
    assert "conditioner.embedders.3.encoder" in groups
    assert "conditioner.embedders.0.open_clip" in groups
    assert any(key.startswith("first_stage_model.encoder.conv_out") for key in checkpoint.extras)
    # The parameters come from the conditioner's encoder, not from the first stage's, which has no quant_conv.
    path = "vae.encoder.conv_in.kernel"
    assert checkpoint.params[path].name == "conditioner.embedders.3.encoder.encoder.conv_in.weight"


def test_the_derived_encoder_equals_encoder_and_quant_conv(tmp_path):
    checkpoint = replace(tiny_checkpoint("svd", 5), extras={})
    tensors, notices = write_sgm(checkpoint)
    assert len(notices) == 1 and "conditioner.embedders" in notices[0]
    torch.manual_seed(5)
    x = torch.randn(1, 64, 6, 5, dtype=torch.float64)

    def conv(x, name, padding):
        weight, bias = (torch.from_numpy(tensors[f"{name}.{part}"].load()).double() for part in ("weight", "bias"))
        return torch.nn.functional.conv2d(x, weight, bias, padding=padding)

    inner = "conditioner.embedders.3.encoder."
    whole = conv(conv(x, f"{inner}encoder.conv_out", 1), f"{inner}quant_conv", 0)
    folded = conv(x, "first_stage_model.encoder.conv_out", 1)
    assert (folded - whole).abs().max() < 1e-5 * whole.abs().max()
    first, second = f"{inner}encoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight"
    assert np.array_equal(tensors[first].load(), tensors[second].load())


def test_a_group_of_extras_is_there_whole_or_not_at_all(tmp_path):
    tensors = read_safetensors(write_original(tmp_path / "a.safetensors", "svd", seed=6))[0]
    group = [key for key in tensors if key.startswith("conditioner.embedders.3.encoder.decoder.")]
    group += ["conditioner.embedders.3.encoder.post_quant_conv.weight"]
    group += ["conditioner.embedders.3.encoder.post_quant_conv.bias"]
    without = {key: tensor for key, tensor in tensors.items() if key not in group}
    assert len(read_sgm(without, {}, OPTIONS, "file").extras) > 0
    without[group[0]] = tensors[group[0]]
    with pytest.raises(UserError, match=rf"{len(group) - 1} missing: conditioner.embedders.3.encoder.decoder"):
        read_sgm(without, {}, OPTIONS, "file")


def test_sd21_from_a_diffusers_folder_lacks_dead_weights(tmp_path, capsys):
    source = write_original(tmp_path / "a.safetensors", "sd21", seed=7)
    convert(source, tmp_path / "folder", to="diffusers", options=OPTIONS)
    assert "text_encoder.blocks, text_encoder.logit_scale, text_encoder.text_projection" in capsys.readouterr().err
    convert(tmp_path / "folder", tmp_path / "b.safetensors", to="sgm")
    a, b = (read_safetensors(tmp_path / name)[0] for name in ("a.safetensors", "b.safetensors"))
    absent = {key.removeprefix("cond_stage_model.model.").split(".")[0] for key in a.keys() - b.keys()}
    assert absent == {"transformer", "text_projection", "logit_scale"}
    assert_same({key: a[key] for key in b}, b)
    # With our configuration in its metadata the number of blocks that count is still known.
    assert open_checkpoint(tmp_path / "b.safetensors").config == open_checkpoint(tmp_path / "folder").config
