"""The reference cases of the original code, end to end: released key names, conditioner, UNet, sampler, frames."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.compare import Comparison, relative_error
from svdjax.conversion.golden import load_golden
from svdjax.conversion.source import load_model

GOLDENS = Path(os.environ.get("SVDJAX_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
CASES = ("sgm_i2v", "sgm_sv3d_p")

pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"{GOLDENS} is not there (set SVDJAX_GOLDENS)")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Folder, recording and converted model of one case."""
    folder = GOLDENS / request.param
    recording = load_golden(folder)
    config = recording.config
    options = Options(head_dim=config.unet.head_dim, clip_heads=config.image_encoder.heads)
    return folder, recording, load_model(folder / "svd.safetensors", options=options)


def arrays(folder, name):
    """A file of the case, frames unfolded and channels last where they are images or latents."""
    with np.load(folder / "golden" / f"{name}.npz") as file:
        return {key: np.moveaxis(file[key], 1, -1) if file[key].ndim == 4 else file[key] for key in file.files}


def run(model, function, *inputs):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *inputs: function(nnx.merge(graph, state), *inputs))(state, *inputs)


def floor(folder):
    """The reference's own float32 error of one UNet call; an honest implementation is within 10x of it."""
    return json.loads((folder / "case.json").read_text())["float32_noise_floor"]["unet/out"][0]


def test_sizes_found_in_the_file_are_those_of_the_case(case):
    _, recording, model = case
    for part in ("unet", "vae", "image_encoder"):
        assert getattr(model.config, part) == getattr(recording.config, part)
    assert model.config.task == recording.config.task
    assert model.config.scalars == recording.config.scalars


@pytest.mark.slow
def test_unet(case):
    folder, _, model = case
    golden = arrays(folder, "unet")
    frames = int(golden["num_frames"])
    x, context, vector = (
        golden[name].reshape(-1, frames, *golden[name].shape[1:]) for name in ("x", "context", "y")
    )
    c_noise = golden["timesteps"].reshape(-1, frames)[:, 0]
    assert len(x) == 2, "two clips, so that mixing batch and frames would show"
    inputs = (jnp.asarray(value) for value in (x, c_noise, context[:, 0], vector))
    out = run(model, lambda model, *inputs: model.unet(*inputs), *inputs)
    assert relative_error(out.reshape(golden["out"].shape), golden["out"]) < 10 * floor(folder)


@pytest.mark.slow
def test_autoencoder(case):
    folder, _, model = case
    golden = arrays(folder, "vae")
    frames = int(golden["num_frames"])
    z = jnp.asarray(golden["z"]).reshape(-1, frames, *golden["z"].shape[1:])
    out = run(model, lambda model, z: model.vae.decode(z), z)
    assert relative_error(out.reshape(golden["frames"].shape), golden["frames"]) < 2e-5
    alone = run(model, lambda model, z: model.vae.decode(z), z[:1, :1])
    assert relative_error(alone[0], golden["one_frame"]) < 2e-5


@pytest.mark.slow
def test_picture_to_frames(case):
    """Conditioner, each sampler step, frames: the sampling code itself, on the case's noise."""
    folder, recording, model = case
    comparison = Comparison(model, recording)
    path, frames = comparison.video(lambda step: None)
    rows = [*comparison.conditioning(), *comparison.decoder(), *path]
    assert len(rows) == (6 if recording.config.task == "image_to_video" else 5) + 1 + 2 * 4 + 1
    limits = {row.part: 10 * floor(folder) if "denoised" in row.part else 2e-5 for row in rows}
    assert {row.part: row.error for row in rows if not row.error < limits[row.part]} == {}
    assert frames.shape == (3, 64, 128, 3)
