"""Text to video, measured: do the samples show what their prompts ask for?

Command: python -m benchmarks.text_to_video [CHECKPOINT]   (the bundled one by default; needs ".[measure]")

The prompts are captions of clips of the configuration's world that no training run draws (seed 2): one thing moves
before a camera at rest. `svdjax.evaluation.sprites` finds colour, shape and direction in each sample. Prints one
JSON object with the share of samples that agree with the prompt in each: ``prompt`` with their own; ``shuffled``
with every other sample's, which is what a model that does not read would reach; ``chance`` by guessing; ``truth``
what the detector finds in the true clips, and ``autoencoder`` in these encoded and decoded: the most that can be
reached. ``temporal`` is of every fourth sample, if its direction is not the first one's, made anew with the first
one's caption as the temporal prompt: the share that moves as its prompt says, and as the temporal prompt says.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.demo import SEED, pipeline_of, reconstruct
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.conversion.source import load_model
from svdjax.data.render import SHAPES
from svdjax.data.sprites import COLOURS, DIRECTIONS, Truth, draw_clips
from svdjax.evaluation.sprites import Seen, look
from svdjax.sampling.bundled import CHECKPOINTS
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.sampling.pipeline import Pipeline

BUNDLED = (CHECKPOINTS["text_to_video"],)
QUICK = MappingProxyType({"samples": 16, "steps": 12})
BUCKET = 160.0  # enough motion for its direction to show


def agreement(seen: list[Seen], truths: list[Truth]) -> dict[str, float]:
    """Share of the samples in which colour, shape and direction are as in the truths."""
    pairs = list(zip(seen, truths, strict=True))
    return {
        "colour": float(np.mean([found.colour == truth.colours[0] for found, truth in pairs])),
        "shape": float(np.mean([found.shape == truth.shapes[0] for found, truth in pairs])),
        "direction": float(np.mean([found.direction == truth.directions[0] for found, truth in pairs])),
    }


def shuffled(seen: list[Seen], truths: list[Truth]) -> dict[str, float]:
    """Mean agreement with the prompts of all others."""
    turned = [agreement(seen, truths[by:] + truths[:by]) for by in range(1, len(truths))]
    return {name: float(np.mean([each[name] for each in turned])) for name in turned[0]}


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path]:
    """The model of the committed configurations: of pictures first, then of videos."""
    pictures = trained(demo_run("demo_text_to_image", folder / "pictures", seed=seed, steps=steps))
    config = demo_run("demo_text_to_video", folder, seed=seed, steps=steps)
    return (trained(dataclasses.replace(config, init_from=str(pictures))),)


def measure(checkpoint: Path, *, samples: int = 64, **defaults: Any) -> dict[str, Any]:
    """Sample, and compare with the prompts; see `pipeline_of`."""
    model = load_model(checkpoint, dtype=np.float32)
    world = demo_run("demo_text_to_video", Path()).data.world
    clips = list(draw_clips(dataclasses.replace(world, still_share=0.0), SEED, samples))
    truths, video = [clip.truth for clip in clips], np.stack([clip.frames for clip in clips])
    pipeline = pipeline_of(model, motion_bucket=BUCKET, **defaults)
    seen = [look(made) for made in pipeline(prompts=[truth.caption for truth in truths])]
    kinds = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}
    found = {
        "prompt": agreement(seen, truths),
        "temporal": temporal(pipeline, truths),
        "shuffled": shuffled(seen, truths),
        "chance": {name: 1 / len(values) for name, values in kinds.items()},
        "truth": agreement([look(clip) for clip in video], truths),
        "autoencoder": agreement([look(clip) for clip in to_uint8(reconstruct(model, from_uint8(video)))], truths),
    }
    rounded = {name: {kind: round(share, 3) for kind, share in each.items()} for name, each in found.items()}
    return {"checkpoint": str(checkpoint), "samples": samples, "seed": SEED, **defaults, **rounded}


def temporal(pipeline: Pipeline, truths: list[Truth]) -> dict[str, float]:
    """Shares of samples that move as their prompts say, and as their temporal prompt, the first one's, says."""
    first, other = truths[0].caption, truths[0].directions[0]
    truths = [truth for truth in truths[::4] if truth.directions[0] != other]
    made = pipeline(prompts=[truth.caption for truth in truths], temporal_prompt=first)
    ways = [look(each).direction for each in made]
    return {
        "prompt": float(np.mean([way == truth.directions[0] for way, truth in zip(ways, truths, strict=True)])),
        "temporal prompt": float(np.mean([way == other for way in ways])),
    }


def as_expected(found: dict[str, Any]) -> bool:
    """Whether colours, shapes and directions all agree with a sample's own prompt more often than with others."""
    return all(share > found["shuffled"][kind] for kind, share in found["prompt"].items())


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    ours, others, most = (
        ", ".join(f"{kind} {share:.3f}" for kind, share in found[name].items())
        for name in ("prompt", "shuffled", "autoencoder")
    )
    return f"agree with the prompt: {ours}", f"with other prompts: {others}; at most: {most}"


def main() -> None:
    """Print the figures of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED[0])
    print(json.dumps(measure(parser.parse_args().checkpoint), indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
