"""Camera-motion LoRAs of the demo model, measured: does the camera move as the LoRA was trained to move it?

Command: python -m benchmarks.camera_lora [--folder FOLDER | BASE PAN_RIGHT [STATIC [ZOOM_IN]]]  (".[measure]")

Animates pictures of the built-in world that no training run draws, and names the camera's motion in each sample
with `svdjax.evaluation.camera`. Prints one JSON object: for each motion the share of samples that show it, with the
LoRA and without, and how often the samples with it show each motion. A base checkpoint and LoRAs that are named are
measured as they are; else LoRAs are trained by `configs/demo_camera_lora.py` into FOLDER (what is finished there is
not trained again).
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, pipeline_of
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.sprites import CAMERAS, World, draw_clips
from svdjax.evaluation.camera import global_motion
from svdjax.sampling.images import from_uint8
from svdjax.sampling.loras import apply_loras
from svdjax.sampling.options import ASSETS
from svdjax.training import RunConfig

MOTIONS = ("pan right", "static", "zoom in")
BUNDLED = (ASSETS / "demo_camera.safetensors", ASSETS / "lora_pan_right.safetensors")
QUICK = MappingProxyType({"samples": 8, "steps": 12})
# As trained, a LoRA moves the camera in most samples; somewhat stronger, and asked for much motion, in nearly all.
SCALE, BUCKET = 1.5, 200.0


def config_of(motion: str, folder: Path, *, seed: int = 0, steps: int | None = None) -> RunConfig:
    """The demo's configuration for one of the built-in world's camera motions."""
    config = demo_run("demo_camera_lora", folder / motion.replace(" ", "_"), seed=seed, steps=steps)
    world = dataclasses.replace(config.data.world, cameras=tuple(float(camera == motion) for camera in CAMERAS))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, world=world))


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path, ...]:
    """The model of `configs/demo_camera.py`, and a LoRA of it for each motion."""
    base = trained(demo_run("demo_camera", folder / "base", seed=seed, steps=steps))
    configs = [config_of(motion, folder, seed=seed, steps=steps) for motion in MOTIONS]
    return base, *(trained(dataclasses.replace(config, init_from=str(base))) for config in configs)


def measure(base: Path, *loras: Path, samples: int = 64, **defaults: Any) -> dict[str, Any]:
    """Animate with each LoRA and without, and name what the camera does.

    Args:
        base: the checkpoint. loras: for the first ones of MOTIONS, in their order. samples: of each of them.
        defaults: see `pipeline_of`.
    """
    clips = draw_clips(World(frames=1), SEED, samples)
    images = from_uint8(np.stack([clip.frames[0] for clip in clips]))
    without = Counter(cameras(base, [], images, **defaults))
    motions = {}
    for motion, lora in zip(MOTIONS[: len(loras)], loras, strict=True):
        found = Counter(cameras(base, [lora], images, **defaults))
        motions[motion] = {
            "with": found[motion] / samples,
            "without": without[motion] / samples,
            "found": dict(found.most_common()),
        }
    about = {
        "base": str(base),
        "loras": [str(lora) for lora in loras],
        "samples": samples,
        "seed": SEED,
        "scale": SCALE,
        "motion_bucket": BUCKET,
        **defaults,
    }
    return {**about, "without": dict(without.most_common()), "motions": motions}


def cameras(base: Path, loras: list[Path], images: np.ndarray, **defaults: Any) -> list[str]:
    """Name of the camera's motion in a sample of each picture."""
    checkpoint = apply_loras(open_checkpoint(base), [f"{path}:{SCALE}" for path in loras])
    model = load_model(checkpoint, dtype=np.float32)
    videos = pipeline_of(model, motion_bucket=BUCKET, **defaults)(images=images)
    return [global_motion(video).camera for video in videos]


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the camera moves more often with a LoRA that moves it, and mostly rests with the one for resting.

    The base rests in most of its samples, too, so there is no more to be had.
    """
    return all(
        motion["with"] > (0.5 if name == "static" else motion["without"])
        for name, motion in found["motions"].items()
    )


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    ours, without = (
        ", ".join(f"{name} {motion[which]:.3f}" for name, motion in found["motions"].items())
        for which in ("with", "without")
    )
    return f"show the LoRA's motion: {ours}", f"without it: {without}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        help=f"a base checkpoint, and LoRAs for {', '.join(MOTIONS)}, or the first ones",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/camera_lora"))
    args = parser.parse_args()
    if not (len(args.files) == 0 or 2 <= len(args.files) <= 1 + len(MOTIONS)):
        parser.error(f"name a base checkpoint and 1 to {len(MOTIONS)} LoRAs, or nothing")
    print(json.dumps(measure(*(args.files or train(args.folder))), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
