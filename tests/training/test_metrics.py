"""Metrics on their way from the device to files and services; the status line, the profile, who writes."""

import json
import struct
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from svdjax.errors import UserError
from svdjax.models.params import abstract
from svdjax.models.svd import SVD
from svdjax.progress import step_bar
from svdjax.training import hooks, metrics
from svdjax.training.loop import Moment
from svdjax.training.metrics import MetricsLog, sigma_bands, summarise
from svdjax.training.optim import learning_rate
from svdjax.training.samples import write_grid
from svdjax.training.sinks import JsonLines, LogConfig, Printed, TensorBoard, Wandb, open_sinks
from svdjax.training.state import TrainState
from tests.training.tiny import MODEL, tiny_run

STATE = TrainState(step=jnp.int32(0), params={}, opt_state=(), ema={"weight": "averaged"}, running={})
LOSS = {"loss": 1.0, "steps_per_second": 2.0, "data_wait": 0.25}


class Kept:
    """A sink that keeps its rows."""

    def __init__(self):
        self.rows = []

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        pass


def moment(step, *, last=False, waited=0.0, **values):
    values = {"loss": 1.0, "grad_norm": 1.0} | values
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    return Moment(step=step, last=last, state=STATE, metrics=arrays, waited=waited)


def logged(tmp_path, moments, every=2, **options):
    stage = tiny_run(tmp_path).unet
    object.__setattr__(stage, "log_every", every)
    sink = Kept()
    log = MetricsLog(stage, [sink], **options)
    for each in moments:
        log(each)
    return sink.rows


def test_each_loss_falls_into_the_band_of_its_noise_level():
    loss, sigma = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), jnp.array([0.1, 0.2, 0.3, 700.0, 25.0])
    bands = {name: tuple(np.asarray(pair)) for name, pair in sigma_bands(loss, sigma).items()}
    assert bands == {
        "loss/sigma_0-0.2": (1, 1),
        "loss/sigma_0.2-1": (6, 2),
        "loss/sigma_1-5": (0, 0),
        "loss/sigma_5-25": (0, 0),
        "loss/sigma_25-inf": (24, 2),
    }


def test_scalars_are_averaged_and_pairs_summed_over_steps():
    rows = [
        {"loss": jnp.float32(1), "band": jnp.array([6.0, 2.0]), "empty": jnp.zeros(2)},
        {"loss": jnp.float32(3), "band": jnp.array([3.0, 1.0]), "empty": jnp.zeros(2)},
    ]
    assert summarise(rows) == {"loss": 2.0, "band": 3.0}


def test_only_log_steps_wait_for_the_device(tmp_path, monkeypatch):
    asked = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: asked.append(len(tree)) or device_get(tree))
    rows = logged(tmp_path, [moment(step, loss=step, last=step == 5) for step in range(1, 6)])
    assert asked == [2, 2, 1]
    assert [(step, row["loss"]) for step, row in rows] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    stage = tiny_run(tmp_path).unet
    assert rows[1][1]["rate"] == pytest.approx(float(learning_rate(stage.optim, stage.steps)(3)))


def test_a_checkpoint_is_judged_by_the_loss_of_its_own_step(tmp_path):
    log = MetricsLog(tiny_run(tmp_path).unet, [])
    log.write(4, {"val_loss": 0.5})
    log.write(6, {"loss": 1.0})
    assert log.measured("val_loss", 4) == 0.5
    assert log.measured("val_loss", 6) is None and log.measured("loss", 6) == 1.0
    assert log.measured("nothing", 6) is None


def test_a_stage_that_never_logs_keeps_nothing(tmp_path):
    assert logged(tmp_path, [moment(1), moment(2, last=True)], every=0) == []


