"""The command line, as a module."""

import subprocess
import sys


def test_the_command_line_runs_as_a_module():
    command = [sys.executable, "-m", "svdjax.cli", "trian"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "error: svdjax trian: no such command; did you mean train?\n"
