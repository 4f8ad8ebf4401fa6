"""Sample grids during training, by the same conditioning, sampler and decoder that users sample with."""

from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from svdjax.conversion.output import finished
from svdjax.data.video import write_video
from svdjax.models.svd import SVD
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.training.data import Clips
from svdjax.typing import Float, UInt8, ndarray

GRID_ROWS = 4
AT_ONCE = 16  # videos on a device: the models that are sampled while they train are small


def sample_clips(
    model: SVD, images: Float[ndarray, "b h w 3"], motion_buckets: Float[ndarray, " b"], *, seed: int = 0
) -> UInt8[ndarray, "b t h w 3"]:
    """Animate pictures, each with its own motion bucket, with the model's own defaults otherwise.

    Args:
        model: the whole model.
        images: first frames in [-1, 1].
        motion_buckets: 1..255.
        seed: video i of a seed is always the same.
    """
    settings = Settings(defaults=model.config.defaults, seed=seed, per_device=min(len(images), AT_ONCE))
    return Pipeline(model, settings)(images, motion_buckets)


def write_grid(
    model: SVD,
    images: Float[ndarray, "b h w 3"],
    path: Path,
    *,
    motion_buckets: tuple[float, ...] = (1, 64, 128, 192, 255),
) -> list[Path]:
    """Animate each picture with several motion buckets and write them side by side.

    Writes ``path.png`` (a row per picture: the picture, then the last frame of each bucket) and ``path.mp4`` (the
    same columns, moving).

    Returns:
        The two paths.
    """
    count = len(motion_buckets)
    clips = sample_clips(model, np.repeat(images, count, axis=0), np.tile(np.float32(motion_buckets), len(images)))
    clips = rearrange(clips, "(rows columns) t h w c -> rows columns t h w c", columns=count)
    still = np.broadcast_to(to_uint8(images)[:, None, None], (len(images), 1, *clips.shape[2:]))
    video = rearrange(np.concatenate([still, clips], axis=1), "rows columns t h w c -> t (rows h) (columns w) c")
    with finished(path.with_suffix(".png"), overwrite=True) as partial:
        Image.fromarray(video[-1]).save(partial, format="png")
    write_video(path.with_suffix(".mp4"), video, model.config.defaults.fps)
    return [path.with_suffix(".png"), path.with_suffix(".mp4")]


def grid_images(clips: Clips) -> Float[ndarray, "b h w 3"]:
    """The pictures of a run's grids: first frames of held-out clips, always the same."""
    return from_uint8(clips.held_out(batch=GRID_ROWS, count=1)[0]["video"][:, 0])
