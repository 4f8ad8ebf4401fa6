"""Sample grids during training, by the same conditioning, sampler and decoder that users sample with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from PIL import Image

from svdjax.conversion.output import finished
from svdjax.data.video import write_video
from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.tasks import task_of
from svdjax.training.data import Clips
from svdjax.training.stage import Batch

GRID_ROWS = 4
# On a device at once: the demo's videos by the dozen, of a large model one.
MOST_VIDEOS, MOST_PIXELS = 16, 2**20


def write_grid(
    model: SVD,
    clips: Batch,
    path: Path,
    *,
    motion_buckets: Sequence[float] = (1.0, 64.0, 128.0, 192.0, 255.0),
) -> list[Path]:
    """Ask for what each clip shows, with several motion buckets if the model has them, and write it side by side.

    Writes ``path.png`` (a row per clip: its first frame, then the last frame of each bucket) and ``path.mp4`` (the
    same columns, moving).

    Args:
        model: the whole model, sampled as its defaults say, in the size of the clips; its parameters' type is the
            type to compute in.
        clips: a batch with what the task is asked by: ``video`` uint8 [b t h w 3], and ``caption`` for texts.
        path: without a suffix.
        motion_buckets: 1..255.

    Returns:
        The two paths.

    Raises:
        UserError: the batch lacks what the task is asked by.
    """
    video = from_uint8(np.asarray(clips["video"]))
    defaults = dataclasses.replace(model.config.defaults, height=video.shape[2], width=video.shape[3])
    pixels = defaults.frames * defaults.height * defaults.width
    per_device = min(MOST_VIDEOS, max(1, MOST_PIXELS // pixels))
    pipeline = Pipeline(model, Settings(defaults=defaults, seed=0, per_device=per_device))
    request = pipeline.request(**pipeline.task.inputs_from_batch({**clips, "video": video}))
    if "motion_bucket" in dict(model.config.scalars):
        request = jax.tree.map(lambda x: np.repeat(x, len(motion_buckets), axis=0), request)
        request = dataclasses.replace(request, motion_bucket=np.tile(np.float32(motion_buckets), len(video)))
    made = rearrange(
        list(pipeline.videos(request)), "(rows columns) t h w c -> rows columns t h w c", rows=len(video)
    )
    still = np.broadcast_to(to_uint8(video[:, :1])[:, None], (len(video), 1, *made.shape[2:]))
    grid = rearrange(np.concatenate([still, made], axis=1), "rows columns t h w c -> t (rows h) (columns w) c")
    with finished(path.with_suffix(".png"), overwrite=True) as partial:
        Image.fromarray(grid[-1]).save(partial, format="png")
    write_video(path.with_suffix(".mp4"), grid, model.config.defaults.fps)
    return [path.with_suffix(".png"), path.with_suffix(".mp4")]


def check_grid(clips: Clips, config: SVDConfig) -> None:
    """See that a grid can be made; the first one may be due after the whole training.

    Raises:
        UserError: the task says something of each frame, and no clip of a grid has as many as a sample.
    """
    wanted = config.defaults.frames
    if task_of(config).per_frame and grid_clips(clips, wanted)["video"].shape[1] != wanted:
        raise UserError(
            f"--data.validation {clips.config.validation}: its first clips are none of {wanted} frames, of which "
            f"samples of {config.task} are made: put longer ones first, or train on fewer shapes"
        )


def grid_clips(clips: Clips, frames: int) -> Batch:
    """The clips of a run's grids: held-out ones, always the same; of so many frames if there are such."""
    of_each_shape = clips.held_out(batch=GRID_ROWS, count=1)
    return min(of_each_shape, key=lambda batch: batch["video"].shape[1] != frames)
