"""A run of the LoRA stage trains, keeps and writes the LoRA and nothing else; the base stays as it was."""

import dataclasses
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.conversion.checkpoint import shapes_of
from svdjax.conversion.lora import read_lora
from svdjax.conversion.native import save_native
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.errors import UserError
from svdjax.models.lora import LoRAConfig
from svdjax.models.params import flat_params
from svdjax.models.svd import SVD
from svdjax.sampling.loras import apply_loras
from svdjax.training import run, sharding
from svdjax.training.config import load_config
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.model import Model
from svdjax.training.stage_run import StageRun
from svdjax.training.step import make_loss
from tests.training.tiny import MODEL, OPTIM, tiny_run
from tests.weights import random_model

CONFIGS = Path(__file__).parents[2] / "configs"
LORA = LoRAConfig(rank=2, alpha=2.0)


@pytest.fixture(scope="module")
def base():
    return random_model(SVD, MODEL)


@pytest.fixture(scope="module")
def config(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("lora")
    save_native(base, root / "base.safetensors")
    stage = LoRAStage(
        steps=2, batch=8, optim=OPTIM, lora=LORA, base="tiny", compute_dtype="bfloat16", cache_latents=True
    )
    parts = {"vae": None, "decoder": None, "unet": stage, "export_dtype": "float32"}
    return dataclasses.replace(tiny_run(root), init_from=str(root / "base.safetensors"), **parts)


@pytest.fixture(scope="module")
def frozen():
    """Of a frozen kernel, the types in which it lies on the devices while a run trains."""
    return []


@pytest.fixture(scope="module")
def finished(config, frozen):
    """Trained on eight devices, over which every parameter is divided that can be."""
    make_state = StageRun._state

    def watched(stage_run, checkpoints):
        shape = stage_run.model.params["unet.conv_in.kernel"].shape
        found = [x for x in jax.live_arrays() if x.shape == shape and not x.is_deleted()]
        frozen.extend(str(x.dtype) for x in found if len(x.sharding.device_set) == 8)
        return make_state(stage_run, checkpoints)

    with mock.patch.object(sharding, "_SMALL", 0), mock.patch.object(StageRun, "_state", watched):
        return run(config)


@pytest.mark.slow
def test_the_frozen_model_lies_on_the_devices_in_the_type_to_compute_in_alone(finished, frozen):
    assert set(frozen) == {"bfloat16"}


@pytest.mark.slow
def test_a_run_leaves_a_lora_that_merges_into_its_base(config, finished, base):
    assert finished == config.out / "lora.safetensors" and not (config.out / "model.safetensors").exists()
    lora = read_lora(finished, MODEL.unet)
    assert (lora.rank, lora.alpha, lora.base, len(lora.layers)) == (2, 2.0, "tiny", 8)
    before = flat_params(base)
    merged = flat_params(load_model(apply_loras(open_checkpoint(config.init_from), [str(finished)])))
    changed = {path for path in before if not jnp.array_equal(before[path], merged[path])}
    # Attention to a single token does not depend on q and k, so no gradient reaches them.
    layers = {layer for layer in lora.layers if not layer.endswith((".attn2.q", ".attn2.k"))}
    assert changed == {f"{layer}.kernel" for layer in layers}


@pytest.mark.slow
def test_a_checkpoint_holds_the_lora_alone(config, finished, base):
    trained = {path: x for path, x in flat_params(config.unet.shapes(MODEL)).items() if config.unet.trains(path)}
    assert len(trained) == 16
    files = [path for path in (config.out / "unet/checkpoints/2").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    # Parameters, two moments and the average in float32, and what describes them.
    numbers = 4 * 4 * sum(x.size for x in trained.values())
    assert numbers < size < numbers + 100_000 < 4 * sum(x.size for x in flat_params(base).values())


@pytest.mark.slow
def test_a_finished_run_is_read_again(config, finished):
    before = finished.read_bytes()
    finished.unlink()
    with mock.patch.object(sys.modules["svdjax.training.run"], "write_grid", lambda *args: []):
        assert run(config).read_bytes() == before


def test_the_loss_before_the_first_step_is_the_base_models(base):
    stage = LoRAStage(lora=LORA)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = stage.begin(Model(MODEL, flat_params(base)), seed=0, mesh=mesh)
    lora = {path: value for path, value in model.params.items() if stage.trains(path)}
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 255, (2, 2, 16, 16, 3), np.uint8)}
    batch |= {"fps": np.full(2, 7.0, np.float32), "motion_bucket": np.full(2, 90.0, np.float32)}

    def loss(stage, params, frozen):
        return float(jax.jit(make_loss(stage, stage.shapes(MODEL)))(params, frozen, batch, jax.random.key(1))[0])

    alone = loss(DiffusionStage(), {}, flat_params(base))
    assert loss(stage, lora, flat_params(base)) == pytest.approx(alone, rel=1e-6)
    moved = {path: value + 0.3 for path, value in lora.items()}
    assert abs(loss(stage, moved, flat_params(base)) - alone) > 1e-4


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match=r"--unet.part temporal: a LoRA is trained"):
        LoRAStage(part="temporal")
    with pytest.raises(UserError, match=r"lora.targets unet.nothing: names no layer of this model"):
        LoRAStage(lora=LoRAConfig(targets="unet.nothing")).shapes(MODEL)


@pytest.mark.parametrize(
    ("options", "count"),
    [((), 3_319_808), (("--unet.lora.targets", "unet.*.temporal.attn1.*", "--unet.lora.alpha", "8"), 1_597_440)],
)
def test_the_recipe_trains_what_the_paper_says(options, count):
    config = load_config([str(CONFIGS / "camera_lora.py"), *options], default=CONFIGS / "demo.py")
    stage = config.unet
    assert (stage.steps, stage.lora.rank, config.model.defaults.frames) == (5_000, 16, 14)
    shapes = flat_params(stage.shapes(config.model))
    trained = {path: x for path, x in shapes.items() if stage.trains(path)}
    assert sum(x.size for x in trained.values()) == count
    assert {path for path in shapes if path not in trained} == set(flat_params(shapes_of(config.model)))


def test_the_loss_of_the_recipe_can_be_traced_at_full_size():
    config = load_config([str(CONFIGS / "camera_lora.py")], default=CONFIGS / "demo.py")
    stage, sampling, shape = config.unet, config.data.sampling, jax.ShapeDtypeStruct
    model = stage.shapes(config.model)
    flat = flat_params(model)
    trained = {path: x for path, x in flat.items() if stage.trains(path)}
    frozen = {path: x for path, x in flat.items() if path not in trained}
    batch = {"video": shape((1, sampling.frames, *sampling.size, 3), jnp.uint8)}
    batch |= {name: shape((1,), jnp.float32) for name in ("fps", "motion_bucket")}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, _ = jax.eval_shape(make_loss(stage, model), trained, frozen, batch, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
