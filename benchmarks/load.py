"""Seconds from files to ready weights for a full-size checkpoint, beside diffusers, each in a process of its own.

Command: python -m benchmarks.load [--folder DIR]

Needs `pip install -e ".[test]"`, 5 GB of disk and 15 GB of memory. Writes a full-size diffusers folder with random
float16 weights (kept, so that a second run measures the same files), then loads it with our ``load_model`` and
with ``StableVideoDiffusionPipeline.from_pretrained``, in turns. The first loads may come from disk, the others
from the page cache; every one is printed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from svdjax.conversion.diffusers import write_diffusers
from svdjax.models.svd import SVDConfig
from tests.weights import random_checkpoint

OURS = """
import resource, time
start = time.perf_counter()
import jax.numpy as jnp
from svdjax.conversion.source import load_model
imported = time.perf_counter()
model = load_model({folder!r}, dtype=jnp.float16)
print(f"{{time.perf_counter() - imported:.1f}} {{imported - start:.1f}} "
      f"{{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}}")
"""
THEIRS = """
import resource, time
start = time.perf_counter()
import torch
from diffusers import StableVideoDiffusionPipeline
imported = time.perf_counter()
pipeline = StableVideoDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=torch.float16)
for module in (pipeline.unet, pipeline.vae, pipeline.image_encoder):  # read every page, as the first step would
    for parameter in module.parameters():
        parameter.sum()
print(f"{{time.perf_counter() - imported:.1f}} {{imported - start:.1f}} "
      f"{{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}}")
"""


def main() -> None:
    """Write the checkpoint if it is not there, then load it in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/full_size_svd"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not args.folder.exists():
        checkpoint = random_checkpoint(SVDConfig.svd(), seed=0, dtype=np.float16)
        args.folder.parent.mkdir(parents=True, exist_ok=True)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("writing", total=checkpoint.nbytes)
            write_diffusers(checkpoint, args.folder, lambda count: progress.advance(task, count))
    for _ in range(args.repeats):
        for name, code in (("svdjax", OURS), ("diffusers", THEIRS)):
            command = [sys.executable, "-c", code.format(folder=str(args.folder))]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            load, imports, peak = out.split()[-3:]
            print(f"{name:10} load {load} s, imports {imports} s, peak memory {peak} GiB", flush=True)


if __name__ == "__main__":
    main()