def test_speed_and_utilisation_are_those_since_the_last_log_step(tmp_path, monkeypatch):
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e6)
    first, second = logged(
        tmp_path, [moment(2, waited=1.0), moment(4, waited=2.0)], flops_per_clip=1e6 * jax.device_count()
    )
    assert not {"steps_per_second", "mfu"} & set(first[1])
    speed = {name: second[1][name] for name in ("steps_per_second", "clips_per_second", "data_wait", "mfu")}
    # 2 steps of 8 clips in 4 seconds, of which 1 was spent waiting; a clip takes all devices one second.
    assert speed == {"steps_per_second": 0.5, "clips_per_second": 4.0, "data_wait": 0.25, "mfu": 4.0}


def test_the_fullest_device_says_how_much_memory_is_in_use(monkeypatch):
    stats = [{"bytes_in_use": 2**30 * i, "peak_bytes_in_use": 2**31} for i in (1, 3)]
    devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert metrics.device_memory() == {"memory_gib": 3.0, "memory_peak_gib": 2.0}
    devices.append(SimpleNamespace(memory_stats=lambda: None))
    assert metrics.device_memory() == {}


def test_a_row_that_a_kill_has_cut_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).write(1, {"loss": 2.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    JsonLines(path).write(2, {"loss": 1.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.0), (2, 1.0)]


def test_the_terminal_shows_no_details(tmp_path):
    console = Console(record=True, width=200)
    Printed(console, "unet", 40).write(20, {"loss": 0.5, "loss/sigma_0-0.2": 0.25})
    assert console.export_text().strip() == "unet 20/40  loss 0.5"


def events(directory):
    """The records of an event file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    (path,) = directory.glob("events.*")
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_gets_every_value_at_its_step(tmp_path):
    sink = TensorBoard(tmp_path, start=6)
    sink.write(7, {"loss": 0.5, "loss/sigma_0-0.2": 0.25})
    sink.close()
    written = list(events(tmp_path))
    values = {(event.step, value.tag): value.simple_value for event in written for value in event.summary.value}
    assert values == {(7, "loss"): 0.5, (7, "loss/sigma_0-0.2"): 0.25}
    # From a resumed step on, what was written before is void.
    assert 7 in {event.step for event in written if event.HasField("session_log")}


class FakeWandb(ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_wandb_is_asked_for_and_continues_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = LogConfig(tensorboard=False, wandb="videos")
    for step in (1, 2):
        (tmp_path / "unet").mkdir(exist_ok=True)
        _, sink = open_sinks(log, tmp_path / "unet", start=step - 1, config={"seed": 0})
        assert isinstance(sink, Wandb)
        sink.write(step, {"loss": 0.5})
        sink.close()
    first, again = fake.started
    assert first == again and first["project"] == "videos" and first["resume"] == "allow"
    assert (first["name"], first["config"]) == (f"{tmp_path.name}/unet", {"seed": 0})
    assert fake.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})] and fake.finished == 2


@pytest.mark.parametrize(
    ("log", "module", "extra"),
    [(LogConfig(wandb="videos"), "wandb", "wandb"), (LogConfig(tensorboard=True), "tensorboardX", "tensorboard")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, log, module, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module} is not installed: run `pip install 'svdjax\[{extra}\]'`"):
        open_sinks(log, tmp_path, start=0, config={})


def test_the_status_line_says_loss_speed_waiting_and_checkpoint(tmp_path):
    stage, saved = tiny_run(tmp_path, unet_steps=40).unet, iter([None, None, 20])
    bar = step_bar(Console(width=200))
    status = hooks.StatusLine(bar, stage, lambda: next(saved))
    status(moment(10))
    status.write(10, LOSS)
    assert bar.tasks[0].completed == 10
    assert bar.tasks[0].description == "unet · loss 1 · 2 steps/s · data wait 25.0% · not saved yet"
    status.write(20, {"val_loss": 3.0})
    assert "loss 1" in bar.tasks[0].description
    status.write(20, {"loss": 0.5})
    assert bar.tasks[0].description == "unet · loss 0.5 · saved at 20"


@pytest.mark.parametrize("process", [0, 1])
def test_one_process_writes(tmp_path, monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    config = tiny_run(tmp_path)
    console = Console(record=True, width=200)
    with hooks.watching(config, config.unet, console, saved=lambda: None) as watch:
        for hook in watch.hooks:
            hook(moment(1))
        watch.log.write(1, {"val_loss": 2.0})
    written = {path.name for path in (config.out / "unet").iterdir()}
    if process:
        assert written == set() and console.export_text() == ""
    else:
        assert written == {"metrics.jsonl", "hardware.json", "tensorboard"}
        hardware = json.loads((config.out / "unet/hardware.json").read_text())
        assert (hardware["device"], hardware["devices"], hardware["jax"]) == ("cpu", 8, jax.__version__)
        assert "val_loss 2" in console.export_text()


@pytest.mark.parametrize(
    ("asked", "steps", "traced"),
    [
        ((3, 4), range(1, 7), ["start 2", "stop 4"]),
        ((2, 3), range(1, 7), ["start 1", "stop 3"]),
        ((3, 9), range(1, 7), ["start 2", "stop 6"]),  # the stage ends first
        ((3, 5), range(4, 7), ["start 4", "stop 5"]),  # resumed in between
        ((3, 5), range(5, 7), []),
        ((3, 5), range(1, 4), ["start 2", "stop 3"]),  # interrupted
        (None, range(1, 7), []),
    ],
)
def test_the_profile_covers_the_steps_asked_for(tmp_path, monkeypatch, asked, steps, traced):
    now, seen = 0, []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: seen.append(f"start {now}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(f"stop {now}"))
    with hooks.profile(asked, tmp_path) as hook:
        for now in steps:
            hook(moment(now, last=now == 6))
    assert seen == traced


def test_the_profile_is_a_trace_of_the_device(tmp_path):
    with hooks.profile((2, 2), tmp_path) as hook:
        for step in (1, 2):
            hook(moment(step))
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(1, 3), (5, 4)])
def test_an_impossible_profile_is_refused(tmp_path, steps):
    config = tiny_run(tmp_path)
    with pytest.raises(UserError, match=f"--profile {steps[0]} {steps[1]}: give the first and the last step"):
        type(config)(**{**vars(config), "profile": steps})


def test_validation_averages_over_its_batches_with_the_averaged_weights(tmp_path):
    def loss(ema, frozen, batch, key):
        assert ema == {"weight": "averaged"}
        return batch["x"], {"loss/sigma_0-0.2": jnp.full(2, batch["x"]), "noise": jax.random.normal(key)}

    sink, stage = Kept(), tiny_run(tmp_path).unet
    batches = [{"x": jnp.float32(1)}, {"x": jnp.float32(3)}]
    validate = hooks.validate(loss, lambda state: state.ema, {}, lambda: batches, MetricsLog(stage, [sink]))
    validate(moment(5))
    validate(moment(6))
    (_, first), (_, second) = sink.rows
    assert first == second and first["val_loss"] == 2.0 and first["val_loss/sigma_0-0.2"] == 1.0


def test_samples_are_made_with_the_averaged_weights(tmp_path):
    written = []
    hooks.sample_grid(lambda state: state.ema, lambda *made: written.append(made), tmp_path)(moment(30))
    assert written == [({"weight": "averaged"}, tmp_path / "step_0000030")]


@contextmanager
def interrupted_saving():
    with mock.patch("svdjax.training.samples.Image.fromarray") as picture:
        picture.return_value.save.side_effect = KeyboardInterrupt
        yield


def test_a_grid_appears_whole_or_not_at_all(tmp_path):
    clips = np.zeros((5, 2, 16, 16, 3), np.uint8)
    held_out = {"video": np.zeros((1, 2, 16, 16, 3), np.uint8)}
    with mock.patch("svdjax.training.samples.Pipeline.videos", lambda *args: iter(clips)):
        model = abstract(SVD, MODEL)
        with interrupted_saving(), pytest.raises(KeyboardInterrupt):
            write_grid(model, held_out, tmp_path / "grid")
        assert list(tmp_path.iterdir()) == []
        write_grid(model, held_out, tmp_path / "grid")
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "grid.mp4"}
