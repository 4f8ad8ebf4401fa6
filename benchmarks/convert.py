"""Time and peak memory of converting a full-size checkpoint with random weights, beside the size of the result.

    python benchmarks/convert.py outputs/convert

builds an original SVD file in float16 (1.5 B parameter UNet, both autoencoders, CLIP; 4.8 GB) one tensor at a time,
then converts it in fresh processes. Needs 15 GB of disk; --sizes tiny shows in seconds that it works.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from svdjax.conversion.checkpoint import Checkpoint, Options, shapes_of
from svdjax.conversion.convert import convert
from svdjax.conversion.mapping import to_theirs
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.sgm import Layout, extra_keys, write_sgm
from svdjax.conversion.tensors import Tensor
from svdjax.conversion.vae import vae_table
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAE

TEXT = {
    "token_embedding.weight": (49408, 1024),
    "positional_embedding": (77, 1024),
    "text_projection": (1024, 1024),
}
TEXT |= {"ln_final.weight": (1024,), "ln_final.bias": (1024,), "logit_scale": ()}
RUNS = (("native.safetensors", "svdjax"), ("native", "svdjax"), ("folder", "diffusers"), ("sgm.safetensors", "sgm"))


def random_tensor(name, shape):
    """A float16 tensor that is drawn anew whenever it is loaded."""

    def load():
        rng = np.random.default_rng(abs(hash((name, shape))) % 2**32)
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)

    return Tensor(name, tuple(shape), np.dtype(np.float16), load)


def original(config):
    """Every tensor of the original file of this model."""
    params = {path: random_tensor(path, shape.shape) for path, shape in flat_params(shapes_of(config)).items()}
    vae = replace(config.vae, temporal_decoder=False, post_quant_conv=True)
    shapes = {path: random_tensor(path, shape.shape) for path, shape in flat_params(abstract(VAE, vae)).items()}
    image_vae = to_theirs(vae_table(vae, "sgm"), shapes, what="vae")
    layout, extras = Layout.of(config), {}
    for key in (key for group in extra_keys(config, layout) for key in group):
        inner = key.removeprefix(layout.encoder).removeprefix("first_stage_model.")
        text = key.removeprefix("conditioner.embedders.0.open_clip.model.")
        extras[key] = image_vae[inner] if inner in image_vae else random_tensor(key, TEXT[text])
    return write_sgm(Checkpoint(what="random", config=config, params=params, extras=extras))[0]


def convert_here(source, destination, to, dtype, options):
    """Convert in this process and print seconds and peak resident bytes."""
    start = time.perf_counter()
    convert(source, Path(destination), to=to, dtype=dtype, options=Options(**options), overwrite=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))


def size_of(path):
    """Bytes of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", choices=["svd", "tiny"], default="svd")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return convert_here(**json.loads(args.one))
    args.folder.mkdir(parents=True, exist_ok=True)
    source, config = args.folder / "original.safetensors", SVDConfig.svd()
    options = {}
    if args.sizes == "tiny":
        config, options = replace(config, unet=UNetConfig.tiny()), {"head_dim": 32}
        config = replace(config, scalars=tuple((name, 32) for name, _ in config.scalars))
    write_safetensors(source, original(config), {})
    print(f"source: {size_of(source) / 1e9:.2f} GB float16; peak: resident memory of the whole process\n")
    print(f"| to | dtype | seconds | result GB | peak GB | peak / result |\n|{'---|' * 6}")
    for name, to in RUNS:
        target = args.folder / name
        run = {"source": str(source), "destination": str(target), "to": to, "dtype": args.dtype, "options": options}
        command = [sys.executable, __file__, str(args.folder), "--one", json.dumps(run)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result, size = json.loads(output.splitlines()[-1]), size_of(target)
        print(f"| {to} {name} | {args.dtype} | {result['seconds']:.0f} | {size / 1e9:.2f} |", end=" ")
        print(f"{result['peak'] / 1e9:.2f} | {result['peak'] / size:.2f} |", flush=True)
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    source.unlink()


if __name__ == "__main__":
    main()
