"""The demo checkpoint, measured: does the motion bucket control motion, is the picture kept, how good is the VAE?

Command: python benchmarks/demo.py [CHECKPOINT]   (needs `pip install -e ".[measure]"`)

Pictures come from clips of the built-in world that no training run draws (seed 2). Prints one JSON object:
bucket_flow_correlation: Spearman's rank correlation of requested bucket and Farneback flow over the samples;
mean_flow: pixels per frame for each fifth of the buckets, lowest first;
first_frame_psnr: of frame 0 against the input picture, in dB; vae_psnr: of held-out clips, encoded and decoded.
"""

import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.motion import flow_magnitude
from svdjax.data.sprites import World, draw_clips
from svdjax.models.svd import SVD
from svdjax.sampling.images import from_uint8
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training.vae_stage import encode_video

SAMPLES = 64
RECONSTRUCTED = 16
SEED = 2  # of clips and of noise; training draws its clips with the seeds 0 and 1
AT_ONCE = 16


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each item, values spanning 2; infinite where they are equal."""
    axes = tuple(range(1, a.ndim))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(4 / np.mean((a - b) ** 2, axis=axes))


def pipeline_of(
    model: SVD,
    *,
    seed: int = SEED,
    per_device: int = AT_ONCE,
    windows: int = 1,
    overlap: int = 1,
    **defaults: Any,
) -> Pipeline:
    """A model ready to sample as a benchmark does.

    Args:
        model, seed, per_device, windows, overlap: see `Settings`.
        defaults: what to take in place of the checkpoint's own defaults, such as ``steps`` of the sampler.
    """
    defaults = dataclasses.replace(model.config.defaults, **defaults)
    return Pipeline(
        model, Settings(defaults=defaults, seed=seed, per_device=per_device, windows=windows, overlap=overlap)
    )


def filled_in(model: SVD, video: np.ndarray, known: np.ndarray, seeds: int, **defaults: Any) -> list[np.ndarray]:
    """Clips [b t h w 3] in [-1, 1] of which a model of known frames made the others, by each of several seeds.

    Args:
        known: which frames are given, [t]. defaults: see `pipeline_of`.
    """
    given = shown(video, known)
    samplers = (pipeline_of(model, seed=seed, frames=video.shape[1], **defaults) for seed in range(seeds))
    return [from_uint8(sampler(**given)) for sampler in samplers]


def shown(video: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """What a model of known frames is given of clips [b t h w 3]; ``known`` is [t] or [b t]."""
    known = np.broadcast_to(known, video.shape[:2])
    return {"video": np.where(known[..., None, None, None], video, 0).astype(np.float32), "known": known}


def reconstruct(model: SVD, video: np.ndarray) -> np.ndarray:
    """Encode and decode clips."""
    graph, state = nnx.split(model.vae)
    parts = [_reconstruct(graph, state, video[at : at + AT_ONCE]) for at in range(0, len(video), AT_ONCE)]
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def _reconstruct(graph: nnx.GraphDef, state: nnx.State, video: np.ndarray) -> jax.Array:
    vae = nnx.merge(graph, state)
    return vae.decode(encode_video(vae, video))


def measure(checkpoint: Path) -> dict[str, object]:
    """Sample, and compare what was asked for with what came out."""
    model = load_model(checkpoint, dtype=np.float32)
    clips = np.stack([clip.frames for clip in draw_clips(World(), SEED, SAMPLES)])
    images = from_uint8(clips[:, 0])
    buckets = np.random.default_rng(SEED).permutation(np.linspace(1, 255, SAMPLES)).astype(np.float32)
    start = time.perf_counter()
    pipeline = pipeline_of(model)
    request = dataclasses.replace(pipeline.request(images=images), motion_bucket=buckets)
    videos = np.stack(list(pipeline.videos(request)))
    flow = np.array([flow_magnitude(video) for video in videos])
    video = from_uint8(clips[:RECONSTRUCTED])
    return {
        "checkpoint": str(checkpoint),
        "samples": SAMPLES,
        "bucket_flow_correlation": round(float(spearmanr(buckets, flow).statistic), 3),
        "mean_flow": [round(float(part.mean()), 2) for part in np.array_split(flow[np.argsort(buckets)], 5)],
        "true_flow": round(float(np.mean([flow_magnitude(clip) for clip in clips])), 2),
        "first_frame_psnr": round(float(psnr(from_uint8(videos[:, 0]), images).mean()), 2),
        "vae_psnr": round(float(psnr(reconstruct(model, video), video).mean()), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Print the figures of a checkpoint, the bundled one by default."""
    bundled = Path(__file__).parents[1] / "svdjax" / "assets" / "demo.safetensors"
    print(json.dumps(measure(Path(sys.argv[1]) if sys.argv[1:] else bundled), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
