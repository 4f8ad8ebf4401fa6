"""A process of a tiny run, alone or one of several: ``worker.py ROOT NAME STAGE STEPS PROCESSES [FAULT]``.

A fault befalls the second process alone: ``late`` has it take 40 seconds longer to trace its step, and ``stop``
sends it SIGTERM in its second step.
"""

import dataclasses
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from svdjax import cli
from svdjax.training import processes, run
from svdjax.training.config import RunConfig
from svdjax.training.metrics import MetricsLog
from svdjax.training.stage import Stage
from tests.training.tiny import tiny_run
from tests.weights import random_start


def config(root: Path, name: str, stage: str, steps: int) -> RunConfig:
    """One stage, with batches that 8 devices divide."""
    tiny = tiny_run(root, name=name)
    # Validating compiles the loss once more, which takes long for the UNet.
    validate = {"vae": 2, "unet": 0}[stage]
    stages = dict.fromkeys(("vae", "decoder", "unet"))
    stages[stage] = dataclasses.replace(getattr(tiny, stage), steps=steps, validate_every=validate)
    return dataclasses.replace(tiny, **stages)


def late(stage: Stage) -> Any:
    """Patches the stage's loss to be slow while it is traced for the first time, which is before it is compiled."""
    loss, seconds = type(stage).loss, iter([40])

    def slow(*arguments: Any) -> Any:
        time.sleep(next(seconds, 0))
        return loss(*arguments)

    return mock.patch.object(type(stage), "loss", slow)


def stop(_: Stage) -> Any:
    """Patches the log to send this process SIGTERM in step 2, and to give the news time to get about from then."""
    write = MetricsLog.write

    def signalling(log: MetricsLog, step: int, values: Any) -> None:
        write(log, step, values)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        if step >= 2:
            time.sleep(0.5)

    return mock.patch.object(MetricsLog, "write", signalling)


FAULTS = {"late": late, "stop": stop}


def main(root: str, name: str, stage: str, steps: str, count: str, fault: str = "") -> int:
    """As ``svdjax train`` does, but for what takes long: compiling the initialisers."""
    if count != "1":
        processes.start()
    tiny = config(Path(root), name, stage, int(steps))
    module = sys.modules["svdjax.training.run"]
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(module, "drawn", random_start))
        if fault and jax.process_index() == 1:
            patches.enter_context(FAULTS[fault](getattr(tiny, stage)))
        with processes.explain_loss():
            run(tiny)
    return 0


if __name__ == "__main__":
    with mock.patch.object(sys.modules["svdjax.training.run"], "main", lambda argv: main(*argv)):
        cli.main(["train", *sys.argv[1:]])
