"""A run trains its stages, survives interruptions bit for bit, and refuses what cannot work."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from svdjax.conversion.source import load_model
from svdjax.data.opening import open_source
from svdjax.data.pipeline import to_unit
from svdjax.errors import UserError
from svdjax.models.params import abstract, cast_floating, flat_params, load_flat
from svdjax.models.svd import SVD
from svdjax.training import RunConfig, Stopped, run
from svdjax.training.checkpoint import Checkpoints, whole_checkpoints
from svdjax.training.data import Clips, open_clips
from svdjax.training.directory import claim
from svdjax.training.export import Export, export
from svdjax.training.mesh import make_mesh
from svdjax.training.metrics import MetricsLog
from svdjax.training.model import read
from svdjax.training.stage_run import StageRun, validation_size
from svdjax.training.vae_stage import encode_video
from tests.training.tiny import MODEL, tiny_run
from tests.weights import random_model, random_start


@pytest.fixture(scope="module", autouse=True)
def _cheap_weights():
    """Initial weights from NumPy: compiling the initialisers would take most of the time."""
    with mock.patch.object(sys.modules["svdjax.training.run"], "drawn", random_start):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    run(tiny_run(root))
    return root


def losses(directory: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Send this process a SIGTERM while it logs a step."""
    write = MetricsLog.write

    def write_and_signal(log: MetricsLog, now: int, metrics: dict[str, float]) -> None:
        write(log, now, metrics)
        if log._stage.name == stage and now == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)


def kept_at_restore(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """By stage, of the parameters that it trains, those whose first values are there when it reads a checkpoint."""
    kept, make_state = {}, StageRun._state

    def watched(stage_run, checkpoints):
        def restore(shapes):
            params = stage_run.model.params.items()
            trained = [path for path, value in params if stage_run.stage.trains(path) and not value.is_deleted()]
            kept[stage_run.stage.name] = trained
            return Checkpoints.restore(checkpoints, shapes)

        monkeypatch.setattr(checkpoints, "restore", restore)
        return make_state(stage_run, checkpoints)

    monkeypatch.setattr(StageRun, "_state", watched)
    return kept


def test_a_run_leaves_a_model_samples_metrics_and_its_configuration(finished):
    out = finished / "run"
    model = load_model(out / "model.safetensors")
    assert model.config.vae.scaling_factor != tiny_run(finished).model.vae.scaling_factor
    assert {path.name for path in out.glob("samples.*")} == {"samples.png", "samples.mp4"}
    assert list(losses(out / "unet")) == [1, 2, 3, 4]
    saved = json.loads((out / "config.json").read_text())
    assert saved["unet"]["batch"] == 8 and saved["model"]["unet"]["channels"] == [32]


def test_each_stage_trains_its_own_part_only(finished):
    vae, decoder, unet = (
        flat_params(load_model(finished / "run" / stage / "model.safetensors"))
        for stage in ("vae", "decoder", "unet")
    )

    def changed(before, after):
        return {tuple(path.split(".")[:2]) for path in before if not jnp.array_equal(before[path], after[path])}

    assert changed(vae, decoder) == {("vae", "decoder")}
    assert {part for part, _ in changed(decoder, unet)} == {"unet"}


def test_the_autoencoder_computes_in_the_type_of_its_weights():
    half = cast_floating(flat_params(random_model(SVD, MODEL)), jnp.dtype(jnp.bfloat16))
    model = load_flat(abstract(SVD, MODEL), half, what="half")
    assert encode_video(model.vae, jnp.zeros((1, 2, 16, 16, 3))).dtype == jnp.bfloat16


def test_latents_have_unit_variance_after_the_vae_stage(finished):
    model = load_model(finished / "run/vae/model.safetensors")
    data = tiny_run(finished).data
    clips = Clips(data, open_source(data.train), open_source(data.validation))
    latents = [
        encode_video(model.vae, to_unit(jnp.asarray(b["video"])))
        for b in clips.held_out(batch=4, count=4, frames=1)
    ]
    scaled = np.concatenate(latents) * model.config.vae.scaling_factor
    assert scaled.std() == pytest.approx(1, rel=1e-4)


def test_the_model_of_any_checkpoint_can_be_had(finished, tmp_path, capsys):
    config, console = tiny_run(finished), Console()
    files = {name: tmp_path / f"{name}.safetensors" for name in ("last", "best", "2")}
    steps = {name: export(Export(to=file, step=name), config, console) for name, file in files.items()}
    kept, _ = whole_checkpoints(config.out / "unet/checkpoints")
    assert steps == {"last": 4, "best": min(kept, key=kept.get), "2": 2} and set(kept) == {2, 4}
    assert files["last"].read_bytes() == (config.out / "model.safetensors").read_bytes()
    early, late = (flat_params(load_model(files[name])) for name in ("2", "last"))
    changed = {path.split(".")[0] for path in early if not jnp.array_equal(early[path], late[path])}
    assert changed == {"unet"}
    assert "step 2 of unet: " in capsys.readouterr().out


def test_a_checkpoint_that_the_run_removes_meanwhile_is_passed_over(finished, monkeypatch):
    directory = tiny_run(finished).out / "unet/checkpoints"

    def find_damage(path, folder):
        if folder.name == "2":
            raise FileNotFoundError(path)

    monkeypatch.setattr("svdjax.training.checkpoint.find_damage", find_damage)
    losses, damages = whole_checkpoints(directory)
    assert set(losses) == {4} and not damages


def test_an_autoencoders_latents_are_measured_over_all_shapes():
    model, rng = random_model(SVD, MODEL), np.random.default_rng(0)
    shapes = ((1, 1, 16, 16, 3), (2, 1, 16, 24, 3))
    batches = [{"video": jnp.asarray(rng.integers(0, 256, shape, np.uint8))} for shape in shapes]
    latents = [np.ravel(encode_video(model.vae, to_unit(batch["video"]))) for batch in batches]
    found = tiny_run(Path()).vae.finish(model, batches).vae.scaling_factor
    assert found == pytest.approx(1 / np.std(np.concatenate(latents)), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("run", "3", r"--step 3: .*unet/checkpoints has no such checkpoint: choose one of 2, 4"),
        ("run", "newest", r"--step newest: .* choose one of 2, 4"),
        ("nowhere", "best", r"--out .*nowhere: there is no run"),
    ],
)
def test_what_no_run_has_saved_cannot_be_had(finished, tmp_path, name, step, message):
    with pytest.raises(UserError, match=message):
        export(Export(to=tmp_path / "x.safetensors", step=step), tiny_run(finished, name=name), Console())
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_written_over(finished):
    there = finished / "run/model.safetensors"
    before = there.stat().st_mtime_ns
    with pytest.raises(UserError, match=r"--to .*: exists: choose another name"):
        export(Export(to=there, step="last"), tiny_run(finished), Console())
    assert there.stat().st_mtime_ns == before


