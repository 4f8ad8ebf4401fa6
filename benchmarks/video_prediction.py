"""Video prediction, measured: how near are the frames that follow to the true ones, and what if nothing moved on?

Command: python -m benchmarks.video_prediction [CHECKPOINT]   (the bundled one by default; needs ".[measure]")

The first 4 of 8 frames of clips of the built-in world are given, clips that no training run draws (seed 2). Prints
one JSON object with the PSNR in dB of each of the other 4 frames against the true ones, in the half of the clips in
which most moves: of the model (over all seeds), of the last known frame repeated, and of that frame warped on by
the optical flow between the last two ("flow": good at cameras, but it smears the edges of what moves before them).
All are compared after the autoencoder, for the model's frames come out of the decoder; ``vae`` is what remains of
the true frames, the most that a model of these latents can reach.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from benchmarks.demo import SEED, filled_in, psnr, reconstruct
from benchmarks.runs import known_frames
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.motion import flow_fields
from svdjax.data.sprites import World, draw_clips
from svdjax.sampling.bundled import CHECKPOINTS
from svdjax.sampling.images import from_uint8, to_uint8

BUNDLED = (CHECKPOINTS["video_prediction"],)
QUICK = MappingProxyType({"clips": 16, "seeds": 1, "steps": 12})
KNOWN = 4
train = known_frames


def continued(video: np.ndarray) -> dict[str, np.ndarray]:
    """The simple ways to go on after the known frames of clips [b t h w 3] in [-1, 1]."""
    ahead = video.shape[1] - KNOWN
    repeated = np.repeat(video[:, KNOWN - 1 : KNOWN], ahead, axis=1)
    return {"repetition": repeated, "flow": np.stack([warped_on(clip[:KNOWN], ahead) for clip in video])}


def warped_on(known: np.ndarray, ahead: int) -> np.ndarray:
    """The last of the known frames [t h w 3], moved on as often as frames are wanted as it moved last."""
    before, last = to_uint8(known[-2:])
    back = flow_fields(np.stack([last, before]))[0]
    here = np.stack(np.meshgrid(*map(np.arange, last.shape[1::-1])), axis=-1).astype(np.float32)
    frames = range(1, ahead + 1)
    warp = partial(cv2.remap, last, map2=None, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return from_uint8(np.stack([warp(map1=here + frame * back) for frame in frames]))


def measure(checkpoint: Path, *, clips: int = 64, seeds: int = 3, **defaults: Any) -> dict[str, Any]:
    """Go on with the half of the clips that moves most, and compare with the truth; see `pipeline_of`."""
    model = load_model(checkpoint, dtype=np.float32)
    drawn = sorted(draw_clips(World(), SEED, clips), key=lambda clip: clip.truth.motion)[clips // 2 :]
    truth = from_uint8(np.stack([clip.frames for clip in drawn]))
    made = filled_in(model, truth, np.arange(truth.shape[1]) < KNOWN, seeds, **defaults)

    def ahead(video: np.ndarray) -> np.ndarray:
        """PSNR of each frame that was not known, [b t]."""
        pairs = zip(video[:, KNOWN:].astype(np.float64), truth[:, KNOWN:], strict=True)
        return np.stack([psnr(*pair) for pair in pairs])

    whole = {name: np.concatenate([truth[:, :KNOWN], rest], axis=1) for name, rest in continued(truth).items()}
    found = {"model": np.mean([ahead(video) for video in made], axis=0)}
    found |= {name: ahead(reconstruct(model, video)) for name, video in {**whole, "vae": truth}.items()}
    return {
        "checkpoint": str(checkpoint),
        "clips": len(drawn),
        "seed": SEED,
        "seeds": list(range(seeds)),
        **defaults,
        "psnr": {name: [round(float(each), 2) for each in values.mean(axis=0)] for name, values in found.items()},
    }


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the model is nearer to the truth than repetition, in the mean of the frames."""
    return bool(np.mean(found["psnr"]["model"]) > np.mean(found["psnr"]["repetition"]))


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    model, *others = (f"{name} {np.mean(values):.2f} dB" for name, values in found["psnr"].items())
    return f"mean of {len(found['psnr']['model'])} frames ahead: {model}", ", ".join(others)


def main() -> None:
    """Print the figures of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED[0])
    print(json.dumps(measure(parser.parse_args().checkpoint), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
