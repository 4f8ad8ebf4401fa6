"""Sample grids during training, by the same conditioning, sampler and decoder that users sample with."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from PIL import Image

from svdjax.data.video import write_video
from svdjax.diffusion.noise import video_noise
from svdjax.models.svd import SVD
from svdjax.sampling.images import to_uint8
from svdjax.sampling.pipeline import Pipeline, Settings
from svdjax.tasks import ImageRequest, ImageToVideo
from svdjax.typing import Float, PyTree, UInt8, ndarray


def sample_clips(
    model: SVD, images: Float[ndarray, "b h w 3"], motion_buckets: Float[ndarray, " b"], *, seed: int = 0
) -> UInt8[ndarray, "b t h w 3"]:
    """Animate pictures in one batch, each with its own motion bucket, with the model's own defaults otherwise.

    Args:
        model: the whole model.
        images: first frames in [-1, 1], of a size that needs no padding.
        motion_buckets: 1..255.
        seed: video i of a seed is always the same.
    """
    pipeline = Pipeline(model, Settings(defaults=model.config.defaults, seed=seed))
    graph, state = nnx.split(model)

    @jax.jit
    def sample(state: PyTree, images: jax.Array, buckets: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        videos = jnp.arange(images.shape[0])
        cond = ImageToVideo(config=model.config).condition(
            model, _request(model, images, buckets, seed), model.config.defaults.frames
        )
        return pipeline.decode(model, pipeline.sample(model, cond, videos))

    return to_uint8(np.asarray(sample(state, jnp.asarray(images), jnp.asarray(motion_buckets, jnp.float32))))


def _request(model: SVD, images: jax.Array, buckets: jax.Array, seed: int) -> ImageRequest:
    defaults = model.config.defaults
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return ImageRequest(
        image=images,
        fps=jnp.full_like(buckets, defaults.fps),
        motion_bucket=buckets,
        noise_aug=jnp.full_like(buckets, defaults.noise_aug),
        noise=video_noise(key, jnp.arange(images.shape[0]), images.shape[1:]),
    )


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
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(video[-1]).save(path.with_suffix(".png"))
    write_video(path.with_suffix(".mp4"), video, model.config.defaults.fps)
    return [path.with_suffix(".png"), path.with_suffix(".mp4")]
