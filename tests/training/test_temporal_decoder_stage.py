"""The decoder and its discriminator learn from their own losses, and only the decoder is left at the end."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svdjax.conversion.native import save_native
from svdjax.conversion.source import open_checkpoint, read_arrays
from svdjax.models.discriminator import DiscriminatorConfig
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD
from svdjax.training import run
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.model import Model
from svdjax.training.temporal_decoder_stage import TemporalDecoderStage, hinge
from tests.training.tiny import MODEL, OPTIM, tiny_run
from tests.weights import random_model

module = sys.modules["svdjax.training.temporal_decoder_stage"]
ADVERSARY = DiscriminatorConfig(channels=(8, 8), norm_groups=4)


def stage(**changes):
    every = {"log_every": 1, "validate_every": 2, "checkpoint_every": 2}
    return TemporalDecoderStage(
        **({"steps": 2, "batch": 8, "optim": OPTIM, "adversary": ADVERSARY} | every | changes)
    )


@pytest.fixture(scope="module")
def model():
    base = Model(MODEL, dict(flat_params(random_model(SVD, MODEL))))
    return stage().begin(base, seed=0, mesh=make_mesh(MeshConfig())).module


@pytest.fixture(scope="module")
def videos():
    keys = jax.random.split(jax.random.key(3), 2)
    return tuple(jax.random.uniform(key, (2, 3, 16, 16, 3), minval=-1, maxval=1) for key in keys)


def test_hinge_is_the_definition(model, videos):
    made, real = videos
    fools, mistakes = hinge(model.discriminator, made, real)
    on_made, on_real = (np.asarray(model.discriminator(x)) for x in videos)
    assert fools == pytest.approx(-on_made.mean(), rel=1e-5)
    wanted = np.maximum(0, 1 + on_made).mean() + np.maximum(0, 1 - on_real).mean()
    assert mistakes == pytest.approx(wanted, rel=1e-5)


def test_each_side_learns_from_its_own_loss(model, videos):
    """The decoder's loss moves only what was made, the discriminator's only the discriminator."""
    graph, state = nnx.split(model.discriminator)

    def losses(made, state):
        return hinge(nnx.merge(graph, state), made, videos[1])

    of_made, of_state = jax.jacrev(losses, argnums=(0, 1))(videos[0], state)[0]
    assert jnp.abs(of_made).max() > 0
    assert all(jnp.abs(leaf).max() == 0 for leaf in jax.tree.leaves(of_state))
    of_made, of_state = jax.jacrev(losses, argnums=(0, 1))(videos[0], state)[1]
    assert jnp.abs(of_made).max() == 0
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(of_state)) > 0


def test_validation_is_without_the_discriminator(model, videos):
    batch = {"video": videos[1], "row": jnp.arange(2)}
    _, metrics = stage().loss(model, batch, jax.random.key(0))
    assert {"psnr", "adversarial", "discriminator"} == set(metrics)
    loss, metrics = stage().for_validation().loss(model, batch, jax.random.key(0))
    plain, _ = stage().reconstruction(model.vae.decode(model.vae.encode(videos[1]).mode()), videos[1])
    assert set(metrics) == {"psnr"} and loss == pytest.approx(float(plain), rel=1e-5)


def test_perceptual_distance_is_added_by_its_weight_and_frozen(tmp_path, videos, monkeypatch):
    small = LPIPSConfig(blocks=((8,), (8,)))
    weights = {path: np.asarray(x) for path, x in flat_params(random_model(LPIPS, small)).items()}
    monkeypatch.setattr(module, "LPIPSConfig", lambda: small)
    monkeypatch.setattr(module, "read_lpips", lambda path: weights)
    with_lpips = stage(perceptual=tmp_path / "lpips.safetensors", perceptual_weight=0.5, adversary_weight=0.0)
    base = Model(MODEL, dict(flat_params(random_model(SVD, MODEL))))
    begun = with_lpips.begin(base, seed=0, mesh=make_mesh(MeshConfig()))
    batch, key = {"video": videos[1], "row": jnp.arange(2)}, jax.random.key(0)
    loss, metrics = with_lpips.loss(begun.module, batch, key)
    plain, _ = stage(adversary_weight=0.0).loss(begun.module, batch, key)
    made = begun.module.vae.decode(begun.module.vae.encode(videos[1]).mode())
    frames = (x.reshape(-1, 16, 16, 3) for x in (made, videos[1]))
    distance = random_model(LPIPS, small)(*frames).mean()
    assert metrics["lpips"] == pytest.approx(float(distance), rel=1e-3) and distance > 0
    assert loss - plain == pytest.approx(0.5 * float(distance), rel=1e-3)
    assert not any(with_lpips.trains(path) for path in begun.params if path.startswith("lpips."))
    with_lpips.save(begun, tmp_path / "left.safetensors")
    assert set(open_checkpoint(tmp_path / "left.safetensors").params) == set(base.params)


@pytest.mark.slow
def test_a_run_changes_the_decoder_and_leaves_no_discriminator(tmp_path):
    save_native(random_model(SVD, MODEL), tmp_path / "base.safetensors")
    config = dataclasses.replace(
        tiny_run(tmp_path),
        init_from=str(tmp_path / "base.safetensors"),
        vae=None,
        unet=None,
        decoder=stage(),
        export_dtype="float32",
    )
    before, after = (
        dict(read_arrays(open_checkpoint(path).params)) for path in (tmp_path / "base.safetensors", run(config))
    )
    assert set(after) == set(before) == set(flat_params(abstract(SVD, MODEL)))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed and all(path.startswith("vae.decoder.") for path in changed)
    assert {path.split(".")[2] for path in changed} >= {"conv_in", "conv_out"}
