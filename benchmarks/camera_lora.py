"""Camera-motion LoRAs of the demo model, measured: does the camera move as the LoRA was trained to move it?

Command: python benchmarks/camera_lora.py [FOLDER]   (needs `pip install -e ".[measure]"`)

Trains a LoRA for each motion by `configs/demo_camera_lora.py` into FOLDER (runs/camera_lora; what is finished there
is not trained again), animates pictures of the built-in world that no training run draws, and names the camera's
motion in each sample with `svdjax.evaluation.camera`. Prints one JSON object: for each motion the share of samples
that show it, with the LoRA and without, and how often the samples with it show each motion.
"""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from svdjax.cli import guard
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.sprites import CAMERAS, World, draw_clips
from svdjax.evaluation.camera import global_motion
from svdjax.sampling.images import from_uint8
from svdjax.sampling.loras import apply_loras
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training import RunConfig, load_config, run

CONFIG = Path(__file__).parents[1] / "configs" / "demo_camera_lora.py"
MOTIONS = ("pan right", "zoom in", "static")
SAMPLES = 64
SEED = 2  # of the pictures and of the noise; training draws its clips with the seeds 0 and 1
BUCKET = 127.0


def config_of(motion: str, folder: Path, *, seed: int = 0, steps: int | None = None) -> RunConfig:
    """The demo's configuration for one of the built-in world's camera motions."""
    config = load_config([str(CONFIG)], default=CONFIG)
    folder = folder / motion.replace(" ", "_")
    world = dataclasses.replace(config.data.world, cameras=tuple(float(camera == motion) for camera in CAMERAS))
    data = dataclasses.replace(config.data, world=world, train=folder / "train", validation=folder / "validation")
    unet = dataclasses.replace(config.unet, steps=steps or config.unet.steps)
    return dataclasses.replace(config, out=folder / f"run_{seed}", seed=seed, data=data, unet=unet)


def cameras(loras: list[Path], images: np.ndarray) -> list[str]:
    """Name of the camera's motion in a sample of each picture."""
    model = load_model(
        apply_loras(open_checkpoint(DEMO_CHECKPOINT), [str(path) for path in loras]), dtype=np.float32
    )
    defaults = dataclasses.replace(model.config.defaults, motion_bucket=BUCKET)
    pipeline = Pipeline(model, Settings(defaults=defaults, seed=SEED, per_device=16))
    return [global_motion(video).camera for video in pipeline(images=images)]


def camera_lora(
    folder: Path,
    *,
    motions: tuple[str, ...] = MOTIONS,
    samples: int = SAMPLES,
    steps: int | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Train and measure.

    Args:
        folder: for data and runs. motions: some of the built-in world's cameras. samples: for each of them.
        steps: of training, if not the configuration's. seed: of training.
    """
    clips = draw_clips(World(frames=1), SEED, samples)
    images = from_uint8(np.stack([clip.frames[0] for clip in clips]))
    without = Counter(cameras([], images))
    figures: dict[str, object] = {"samples": samples, "seed": seed, "without": dict(without.most_common())}
    for motion in motions:
        found = Counter(cameras([run(config_of(motion, folder, seed=seed, steps=steps))], images))
        figures[motion] = {
            "with": found[motion] / samples,
            "without": without[motion] / samples,
            "found": dict(found.most_common()),
        }
    return figures


def main() -> None:
    """Print the figures."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path("runs/camera_lora")
    print(json.dumps(camera_lora(folder), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
