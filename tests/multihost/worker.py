"""A process of a tiny run, alone or one of several: ``worker.py ROOT NAME STEPS ONE_OF_SEVERAL``."""

import dataclasses
import sys
from pathlib import Path
from unittest import mock

from svdjax import cli
from svdjax.training import processes, run
from svdjax.training.config import RunConfig
from tests.training.tiny import tiny_run
from tests.weights import random_start


def config(root: Path, name: str, steps: int) -> RunConfig:
    """One stage, with batches that 8 devices divide."""
    tiny = tiny_run(root, name=name, vae_steps=steps)
    return dataclasses.replace(tiny, vae=dataclasses.replace(tiny.vae, batch=8), decoder=None, unet=None)


def main(root: str, name: str, steps: str, several: str) -> int:
    """As ``svdjax train`` does; the initial weights come from NumPy, for compiling the initialisers takes long."""
    if several == "yes":
        processes.start()
    drawn = mock.patch.object(sys.modules["svdjax.training.run"], "drawn", random_start)
    with drawn, processes.explain_loss():
        run(config(Path(root), name, int(steps)))
    return 0


if __name__ == "__main__":
    with mock.patch.object(sys.modules["svdjax.training.run"], "main", lambda argv: main(*argv)):
        cli.main(["train", *sys.argv[1:]])
