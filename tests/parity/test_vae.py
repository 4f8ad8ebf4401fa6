"""The autoencoder against diffusers and against recorded outputs of the original code."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from safetensors.numpy import load_file

from svdjax.conversion.mapping import prefixed, to_ours, to_theirs
from svdjax.conversion.vae import decoder_table, encoder_table, quant_table, vae_table
from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.vae import VAE, VAEConfig
from svdjax.sampling.decode import convolution_reach, decode_frames
from tests.parity.reference import randomise, relative, tensors

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
VIDEO = VAEConfig(channels=(64, 128))
IMAGE = VAEConfig(channels=(64, 128), temporal_decoder=False, post_quant_conv=True)
decode = jax.jit(VAE.decode)
encode = jax.jit(VAE.encode)
decode_in_chunks = partial(jax.jit, static_argnames=("chunk", "mode"))(decode_frames)


def reference(config: VAEConfig, seed: int = 0, layers: int = 2) -> torch.nn.Module:
    sizes = {"block_out_channels": config.channels, "layers_per_block": layers}
    levels = len(config.channels)
    down = ("DownEncoderBlock2D",) * levels
    if config.temporal_decoder:
        return randomise(AutoencoderKLTemporalDecoder(down_block_types=down, **sizes), seed)
    up = ("UpDecoderBlock2D",) * levels
    sizes["use_post_quant_conv"] = config.post_quant_conv
    return randomise(AutoencoderKL(down_block_types=down, up_block_types=up, **sizes), seed)


def ours(config: VAEConfig, module: torch.nn.Module) -> VAE:
    flat = to_ours(vae_table(config, "diffusers"), tensors(module), what="diffusers")
    return load_flat(abstract(VAE, config), flat, what="vae")


def pixels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, -3, -1))


def channels_first(x: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, -3)


@pytest.fixture
def video(x64):
    module = reference(VIDEO).double()
    return module, ours(VIDEO, module)


@pytest.mark.parametrize(("videos", "frames"), [(1, 5), (2, 2)])
def test_temporal_decoder_in_float64(video, videos, frames):
    module, vae = video
    z = np.random.default_rng(frames).normal(size=(videos, frames, 4, 4, 6))
    with torch.no_grad():
        want = module.decode(torch.from_numpy(z).flatten(0, 1), num_frames=frames).sample.numpy()
    got = decode(vae, pixels_last(z))
    assert relative(channels_first(got), want.reshape(videos, frames, 3, 8, 12)) < 1e-9


def test_reference_chunks_equal_the_pipelines(video):
    module, vae = video
    z = np.random.default_rng(3).normal(size=(1, 5, 4, 4, 6))
    pipeline = SimpleNamespace(vae=module)
    scaled = torch.from_numpy(z) * module.config.scaling_factor
    with torch.no_grad():
        want = StableVideoDiffusionPipeline.decode_latents(pipeline, scaled, num_frames=5, decode_chunk_size=2)
    got = decode_in_chunks(vae, pixels_last(z), chunk=2, mode="reference")
    # the pipeline hands its frames out in float32
    assert relative(np.moveaxis(channels_first(got), 2, 1), want) < 1e-6


def test_encoder_in_float64(video):
    module, vae = video
    images = np.random.default_rng(1).normal(size=(2, 3, 16, 22))
    with torch.no_grad():
        want = module.encode(torch.from_numpy(images)).latent_dist
    got = encode(vae, pixels_last(images))
    assert relative(channels_first(got.mode()), want.mode()) < 1e-9
    assert relative(channels_first(got.logvar), want.logvar) < 1e-9


def test_image_autoencoder_in_float64(x64):
    module = reference(IMAGE, seed=5).double()
    vae = ours(IMAGE, module)
    rng = np.random.default_rng(2)
    images, z = rng.normal(size=(2, 3, 10, 12)), rng.normal(size=(1, 2, 4, 5, 6))
    with torch.no_grad():
        mode = module.encode(torch.from_numpy(images)).latent_dist.mode()
        want = module.decode(torch.from_numpy(z[0])).sample
    assert relative(channels_first(encode(vae, pixels_last(images)).mode()), mode) < 1e-9
    assert relative(channels_first(decode(vae, pixels_last(z)))[0], want) < 1e-9


def test_narrow_levels_have_32_groups_too(x64):
    config = VAEConfig(channels=(32, 96))
    module = reference(config, seed=8).double()
    z = np.random.default_rng(5).normal(size=(1, 3, 4, 4, 4))
    with torch.no_grad():
        want = module.decode(torch.from_numpy(z[0]), num_frames=3).sample.numpy()
    assert relative(channels_first(decode(ours(config, module), pixels_last(z)))[0], want) < 1e-9


def test_float32():
    module = reference(VIDEO, seed=7)
    vae = ours(VIDEO, module)
    rng = np.random.default_rng(4)
    z = rng.normal(size=(1, 4, 4, 8, 8)).astype(np.float32)
    images = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        want = module.decode(torch.from_numpy(z[0]), num_frames=4).sample
        mode = module.encode(torch.from_numpy(images)).latent_dist.mode()
    got = decode(vae, pixels_last(z))
    assert got.dtype == jnp.float32
    assert relative(channels_first(got)[0], want) < 2e-5
    assert relative(channels_first(encode(vae, pixels_last(images)).mode()), mode) < 2e-5


def test_every_frame_depends_on_every_other_through_the_norms_alone():
    """Why decoding overlapping chunks cannot be exact: the reference's own receptive field is unbounded."""
    config = VAEConfig(channels=(64,), num_res_blocks=1)
    module = reference(config, layers=1).double().decoder
    frames, reach = 12, convolution_reach(config) - 2  # this reference has one block less in the middle
    z = torch.randn(frames, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changed = z.clone()
    changed[-1] += 1

    def change() -> list[float]:
        with torch.no_grad():
            a, b = (module(x, torch.zeros(1, frames), num_frames=frames) for x in (z, changed))
        return (a - b).abs().amax((1, 2, 3)).tolist()

    assert min(change()) > 1e-6
    for block in [*module.mid_block.resnets, *module.up_blocks[0].resnets]:
        block.temporal_res_block.norm1 = block.temporal_res_block.norm2 = torch.nn.Identity()
    far, near = change()[: -1 - reach], change()[-1 - reach :]
    assert max(far) == 0 and min(near) > 0 and len(far) == frames - 1 - reach > 0


@pytest.mark.parametrize("config", [VIDEO, IMAGE])
def test_round_trips_are_bit_exact(config):
    theirs = tensors(reference(config, seed=9))
    flat = to_ours(vae_table(config, "diffusers"), theirs, what="diffusers")
    assert {path: x.shape for path, x in flat_params(abstract(VAE, config)).items()} == {
        path: x.shape for path, x in flat.items()
    }
    for format in ("diffusers", "sgm"):
        table = vae_table(config, format)
        back = to_ours(table, to_theirs(table, flat, what="ours"), what=format)
        assert all(np.array_equal(back[path], flat[path]) for path in flat)
    back = to_theirs(vae_table(config, "diffusers"), flat, what="ours")
    assert set(back) == set(theirs) and all(np.array_equal(back[key], theirs[key]) for key in theirs)


def test_diffusers_cannot_hold_other_temporal_decoders():
    with pytest.raises(UserError, match="num_res_blocks = 1"):
        decoder_table(VAEConfig(num_res_blocks=1), "diffusers")


def golden(case: str) -> tuple[VAE, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The conditioner's encoder with the first stage's decoder, as SVD uses them; the outputs; all tensors."""
    folder = GOLDENS / case
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs in {folder}")
    sizes = json.loads((folder / "case.json").read_text())
    config = VAEConfig(
        channels=tuple(sizes["config"]["vae_channels"]),
        num_res_blocks=sizes["config"]["vae_layers"],
        temporal_decoder=sizes["video_decoder"],
    )
    file = load_file(folder / "svd.safetensors")
    prefix = next(key for key in file if key.endswith(".encoder.quant_conv.weight"))[: -len("quant_conv.weight")]
    table = prefixed(encoder_table(config, "sgm") + quant_table(config), theirs=prefix)
    table += prefixed(decoder_table(config, "sgm"), theirs="first_stage_model.")
    used = {key: file[key] for row in table for key in row.theirs}
    vae = load_flat(abstract(VAE, config), to_ours(table, used, what=case), what=case)
    return vae, dict(np.load(folder / "golden" / "vae.npz")), file


@pytest.mark.parametrize("case", ["sgm_i2v", "sgm_sv3d_p"])
def test_recorded_outputs_of_the_original_code(case):
    vae, record, _ = golden(case)
    frames = int(record["num_frames"])
    z = pixels_last(record["z"].reshape(-1, frames, *record["z"].shape[1:]))
    got = channels_first(decode(vae, z)).reshape(record["frames"].shape)
    assert relative(got, record["frames"]) < 1e-5
    mode = encode(vae, pixels_last(record["image"])).mode()
    assert relative(channels_first(mode), record["cond_mode"]) < 1e-5
    if case == "sgm_i2v":
        assert relative(channels_first(decode(vae, z[:1, :1]))[0], record["one_frame"]) < 1e-5


def test_recorded_first_stage_encoder_and_complete_autoencoder():
    """The other two places of an sgm file: the first stage's encoder, and the conditioner's whole autoencoder."""
    vae, record, file = golden("sgm_i2v")
    table = prefixed(encoder_table(vae.config, "sgm"), theirs="first_stage_model.")
    used = {key: x for key, x in file.items() if key.startswith("first_stage_model.encoder.")}
    flat = to_ours(table, used, what="first stage")
    identity = {"quant_conv.kernel": np.eye(8, dtype=np.float32)[None, None], "quant_conv.bias": np.zeros(8)}
    first = load_flat(vae, {**flat_params(vae), **flat, **identity}, what="first stage")
    got = encode(first, pixels_last(record["image"]))
    moments = jnp.concatenate([got.mean, got.logvar], axis=-1)
    assert relative(channels_first(moments), record["first_stage_moments"]) < 1e-5

    prefix = "conditioner.embedders.3.encoder."
    whole = VAEConfig(channels=vae.config.channels, temporal_decoder=False, post_quant_conv=True)
    complete = {key.removeprefix(prefix): x for key, x in file.items() if key.startswith(prefix)}
    flat = to_ours(vae_table(whole, "sgm"), complete, what="conditioner")
    load_flat(abstract(VAE, whole), flat, what="conditioner")
