"""Checkpoints are whole or passed over by name, restore on any mesh, and survive full disks and kills."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from svdjax.errors import UserError
from svdjax.training import checkpoint, processes
from svdjax.training.checkpoint import Checkpoints, Keep, whole_checkpoints
from tests.resume.states import equal, make_state, shapes


def save_all(directory: Path, losses: dict[int, float | None], keep: Keep) -> set[int]:
    """Save these steps in order; the steps that are there in the end."""
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(make_state(step), position={"step": step}, config='{"a": 1}', loss=loss)
    return {int(path.name) for path in directory.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole checkpoints, of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    assert save_all(directory, {1: None, 2: None}, Keep()) == {1, 2}
    return directory


@pytest.fixture
def two(saved: Path, tmp_path: Path) -> Path:
    """A copy of them to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restored(directory: Path) -> int | None:
    """The step that a run would go on from."""
    with Checkpoints(directory) as checkpoints:
        if checkpoints.latest is None:
            return None
        state, position = checkpoints.restore(shapes())
    assert equal(state, make_state(checkpoints.latest)) and position == {"step": checkpoints.latest}
    return checkpoints.latest


def test_a_checkpoint_holds_the_state_the_position_and_the_configuration(saved):
    assert restored(saved) == 2
    run = json.loads((saved / "2/run.json").read_text())
    assert run == {"step": 2, "position": {"step": 2}, "loss": None, "config": {"a": 1}}


def test_saving_returns_before_the_checkpoint_is_there_and_the_state_may_be_changed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        state = make_state(1)
        checkpoints.save(state, position={"step": 1}, config="{}")
        assert checkpoints.latest is None
        for leaf in (*state.params.values(), *state.ema.values()):
            leaf.delete()  # what donation does
        checkpoints.wait()
        assert checkpoints.latest == 1
        checkpoints.save(make_state(1, scale=2.0), position={"step": 9}, config="{}")  # is there already
    assert restored(tmp_path) == 1


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(last=1, best=False), {6}),
        (Keep(last=2, best=False), {5, 6}),
        (Keep(last=1, every=2, best=False), {2, 4, 6}),
        (Keep(last=1), {3, 6}),
        (Keep(last=2, every=4), {3, 4, 5, 6}),
    ],
)
def test_what_is_kept(keep, expected):
    losses = {1: 0.5, 2: None, 3: 0.1, 4: 0.2, 5: None, 6: 0.3}
    there = {}
    for step, loss in losses.items():
        there[step] = loss
        there = {kept: there[kept] for kept in keep.kept(there)}
    assert set(there) == expected


def test_the_others_are_removed_and_the_best_is_known_after_a_restart(tmp_path):
    assert save_all(tmp_path, {1: 0.1, 2: 0.3, 3: float("nan")}, Keep(last=1)) == {1, 3}
    assert save_all(tmp_path, {4: 0.2}, Keep(last=1)) == {1, 4}
    assert save_all(tmp_path, {5: 0.05}, Keep(last=1)) == {5}


