"""Where a task runs: in this process, in several on this machine, or on a cluster through Apache Beam.

All three call the same function for each video. Only names and paths travel; clips and rows are written by whoever
makes them.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait as wait_for

from svdjax.curation.sources import SourceVideo
from svdjax.errors import require

Run = Callable[[SourceVideo], str]
_AHEAD = 2  # videos given out for each worker
_SPAWN = multiprocessing.get_context("spawn")  # JAX and OpenCV have threads, which a fork would break


def in_this_process(task: Run, videos: Sequence[SourceVideo]) -> Iterator[str]:
    """One video after the other; gives the name of each that is done."""
    return (task(video) for video in videos)


def on_this_machine(
    task: Run, videos: Sequence[SourceVideo], *, workers: int, crashed: Callable[[SourceVideo], None]
) -> Iterator[str]:
    """Videos side by side in ``workers`` processes; gives the name of each that is done.

    Args:
        crashed: is called with a video at which a process died, such as one that crashes its decoder.
    """
    todo = list(reversed(videos))
    while todo:
        suspects: list[SourceVideo] = []
        yield from _until_crash(task, todo, workers, suspects)
        for video in suspects:  # one of these: each for itself
            alone = [video]
            yield from _until_crash(task, alone, 1, died := [])
            if died:
                crashed(video)
                yield video.name


def _until_crash(task: Run, todo: list[SourceVideo], workers: int, suspects: list[SourceVideo]) -> Iterator[str]:
    """Take videos off the end of ``todo``; if a process dies, those that were given out become suspects."""
    running: dict[Future[str], SourceVideo] = {}
    with _pool(workers) as pool:
        while todo or running:
            try:
                while todo and len(running) < _AHEAD * workers:
                    future = pool.submit(task, todo[-1])
                    running[future] = todo.pop()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = future.result()
                    del running[future]
                    yield name
            except BrokenProcessPool:
                suspects += running.values()
                return


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end with the block, whatever they are doing."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=_SPAWN, initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # what it wrote is complete, or hidden and removed by the next run
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """In each process: one thread for OpenCV, no part in Ctrl-C, and an end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    require("cv2", "curate").setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=partial(_end_with, parent.sentinel), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    signal.raise_signal(signal.SIGKILL)


def on_beam(task: Run, videos: Sequence[SourceVideo], *, options: Sequence[str]) -> Iterator[str]:
    """All videos as one Beam pipeline; gives their names at its end.

    Args:
        options: Beam's own, such as ``--runner=FlinkRunner``; without any, Beam's in-memory runner with one worker.

    Raises:
        UserError: apache-beam is not installed.
    """
    beam = require("apache_beam", "beam")
    pipeline_options = require("apache_beam.options.pipeline_options", "beam").PipelineOptions(list(options))
    portable = require("apache_beam.runners.portability.fn_api_runner", "beam")
    given = any(option.startswith("--runner") for option in options)
    # Beam's default for local runs looks for a program to download.
    runner = None if given else portable.FnApiRunner()
    with beam.Pipeline(runner=runner, options=pipeline_options) as pipeline:
        named = pipeline | "Videos" >> beam.Create(list(videos))
        # Without it, a runner may hand all videos to one worker.
        _ = named | "Spread" >> beam.Reshuffle() | "Curate" >> beam.Map(task)
    return (video.name for video in videos)
