"""SVD on a GPU at full size, beside diffusers: a video of a picture, and a step of finetuning.

Command: python -m benchmarks.gpu [--only sampling] [--folder DIR]

Needs `pip install -e ".[cuda]"`, PyTorch for CUDA, diffusers, and 5 GB of disk. Writes a full-size diffusers folder
with random float16 weights (kept, so that a second run measures the same files). Each measurement is a process of
its own on the first GPU.

Sampling makes SVD-XT's video of a picture twice: by the second, the first shows what compiling takes. diffusers
decodes 8 frames at a time, as its page says for GPUs. Training takes steps of `configs/finetune_svd.py` on one clip
of noise; PyTorch's step has the same parts, see `benchmarks.gpu_torch`. Memory is the allocator's peak. FLOPs are
those of `svdjax.training.flops`; the floor is them over the GPU's peak by its data sheet.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.timing import seconds
from svdjax.conversion.checkpoint import Checkpoint, shapes_of
from svdjax.conversion.diffusers import write_diffusers
from svdjax.conversion.source import load_model
from svdjax.conversion.tensors import Tensor
from svdjax.models.params import cast_floating, flat_params
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.sampling.images import read_image
from svdjax.sampling.pipeline import Pipeline, Settings, Timings
from svdjax.training.config import RunConfig, load_config
from svdjax.training.flops import clip_shapes, peak_flops, sampling_flops, stage_flops
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.model import read
from svdjax.training.optim import make_optimizer
from svdjax.training.sharding import BatchLayout, on_mesh, state_shardings
from svdjax.training.state import new_state
from svdjax.training.step import make_train_step
from svdjax.typing import ndarray

PHOTO = Path("svdjax/assets/demo_photo.png")
RECIPE = Path("configs/finetune_svd.py")
XT: SamplingDefaults = dataclasses.replace(SVDConfig.svd_xt().defaults, steps=25)
TIMED_STEPS = 5
Result = dict[str, float]


def noise_clip(frames: int, height: int, width: int) -> ndarray:
    """One clip of noise: ``uint8 [1, frames, height, width, 3]``."""
    return np.random.default_rng(0).integers(256, size=(1, frames, height, width, 3), dtype=np.uint8)


def recipe() -> RunConfig:
    """The finetuning of which steps are taken, with one clip at a time."""
    return load_config([str(RECIPE), "--unet.batch", "1", "--out", "outputs/gpu"], default=RECIPE)


def sampling(folder: Path) -> Result:
    """Make SVD-XT's video twice."""
    start = time.perf_counter()
    model = jax.block_until_ready(load_model(folder, dtype=jnp.bfloat16))
    load = time.perf_counter() - start
    pipeline = Pipeline(model, Settings(defaults=XT))
    picture = read_image(PHOTO, XT.height, XT.width)[None]
    first = seconds(lambda: pipeline(images=picture))
    pipeline.timings = Timings()
    second = seconds(lambda: pipeline(images=picture))
    stages, flops = pipeline.timings.seconds, sampling_flops(model.config, pipeline.settings)
    return {
        "load s": load,
        "first video s": first,
        "video s": second,
        "a step s": stages["sample"] / XT.steps,
        "decode s": stages["decode"],
        "floor of a step s": flops["sample"] / XT.steps / _peak(),
        "floor of decode s": flops["decode"] / _peak(),
        "peak GiB": _peak_memory(),
    }


def training(folder: Path) -> Result:
    """Compile a finetuning step and take some."""
    config = recipe()
    stage, mesh = config.unet, make_mesh(MeshConfig())
    model = read(folder, mesh)
    trained = {path: value for path, value in model.params.items() if stage.trains(path)}
    frozen = {path: value for path, value in model.params.items() if path not in trained}
    frozen = jax.jit(cast_floating, static_argnums=1)(frozen, jnp.dtype(stage.compute_dtype))
    optimizer = make_optimizer(stage.optim, stage.steps)
    start = partial(new_state, optimizer=optimizer)
    shardings = state_shardings(jax.eval_shape(start, trained), optimizer, mesh, offload=stage.offload)
    state = jax.jit(start, out_shardings=shardings, donate_argnums=0)(trained)
    clip = {"video": noise_clip(*config.data.sampling.shapes[0]), "fps": np.ones(1, np.float32)}
    clip = stage.prepare(config.model, clip | {"motion_bucket": np.ones(1, np.float32)})
    batch = BatchLayout(mesh, stage.batch).place(clip)
    step = on_mesh(mesh, make_train_step(stage, stage.shapes(config.model), optimizer, config.seed, shardings))

    def take() -> None:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        if not np.isfinite(float(metrics["loss"])):
            raise FloatingPointError(f"the loss is {metrics['loss']}")

    first, *others = [seconds(take) for _ in range(1 + TIMED_STEPS)]
    flops = stage_flops(stage, config.model, clip_shapes(clip)).model
    return {
        "first step s": first,
        "a step s": statistics.median(others),
        "floor of a step s": flops / _peak(),
        "peak GiB": _peak_memory(),
    }


def _peak() -> float:
    return peak_flops(jax.devices()[0].device_kind) or float("nan")


def _peak_memory() -> float:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30


def write_random(folder: Path) -> None:
    """A full-size diffusers folder of random float16 weights; numbers repeat, for drawing billions takes long."""
    pool = np.random.default_rng(0).standard_normal(2**20 + 7, np.float32)

    def draw(path: str, shape: tuple[int, ...]) -> ndarray:
        noise = np.resize(pool, shape)
        if len(shape) >= 2:
            return (noise / np.sqrt(np.prod(shape[:-1]))).astype(np.float16)
        return (path.endswith("scale") + 0.1 * noise).astype(np.float16)

    shapes = {path: tuple(x.shape) for path, x in flat_params(shapes_of(SVDConfig.svd_xt())).items()}
    params = {
        path: Tensor(path, shape, np.dtype(np.float16), partial(draw, path, shape))
        for path, shape in shapes.items()
    }
    checkpoint = Checkpoint(what="random weights", config=SVDConfig.svd_xt(), params=params)
    write_diffusers(checkpoint, folder, lambda count: None)


def measured(what: str, by: str, folder: Path) -> Result:
    """What a process of its own measures."""
    module = "benchmarks.gpu" if by == "svdjax" else "benchmarks.gpu_torch"
    # Memory is taken as it is needed, so that its peak says something, and up to nearly all.
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    command = [sys.executable, "-m", module, "--only", what, "--folder", str(folder)]
    command += ["--one"] * (by == "svdjax")
    done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} by {by} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print each measurement as it comes, then a table of each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["sampling", "training"], default=["sampling", "training"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/full_size_svd_xt"))
    parser.add_argument("--one", action="store_true", help="measure svdjax in this process")
    args = parser.parse_args()
    if args.one:
        if jax.default_backend() != "gpu":
            raise SystemExit("JAX finds no GPU here")
        print(json.dumps({"sampling": sampling, "training": training}[args.only[0]](args.folder)))
        return
    if not args.folder.exists():
        args.folder.parent.mkdir(parents=True, exist_ok=True)
        write_random(args.folder)
    for what in args.only:
        rows = {}
        for by in ("torch", "svdjax"):
            rows[by] = measured(what, by, args.folder)
            print(what, by, json.dumps(rows[by]), flush=True)
        table = Table(what, "torch", "svdjax", "ratio")
        for name, value in rows["svdjax"].items():
            peer = rows["torch"].get(name)
            table.add_row(name, *["" if x is None else f"{x:.3g}" for x in (peer, value, peer and value / peer)])
        Console().print(table)


if __name__ == "__main__":
    main()
