"""A run that is killed again and again: ``python -m tests.resume.kill_loop ROOT NAME [EVENT COUNT DELAY]``.

Runs the training ``NAME`` under ``ROOT`` in this process, and writes down what it is trained on. With the other
arguments, the process kills itself ``DELAY`` seconds after the ``COUNT``-th event: ``batch`` (one is taken) or
``save`` (one is started), so that it may die anywhere: in a step, while orbax writes, or between two steps.
"""

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from svdjax.training import RunConfig, run, stage_run
from svdjax.training.checkpoint import Checkpoints
from svdjax.training.stage_run import StageRun
from tests.training.tiny import tiny_run
from tests.weights import random_start


def killed_run(root: Path, name: str) -> RunConfig:
    """The run: two stages, a checkpoint every other step."""
    config = tiny_run(root, name=name, vae_steps=10, unet_steps=24)
    stages = {stage.name: dataclasses.replace(stage, validate_every=0) for stage in (config.vae, config.unet)}
    return dataclasses.replace(config, decoder=None, **stages)


class Fate:
    """Counts events, and kills this process after one of them."""

    def __init__(self, event: str = "", count: int = 0, delay: float = 0.0) -> None:
        self.event, self.left, self.delay = event, count, delay

    def happens(self, event: str) -> None:
        """One event more."""
        if event == self.event:
            self.left -= 1
            if not self.left:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def digest(batch: dict[str, Any]) -> str:
    """Of all arrays of a batch."""
    content = hashlib.sha256()
    for key in sorted(batch):
        content.update(key.encode() + np.asarray(batch[key]).tobytes())
    return content.hexdigest()


def live(config: RunConfig, fate: Fate) -> None:
    """Run, and append stage, number and digest of each batch to ``batches.jsonl``."""
    train, stream, save = StageRun.train, stage_run.stream, Checkpoints.save
    stage = ""

    def watched_train(self: StageRun, *arguments: Any) -> Any:
        nonlocal stage
        stage = self.stage.name
        return train(self, *arguments)

    def watched_stream(*arguments: Any, start: int, **options: Any) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(stream(*arguments, start=start, **options), start):
            with (config.out / "batches.jsonl").open("a") as file:
                file.write(json.dumps([stage, number, digest(batch)]) + "\n")
            fate.happens("batch")
            yield batch

    def watched_save(self: Checkpoints, *arguments: Any, **options: Any) -> None:
        fate.happens("save")
        save(self, *arguments, **options)

    with (
        mock.patch.object(StageRun, "train", watched_train),
        mock.patch.object(stage_run, "stream", watched_stream),
        mock.patch.object(Checkpoints, "save", watched_save),
        mock.patch.object(sys.modules["svdjax.training.run"], "drawn", random_start),
    ):
        run(config)


def run_to_the_end(root: Path, name: str, *, kills: int, seed: int = 0) -> list[tuple[str, int, float]]:
    """Run in processes of their own, the first ``kills`` of which are to die; where they did."""
    draw = random.Random(seed)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(root / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    deaths: list[tuple[str, int, float]] = []
    while True:
        event, most = draw.choice([("batch", 3), ("save", 2)])
        fate = (event, draw.randint(1, most), draw.uniform(0, 0.1))
        command = [sys.executable, "-m", "tests.resume.kill_loop", str(root), name]
        command += map(str, fate if len(deaths) < kills else ())
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        if ended.returncode == 0:
            return deaths
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        deaths.append(fate)


if __name__ == "__main__":
    where, name, *fate = sys.argv[1:]
    event, count, delay = fate or ("", "0", "0")
    live(killed_run(Path(where), name), Fate(event, int(count), float(delay)))
