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