def test_keeping_nothing_is_refused():
    with pytest.raises(UserError, match=r"keep\.last 0: must be at least 1"):
        Keep(last=0)


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "bytes long instead of": lambda folder: _largest(folder).write_bytes(_largest(folder).read_bytes()[:-9]),
    "missing": lambda folder: _largest(folder).unlink(),
    "contents.json: missing": lambda folder: (folder / "contents.json").unlink(),
    "contents.json: unreadable": lambda folder: (folder / "contents.json").write_text("{"),
    "run.json: missing": lambda folder: (folder / "run.json").unlink(),
    "state/_METADATA: missing": lambda folder: shutil.rmtree(folder / "state"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_named(two, caplog, message):
    DAMAGES[message](two / "2")
    assert restored(two) == 1
    (warning,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert message in warning.getMessage() and f"{two}/2" in warning.getMessage()
    assert "\n" not in warning.getMessage() and (two / "2").exists()


def test_a_process_that_sees_the_newest_checkpoint_late_waits_for_it(two, monkeypatch):
    """As over NFS: process 0 says that 2 is the newest, and this one sees but 1 for a while."""
    turns = iter([None, None])

    def looked(directory):
        losses, damages = whole_checkpoints(directory)
        return ({1: None} if next(turns, "late") is None else losses), damages

    monkeypatch.setattr(checkpoint, "whole_checkpoints", looked)
    monkeypatch.setattr(processes, "of_main", lambda value, name: 2)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert restored(two) == 2 and not list(turns)
    shutil.rmtree(two / "2")
    monkeypatch.setattr(processes, "_SIGHT_S", 0)
    with pytest.raises(UserError, match=r"checkpoints/2: process 0 does not see it: .* no directory that all"):
        Checkpoints(two)


def test_without_a_whole_checkpoint_there_is_none(two):
    for step in ("1", "2"):
        DAMAGES["missing"](two / step)
    assert restored(two) is None
    with Checkpoints(two) as checkpoints, pytest.raises(UserError, match="holds no whole checkpoint"):
        checkpoints.restore(shapes())


def test_a_damaged_checkpoint_is_saved_anew_and_never_counts_as_one_of_the_last(two):
    DAMAGES["missing"](two / "2")
    assert save_all(two, {2: None}, Keep()) == {1, 2}
    assert restored(two) == 2
    DAMAGES["missing"](two / "2")
    (two / "1").rename(two / "0")
    assert save_all(two, {1: None}, Keep(last=1)) == {1, 2}  # 2, though damaged, is not removed for being there
    assert restored(two) == 1
    assert save_all(two, {3: None}, Keep(last=1)) >= {3}
    assert save_all(two, {4: None}, Keep(last=1)) == {4}


def test_a_state_that_is_not_finite_is_not_saved(two):
    state = make_state(3)
    state.params["b.bias"] = state.params["b.bias"].at[3].set(jnp.nan)
    with Checkpoints(two) as checkpoints:
        with pytest.raises(UserError, match=r"step 3: .* not finite and is not saved: .*go on from step 2"):
            checkpoints.save(state, position={}, config="{}")
        assert checkpoints.latest == 2
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]


def test_a_checkpoint_restores_on_other_meshes(tmp_path):
    for step, devices in enumerate((8, 4, 2), start=1):
        with Checkpoints(tmp_path, keep=Keep(last=3)) as checkpoints:
            checkpoints.save(make_state(step, devices), position={"step": step}, config="{}")
            checkpoints.wait()
            for other in (2, 4, 8):
                state, position = checkpoints.restore(shapes(other))
                assert position == {"step": step}
                assert equal(state, make_state(step, 8))
                assert state.params["a.kernel"].sharding == shapes(other).params["a.kernel"].sharding
                assert state.params["a.kernel"].addressable_shards[0].data.shape == (16 // other, 8)


def test_another_shape_is_refused_before_it_is_read(two):
    wrong = shapes()
    kernel = wrong.params["a.kernel"]
    wrong.params["a.kernel"] = type(kernel)((16, 4), kernel.dtype, sharding=kernel.sharding)
    message = r"checkpoints/2: .* configuration or version \(params.a.kernel float32\[16, 4\] or .*\[16, 8\]\)"
    with Checkpoints(two) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(wrong)


def test_a_checkpoint_from_before_a_field_was_there_is_refused(two):
    newer = shapes()
    newer.running["grad_norm"] = newer.running["loss"]
    message = r"or of another configuration or version \(running.grad_norm float32\[\]\): remove it, or choose"
    with Checkpoints(two) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(newer)


def child(code: str, *arguments: object) -> subprocess.Popen:
    """Run code that may use ``Checkpoints``, ``make_state`` and ``sys.argv``, in a process of its own."""
    imports = "from tests.resume.states import *; from svdjax.training.checkpoint import *; import sys, resource;"
    command = [sys.executable, "-c", imports + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FULL = """
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    checkpoints.save(make_state(3), position={}, config="{}")
    try:
        checkpoints.wait()
    except UserError as error:
        print(error)
    print(checkpoints.latest)
"""


@pytest.mark.parametrize("limit", [0, 500])
def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints_whole(two, limit):
    process = child(FULL, two, limit)
    out, errors = process.communicate(timeout=60)
    message, latest = out.splitlines()
    assert f"{two}/3: cannot be saved (File too large): make room" in message
    assert "run again to go on from step 2" in message and latest == "2"
    assert process.returncode == 0 and "svdjax" not in errors  # what tensorstore's threads say is not ours
    assert restored(two) == 2


KILLED = """
import os, signal, threading, time
seal = Checkpoints._seal
def stall(self):
    if sys.argv[2] == "sealed":
        seal(self)
    print("now", flush=True)
    time.sleep(60)
Checkpoints._seal = stall
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(make_state(3), position={}, config="{}")
"""


@pytest.mark.parametrize("moment", ["written", "sealed"])
def test_a_run_killed_while_it_saves_leaves_nothing_that_counts(two, caplog, moment):
    process = child(KILLED, two, moment)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sorted(path.name for path in two.iterdir()) == ["1", "2", "3.orbax-checkpoint-tmp"]
    assert restored(two) == 2
    assert not caplog.records
    assert save_all(two, {3: None}, Keep()) == {2, 3}
    assert restored(two) == 3
