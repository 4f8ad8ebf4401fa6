"""Camera-motion LoRAs of the demo model, measured: does the camera move as the LoRA was trained to move it?

Command: python -m benchmarks.camera_lora [--scale 1.5] [--motion-bucket 200] BASE PAN_RIGHT [STATIC [ZOOM_IN]]
         python -m benchmarks.camera_lora [--folder FOLDER]        (needs ".[measure]")

Animates pictures of the base's world that no training run draws, and names the camera's motion in each sample with
`svdjax.evaluation.camera`. Prints one JSON object: for each motion the share of samples that show it, with the LoRA
and without; how often the samples show each motion, and how their ground moves on average. A base checkpoint and
LoRAs that are named are measured as they are; else base and LoRAs are trained by `configs/demo_camera.py` and
`configs/demo_camera_lora.py` into FOLDER (what is finished there is not trained again).
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, pipeline_of
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.sprites import CAMERAS, draw_clips
from svdjax.evaluation.camera import global_motion
from svdjax.models.lora import TEMPORAL_ATTENTION
from svdjax.sampling.images import from_uint8
from svdjax.sampling.loras import apply_loras
from svdjax.sampling.options import ASSETS
from svdjax.training import RunConfig

# Each with the fewest layers that do: the paper's to stand still; to zoom, where every place moves its own way,
# those that see the places, too.
TARGETS = MappingProxyType(
    {"pan right": "unet.*attn*temporal.*", "static": TEMPORAL_ATTENTION, "zoom in": "unet.*attn*"}
)
SHORT = MappingProxyType({"static": (600, 512)})  # steps and clips, where the configuration's are not needed
MOTIONS = tuple(TARGETS)
BUNDLED = (
    ASSETS / "demo_camera.safetensors",
    *(ASSETS / f"lora_{motion.replace(' ', '_')}.safetensors" for motion in MOTIONS),
)
QUICK = MappingProxyType({"samples": 8, "steps": 12})
# As trained, a LoRA moves the camera in most samples; somewhat stronger, and asked for much motion, in nearly all.
SCALE, BUCKET = 1.5, 200.0


def config_of(motion: str, folder: Path, *, seed: int = 0, steps: int | None = None) -> RunConfig:
    """The demo's configuration for one of the built-in world's camera motions."""
    config = demo_run("demo_camera_lora", folder / motion.replace(" ", "_"), seed=seed, steps=steps)
    world = dataclasses.replace(config.data.world, cameras=tuple(float(camera == motion) for camera in CAMERAS))
    lora = dataclasses.replace(config.unet.lora, targets=TARGETS[motion])
    usual, clips = SHORT.get(motion, (config.unet.steps, config.data.sprites))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, world=world, sprites=clips),
        unet=dataclasses.replace(config.unet, lora=lora, steps=steps or usual),
    )


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path, ...]:
    """The model of `configs/demo_camera.py`, and a LoRA of it for each motion."""
    base = trained(demo_run("demo_camera", folder / "base", seed=seed, steps=steps))
    configs = [config_of(motion, folder, seed=seed, steps=steps) for motion in MOTIONS]
    return base, *(trained(dataclasses.replace(config, init_from=str(base))) for config in configs)


def measure(
    base: Path, *loras: Path, samples: int = 64, scale: float = SCALE, bucket: float = BUCKET, **defaults: Any
) -> dict[str, Any]:
    """Animate with each LoRA and without, and name what the camera does.

    Args:
        base: the checkpoint. loras: for the first ones of MOTIONS, in their order. samples: of each of them.
        scale: of the LoRAs. bucket: of motion, for all samples.
        defaults: see `pipeline_of`.
    """
    world = demo_run("demo_camera_lora", Path()).data.world
    clips = draw_clips(dataclasses.replace(world, frames=1), SEED, samples)
    images = from_uint8(np.stack([clip.frames[0] for clip in clips]))
    shown = partial(motions_of, base, images, motion_bucket=bucket, **defaults)
    without, motions = shown([]), {}
    for motion, lora in zip(MOTIONS[: len(loras)], loras, strict=True):
        found = shown([f"{lora}:{scale}"])
        shares = {"with": found["cameras"].get(motion, 0), "without": without["cameras"].get(motion, 0)}
        motions[motion] = {name: count / samples for name, count in shares.items()} | found
    about = {
        "base": str(base),
        "loras": [str(lora) for lora in loras],
        "samples": samples,
        "seed": SEED,
        "scale": scale,
        "motion_bucket": bucket,
        **defaults,
    }
    return {**about, "without": without, "motions": motions}


def motions_of(base: Path, images: np.ndarray, loras: list[str], **defaults: Any) -> dict[str, Any]:
    """How often a sample of each picture shows each motion of the camera, and the mean motion of the ground.

    The latter to the right, down and growing, in percent of the picture's side per frame.
    """
    model = load_model(apply_loras(open_checkpoint(base), loras), dtype=np.float32)
    found = [global_motion(video) for video in pipeline_of(model, **defaults)(images=images)]
    mean = np.mean([(motion.x, motion.y, motion.zoom) for motion in found], axis=0)
    counts = Counter(motion.camera for motion in found)
    return {"cameras": dict(counts.most_common()), "ground": [round(float(each), 2) for each in mean]}


def as_expected(found: dict[str, Any]) -> bool:
    """Whether nine samples of ten show a LoRA's motion, or most of a few, and more than without it."""
    least = 0.9 if found["samples"] > QUICK["samples"] else 0.5
    return all(least <= motion["with"] > motion["without"] for motion in found["motions"].values())


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
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--motion-bucket", type=float, default=BUCKET)
    args = parser.parse_args()
    if not (len(args.files) == 0 or 2 <= len(args.files) <= 1 + len(MOTIONS)):
        parser.error(f"name a base checkpoint and 1 to {len(MOTIONS)} LoRAs, or nothing")
    files = args.files or train(args.folder)
    print(json.dumps(measure(*files, scale=args.scale, bucket=args.motion_bucket), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
