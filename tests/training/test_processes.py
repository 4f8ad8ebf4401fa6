"""Several processes wait for one another where one may come late; with real ones, see tests/multihost."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from svdjax.errors import UserError
from svdjax.training import processes


def test_a_program_runs_when_all_processes_have_compiled_it(monkeypatch):
    happened = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", happened.append)

    @jax.jit
    def double(x):
        happened.append(f"traced for {x.size}")
        jax.debug.callback(lambda: happened.append("ran"))
        return 2 * x

    together = processes.compiled_together(double, "double")
    for size in (2, 2, 3):
        assert together(jnp.ones(size)).tolist() == [2.0] * size
        jax.effects_barrier()
    waited = ["double compiled", "ran"]
    assert happened == ["traced for 2", *waited, "ran", "traced for 3", *waited]


def test_each_barrier_has_a_key_of_its_own(monkeypatch):
    keys = []
    monkeypatch.setattr(processes, "get_barrier_sync_fn", lambda: lambda *, key, timeout_ms: keys.append(key))
    for name in ("saved", "saved", "finished"):
        processes.barrier(name)
    assert len(set(keys)) == 3 and keys[0].endswith("saved") and keys[2].endswith("finished")


def test_what_process_0_has_is_everybodys_once_all_are_there(monkeypatch):
    happened = []
    monkeypatch.setattr(processes, "barrier", happened.append)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda x: [happened.append(int(x)), np.int32(100)][1]
    )
    assert processes.of_main(50, "looked") == 100 and happened == ["looked", 50]


def test_what_process_0_has_written_is_waited_for(tmp_path, monkeypatch):
    path, turns = tmp_path / "late", iter(range(1, 100))

    def sleep(seconds):
        if next(turns) == 3:
            path.touch()

    monkeypatch.setattr(time, "sleep", sleep)
    processes.see(path)
    assert next(turns) == 4
    monkeypatch.setattr(processes, "_SIGHT_S", 0)
    with pytest.raises(UserError, match=r"never: process 0 does not see it: .* no directory that all"):
        processes.see(tmp_path / "never")


def test_a_number_of_a_process_that_is_none_is_said_in_one_line(monkeypatch):
    for name, value in {"COORDINATOR_ADDRESS": "host:1", "NUM_PROCESSES": "2", "PROCESS_ID": "first"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(UserError, match=r"--distributed: the processes did not find each other .*'first'"):
        processes.start()


def test_other_counts_than_those_of_process_0_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "of_main", lambda value, name: 7)
    processes.check_same_count(7, "training clips")
    with pytest.raises(UserError, match="process 0 has 6 training clips, process 0 has 7: make the data the same"):
        processes.check_same_count(6, "training clips")