@pytest.mark.parametrize(("stage", "step"), [pytest.param("vae", 1, marks=pytest.mark.long), ("unet", 3)])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(finished, monkeypatch, stage, step):
    config = tiny_run(finished, name=f"interrupted-{stage}-{step}")
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, step)
        assert run(config) == Stopped(stage, step)
    assert not (config.out / "model.safetensors").exists()
    kept = kept_at_restore(monkeypatch)
    assert run(config) == config.out / "model.safetensors"
    assert kept == {stage: []}
    for part in ("vae", "decoder", "unet"):
        assert losses(config.out / part) == losses(finished / "run" / part)
        once = flat_params(load_model(finished / "run" / part / "model.safetensors"))
        again = flat_params(load_model(config.out / part / "model.safetensors"))
        assert all(jnp.array_equal(once[path], again[path]) for path in once)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(finished, monkeypatch):
    config = tiny_run(finished, name="nan")
    loss = type(config.vae).loss
    monkeypatch.setattr(type(config.vae), "loss", lambda *args: _poisoned(*loss(*args)))
    with pytest.raises(UserError, match="vae, step 1: loss nan"):
        run(config)
    assert not list((config.out / "vae/checkpoints").glob("[0-9]*"))


def _poisoned(loss, metrics):
    return loss * jnp.nan, metrics


def test_a_checkpoint_of_another_model_is_refused(finished, monkeypatch):
    config = tiny_run(finished, name="other")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "vae", 1)
        run(config)
    wider = dataclasses.replace(config.model.vae, channels=(8, 16))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, vae=wider))
    with pytest.raises(UserError, match=r"another configuration \(model.vae.channels \[8, 8\] -> \[8, 16\]\)"):
        run(other)
    (config.out / "config.json").unlink()
    with pytest.raises(UserError, match="other: holds vae, but no run"):
        run(other)
    (config.out / "config.json").write_text(other.to_json())
    with pytest.raises(UserError, match="vae/checkpoints/1: is damaged, or of another configuration"):
        run(other)


