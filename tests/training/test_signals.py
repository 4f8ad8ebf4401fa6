"""A run is asked to stop by a signal, once; the second Ctrl-C is final."""

import os
import signal
import subprocess
import sys

import pytest

from svdjax.training.loop import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_its_handler_is_put_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop(1)
        os.kill(os.getpid(), number)
        assert stop(2) and stop(3)
    assert signal.getsignal(number) is before


def test_the_second_interrupt_kills():
    code = (
        "import os, signal\nfrom svdjax.training.loop import stop_on_signals\n"
        "with stop_on_signals():\n    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n        print('alive')"
    )
    ended = subprocess.run([sys.executable, "-uc", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "alive\n")


def test_what_processes_agreed_on_once_holds_in_the_next_stage(monkeypatch):
    """JAX says it at one call only, which may be that of a stage's last step."""
    asked = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    agreed = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(agreed, lambda call: asked.append(call) or call == 2)
    with stop_on_signals() as stop:
        assert [stop(step) for step in (1, 2, 1, 2)] == [False, True, True, True]
    assert asked == [1, 2]
