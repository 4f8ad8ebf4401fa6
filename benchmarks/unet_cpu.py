"""UNet, VAE decoder and CLIP tower on the CPU, beside PyTorch, in one process with the same random weights.

Command: python -m benchmarks.unet_cpu [--repeats 5]

Needs `pip install -e ".[test]"` and a machine with nothing else to do. The two take turns, so that a change of the
machine's speed meets both; a row gives the median time of each, their ratio (below 1: svdjax is faster), the
largest relative difference of the outputs, the seconds that compiling took, and by how much the process grew at its
peak during a call. GFLOP/s are the operations that XLA counts in the compiled program (the bodies of loops once, so
too few where attention is blocked) over the median time.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import psutil
import torch
from flax import nnx

from benchmarks import networks
from benchmarks.timing import seconds

THREADS = 2
CASES = {
    "CLIP 4x224x224": lambda: networks.clip(4, seed=4),
    "VAE decode 6x16x24": lambda: networks.decoder(6, 16, 24, seed=2),
    "UNet 2x8x24x24": lambda: networks.unet(8, 24, 24, seed=0),
    "VAE decode 8x24x40": lambda: networks.decoder(8, 24, 40, seed=3),
    "UNet 2x14x24x40": lambda: networks.unet(14, 24, 40, seed=1),
}


@dataclass
class Peak:
    """By how many bytes the process grew at most while the block ran."""

    grown: int = 0

    def __enter__(self) -> "Peak":
        process, self._stop = psutil.Process(), threading.Event()
        before = process.memory_info().rss

        def watch() -> None:
            while not self._stop.wait(0.005):
                self.grown = max(self.grown, process.memory_info().rss - before)

        self._thread = threading.Thread(target=watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(theirs: Callable, ours: Callable, inputs: tuple, repeats: int) -> dict[str, float]:
    """Compile ours, then let both take turns."""
    graph, state = nnx.split(ours.__self__ if hasattr(ours, "__self__") else ours)
    method = ours.__name__ if hasattr(ours, "__self__") else "__call__"
    start = time.perf_counter()
    lowered = jax.jit(lambda state, *args: getattr(nnx.merge(graph, state), method)(*args)).lower(state, *inputs)
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start

    def run() -> jax.Array:
        return jax.block_until_ready(compiled(state, *inputs))

    reference, result = theirs(), np.asarray(run())
    with Peak() as torch_peak:
        theirs()
    with Peak() as jax_peak:
        run()
    pairs = [(seconds(theirs), seconds(run)) for _ in range(repeats)]
    torch_time, jax_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "torch s": torch_time,
        "svdjax s": jax_time,
        "ratio": statistics.median(b / a for a, b in pairs),
        "difference": float(np.abs(result - reference).max() / np.abs(reference).max()),
        "compile s": compile_seconds,
        "torch MiB": torch_peak.grown / 2**20,
        "svdjax MiB": jax_peak.grown / 2**20,
        "GFLOP/s": compiled.cost_analysis()["flops"] / jax_time / 1e9,
    }


def main() -> None:
    """Print one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(THREADS)
    print(f"float32, {THREADS} threads, median of {repeats}; jax {jax.__version__}, torch {torch.__version__}")
    with torch.inference_mode():
        for name, make in CASES.items():
            row = measure(*make(), repeats)
            print(f"{name:20}", *[f"{column} {value:.3g}" for column, value in row.items()], sep="  ", flush=True)


if __name__ == "__main__":
    main()