def test_a_directory_belongs_to_one_run(finished):
    config = tiny_run(finished)
    before = (config.out / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"run holds a run of another configuration \(quick False -> True\)"):
        run(dataclasses.replace(config, quick=True))
    with pytest.raises(UserError, match=r"\(seed 0 -> 1, vae.steps 4 -> 5\)"):
        run(dataclasses.replace(config, seed=1, vae=dataclasses.replace(config.vae, steps=5)))
    assert (config.out / "model.safetensors").stat().st_mtime_ns == before
    rate = dataclasses.replace(config.vae.optim, rate=1e-5)
    claim(dataclasses.replace(config, vae=dataclasses.replace(config.vae, log_every=3, optim=rate)))
    (finished / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--out .*file: cannot be written"):
        run(dataclasses.replace(config, out=finished / "file"))


def test_starting_from_a_model_of_another_size_is_refused(finished):
    config = tiny_run(finished, name="from")
    start = finished / "run/model.safetensors"
    wider = dataclasses.replace(config.model, vae=dataclasses.replace(config.model.vae, channels=(8, 16)))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        run(dataclasses.replace(config, model=wider, init_from=str(start)))
    groups = dataclasses.replace(config.model, unet=dataclasses.replace(config.model.unet, norm_groups=8))
    with pytest.raises(UserError, match="its unet has norm_groups 4, the model of this run 8"):
        run(dataclasses.replace(config, model=groups, init_from=str(start)))
    # Nothing was trained, so that the mended command may use the same directory.
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        run(dataclasses.replace(config, init_from="nowhere.safetensors"))


def test_what_is_missing_is_named_before_clips_are_measured(finished, tmp_path, monkeypatch):
    config, measured = tiny_run(finished, name="early"), []
    monkeypatch.setattr("svdjax.training.data.open_mixture", lambda *args, **kwargs: measured.append(args))
    with pytest.raises(
        UserError, match=r"--init-from \./nowhere/model\.safetensors: no such file: train the stage"
    ):
        run(dataclasses.replace(config, init_from="./nowhere/model.safetensors"))
    data = dataclasses.replace(config.data, validation=tmp_path / "nowhere", sprites=0)
    with pytest.raises(UserError, match=r"--data\.validation .*nowhere is not a folder"):
        run(dataclasses.replace(config, data=data))
    assert not measured


def test_starting_from_a_model_takes_its_scaling_of_the_latents(finished):
    start = finished / "run/model.safetensors"
    stages = {"vae": None, "decoder": None, "unet": dataclasses.replace(tiny_run(finished).unet, steps=1)}
    config = dataclasses.replace(tiny_run(finished, name="more"), init_from=str(start), **stages)
    scaling = load_model(run(config)).config.vae.scaling_factor
    assert scaling == load_model(start).config.vae.scaling_factor != config.model.vae.scaling_factor


def only_unet(finished: Path, name: str, **changes) -> RunConfig:
    """A run of the UNet alone, from the finished one."""
    config = tiny_run(finished, name=name)
    unet = dataclasses.replace(config.unet, cache_latents=False, **{"validate_every": 0} | changes)
    start = str(finished / "run/model.safetensors")
    return dataclasses.replace(config, init_from=start, vae=None, decoder=None, unet=unet)


def test_what_rests_in_the_hosts_memory_validates_and_is_saved(finished, monkeypatch):
    """And validation takes parts as large as those of training."""
    sizes, held_out = [], Clips.held_out

    def watched(clips: Clips, *, batch: int, **more):
        sizes.append(batch)
        return held_out(clips, batch=batch, **more)

    monkeypatch.setattr(Clips, "held_out", watched)
    config = only_unet(
        finished, "resting", steps=2, offload=True, accumulate=2, validate_every=1, checkpoint_every=1
    )
    run(config)
    rows = [json.loads(line) for line in (config.out / "unet/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if np.isfinite(row.get("val_loss", np.nan))] == [1, 2]
    assert sizes[0] == config.unet.batch // 2
    assert {path.name for path in (config.out / "unet/checkpoints").glob("[0-9]*")} == {"1", "2"}


@pytest.mark.parametrize(
    ("part", "spread", "size"),
    [
        (2, 1, (2, 4)),  # the demos: as in training
        (8, 8, (8, 4)),
        (16, 16, (16, 4)),
        (20, 4, (20, 3)),
        (768, 1, (64, 1)),
        (768, 16, (64, 1)),
        (768, 24, (48, 1)),
        (768, 96, (96, 1)),
        (48, 48, (48, 1)),
    ],
)
def test_validation_takes_64_clips_at_most_where_they_can_be_spread(part, spread, size):
    assert validation_size(part, spread) == size
    assert not size[0] % spread


def test_a_large_batch_is_not_validated_whole(finished, monkeypatch):
    monkeypatch.setattr(sys.modules["svdjax.training.stage_run"], "VALIDATION_CLIPS", 4)
    config, quiet = only_unet(finished, "large"), Console(quiet=True)
    clips = open_clips(config.data, quiet)
    taken = {}
    for devices in (1, 2, 8):
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        model = read(finished / "run/model.safetensors", mesh)
        taken[devices] = StageRun(config, config.unet, model, clips, mesh, quiet).validation
    sizes = {devices: [len(batch["video"]) for batch in batches] for devices, batches in taken.items()}
    assert sizes == {1: [4], 2: [4], 8: [8]}
    np.testing.assert_array_equal(taken[1][0]["video"], taken[8][0]["video"][:4])


def test_a_run_goes_on_with_fewer_devices_on_the_same_clips_to_the_same_losses(finished, monkeypatch):
    module = sys.modules["svdjax.training.run"]
    whole = only_unet(finished, "eight", steps=6, checkpoint_every=2)
    assert run(whole) == whole.out / "model.safetensors"
    fewer = only_unet(finished, "fewer", steps=6, checkpoint_every=2)
    for devices, step in ((8, 2), (4, 4), (2, None)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "make_mesh", lambda config, n=devices: make_mesh(config, jax.devices()[:n]))
            if step:
                interrupt_at(patch, "unet", step)
            assert run(fewer) == (Stopped("unet", step) if step else fewer.out / "model.safetensors")
    wanted, found = losses(whole.out / "unet"), losses(fewer.out / "unet")
    assert list(found) == list(wanted) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)
