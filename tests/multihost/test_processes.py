"""Real processes: two with four devices each say what one with eight says; none waits for ever for a dead one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from svdjax.conversion.source import load_model
from svdjax.models.params import flat_params

pytestmark = pytest.mark.long
STEPS = 8
CACHE_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
HEARTBEAT = 20
PATIENCE = 240  # seconds; a machine may be busy


def start(
    root: Path,
    name: str,
    *,
    processes: int,
    stage: str = "vae",
    steps: int = STEPS,
    fault: str = "",
    flags: str = "",
) -> list[subprocess.Popen]:
    """Start the processes of a run, with eight devices together; ``fault`` is the worker's."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
        "SVDJAX_HEARTBEAT": str(HEARTBEAT),
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        **CACHE_ALL,
    }
    command = [sys.executable, "-m", "tests.multihost.worker", str(root), name, stage, str(steps), str(processes)]
    command += [fault] if fault else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    if processes > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            command,
            env=env | {"JAX_PROCESS_ID": str(i)} if processes > 1 else env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(started: list[subprocess.Popen]) -> None:
    """Wait for processes that should succeed."""
    errors = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)


def losses(root: Path, name: str, stage: str = "vae") -> dict[int, float]:
    rows = map(json.loads, (root / name / stage / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of one process, ``one``, and one of two, ``two``, are finished."""
    root = tmp_path_factory.mktemp("processes")
    finish(start(root, "one", processes=1))
    finish(start(root, "two", processes=2))
    return root


def test_two_processes_say_what_one_says(root):
    one, two = losses(root, "one"), losses(root, "two")
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    assert two == pytest.approx(one, rel=1e-5)
    one, two = (flat_params(load_model(root / name / "vae/model.safetensors")) for name in ("one", "two"))
    # A bias of the keys moves all logits of a query alike: its gradient is rounding, which Adam makes large.
    moved = [path for path in one if not path.endswith("attn.k.bias")]
    assert all(jnp.allclose(one[path], two[path], atol=1e-6) for path in moved)


def test_what_two_processes_saved_one_goes_on_from(root):
    shutil.copytree(root / "two", root / "resumed")
    shutil.rmtree(root / f"resumed/vae/checkpoints/{STEPS}")
    for model in ("model.safetensors", "vae/model.safetensors"):
        (root / "resumed" / model).unlink()
    finish(start(root, "resumed", processes=1))
    assert losses(root, "resumed") == pytest.approx(losses(root, "two"), rel=1e-5)


def test_two_processes_train_a_unet_as_one_does(root):
    for name, processes in (("unet-one", 1), ("unet-two", 2)):
        finish(start(root, name, processes=processes, stage="unet", steps=2))
    one, two = (losses(root, name, "unet") for name in ("unet-one", "unet-two"))
    assert list(one) == [1, 2] and two == pytest.approx(one, rel=1e-5)
    # The samples are process 0's, on its own devices.
    with Image.open(root / "unet-one/samples.png") as of_one, Image.open(root / "unet-two/samples.png") as of_two:
        np.testing.assert_allclose(np.asarray(of_two), np.asarray(of_one), atol=2)


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_both_go_on(root):
    finish(start(root, "stopped", processes=2, fault="stop"))
    stopped = max(losses(root, "stopped"))
    assert 2 <= stopped < STEPS and not (root / "stopped/vae/model.safetensors").exists()
    run = json.loads((root / f"stopped/vae/checkpoints/{stopped}/run.json").read_text())
    assert run["step"] == run["position"]["next_batch"] == stopped
    finish(start(root, "stopped", processes=2))
    assert losses(root, "stopped") == losses(root, "two")
    again, once = ((root / name / "vae/model.safetensors").read_bytes() for name in ("stopped", "two"))
    assert again == once


def test_a_process_that_compiles_longer_than_gloo_waits_is_waited_for(root):
    finish(start(root, "late", processes=2, steps=2, fault="late"))
    assert list(losses(root, "late")) == [1, 2]


def test_when_one_process_dies_the_other_ends_and_both_go_on(root):
    steps = 30
    survivor, killed = processes = start(root, "killed", processes=2, steps=steps)
    deadline = time.monotonic() + PATIENCE
    while not (root / "killed/vae/checkpoints/2").exists():
        assert time.monotonic() < deadline and survivor.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    _, errors = survivor.communicate(timeout=6 * HEARTBEAT)
    assert survivor.returncode not in (0, None)
    # Ours if a collective operation fails first, JAX's if the heartbeat is missed first.
    assert "another process of this run is gone" in errors or "another task died" in errors
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (root / "killed/vae/model.safetensors").exists()
    processes = start(root, "killed", processes=2, steps=steps)
    finish(processes)
    assert list(losses(root, "killed")) == list(range(1, steps + 1))
