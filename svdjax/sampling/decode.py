"""Decoding videos in chunks of frames: exactly, or with the seams of the PyTorch implementations."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from svdjax.errors import UserError
from svdjax.models.layers import GroupNorm, TemporalConv, alpha_blend
from svdjax.models.resnet import VideoResBlock
from svdjax.models.sharding import constrain
from svdjax.models.vae import VAE, VAEConfig, each_frame
from svdjax.typing import Array, Float

Frames = Callable[[Array], Array]


def decode_frames(
    vae: VAE,
    z: Float[Array, "b t h w c"],
    *,
    chunk: int | None,
    mode: Literal["exact", "reference"] = "exact",
) -> Float[Array, "b t h2 w2 3"]:
    """Decode videos with the working memory of ``chunk`` frames.

    Decoding overlapping chunks alone and keeping their middles cannot equal the whole decode, whatever the
    overlap: the group norms of the temporal blocks take their statistics over *all* frames, so that every
    frame depends on every other one. (And the temporal convolutions alone already reach 29 frames in both
    directions, see :func:`convolution_reach`: further than the 14 or 25 frames of a video.)

    ``exact`` therefore walks through the decoder layer by layer, each over chunks of frames: layers of single
    frames as they are, convolutions over frames with one neighbour frame at either side, and norms with the
    statistics of the whole video. The result is the unchunked one to rounding. What remains in memory are two
    feature maps of all frames plus the temporaries of one chunk. ``reference`` decodes each chunk as if it
    were a video of its own, as ``decoding_t`` of the original code and ``decode_chunk_size`` of diffusers do:
    less memory, but visible seams, and another result for each chunk size. (They fold several videos into one
    row of frames before cutting it; here chunks never span two videos.) Without a temporal decoder the modes
    are the same.

    XLA's temporaries on a CPU for 14 frames of 256x384 in float32 (SVD's sizes; one feature map of the last
    level is 0.66 GiB): 3.28 GiB whole, 2.63 / 1.59 / 1.50 GiB exact with chunks of 7 / 2 / 1, and 0.47 GiB as
    the reference does with chunks of 2. Compiled for a TPU v5e (15.75 GiB), 14 frames of 576x1024 in bfloat16
    need 7.5 GiB exact with chunks of 1.

    Args:
        vae: the autoencoder.
        z: latents, already divided by the scaling factor.
        chunk: frames of each video at a time; None for all.
        mode: exact, or as the PyTorch implementations do.

    Returns:
        Pixels around [-1, 1], not clipped.

    Raises:
        UserError: ``chunk`` is not positive.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk = {chunk}: decode at least one frame at a time, or None for all")
    if chunk is None or chunk >= z.shape[1]:
        return vae.decode(z)
    if mode == "reference":
        return _videos_in_chunks(vae.decode, z, chunk)
    return _exact(vae, z, chunk)


def default_chunk(videos: int, frames: int, height: int, width: int) -> int | None:
    """Frames to decode at once if nobody says: all of small videos (None), else as many as have their size.

    Videos are small up to 14 frames of 256x384 pixels in all; of one of 576x1024 pixels it is 2 frames at a time.

    Args:
        videos, frames, height, width: of the latents.
    """
    most = 14 * (256 // 8) * (384 // 8)
    one = videos * height * width
    return None if one * frames <= most else max(1, most // one)


def convolution_reach(config: VAEConfig) -> int:
    """Frames to either side that the decoder's convolutions see, leaving the norms aside: 29 for SVD.

    Each temporal block has two convolutions over three frames, and one more follows the last layer; so the
    receptive field is ``2 * reach + 1 = 59`` frames.
    """
    if not config.temporal_decoder:
        return 0
    blocks = 2 + len(config.channels) * (config.num_res_blocks + 1)
    return 2 * blocks + 1


def _exact(vae: VAE, z: Array, chunk: int) -> Array:
    # Layers of single frames are collected and run together, so that only what a temporal layer reads (and
    # never an upsampled map in front of a convolution) is kept for all frames.
    waiting: list[Frames] = []

    def flush(x: Array) -> Array:
        out = _videos_in_chunks(lambda piece: each_frame(_chain(waiting), piece), x, chunk) if waiting else x
        waiting.clear()
        return out

    x = vae.before_decoder(z)
    for layer in vae.decoder.layers():
        if isinstance(layer, VideoResBlock):
            waiting.append(layer.spatial)
            x = _temporal_half(layer, flush(x), chunk)
        elif isinstance(layer, TemporalConv):
            x = constrain(layer(flush(x)))  # three channels: small enough for all frames
        else:
            waiting.append(layer)
    return flush(x)


def _chain(layers: list[Frames]) -> Frames:
    def run(x: Array) -> Array:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _videos_in_chunks(layer: Frames, x: Array, chunk: int) -> Array:
    """Apply a layer to each chunk of frames as if it were a video of its own."""
    one = jax.eval_shape(lambda x: layer(x[:, :chunk]), x)
    if one.shape[2:] == x.shape[2:] and one.dtype == x.dtype:
        return _write_chunks(lambda out, start, size: layer(_frames(out, start, size)), x, chunk)
    out = _blank((*x.shape[:2], *one.shape[2:]), one.dtype, after=x)
    return _write_chunks(lambda _, start, size: layer(_frames(x, start, size)), out, chunk)


def _temporal_half(block: VideoResBlock, x: Array, chunk: int) -> Array:
    """What ``block`` does after its spatial block."""
    temporal = block.temporal
    first = _norm_silu_conv(temporal.norm1, temporal.conv1, x)
    hidden = _write_chunks(lambda _, start, size: first(start, size), _blank(x.shape, x.dtype, after=x), chunk)
    second = _norm_silu_conv(temporal.norm2, temporal.conv2, hidden)

    def blend(out: Array, start: Array, size: int) -> Array:
        spatial = _frames(out, start, size)
        return alpha_blend(block.mix_factor[...], spatial + second(start, size), spatial)

    return _write_chunks(blend, x, chunk)


def _norm_silu_conv(norm: GroupNorm, conv: TemporalConv, x: Array) -> Callable[[Array, int], Array]:
    """Norm over the whole video, SiLU and convolution over frames, computed for any run of frames."""
    scale, shift = norm.affine(x)
    t = x.shape[1]

    def run(start: Array, size: int) -> Array:
        before = _frames(x, jnp.maximum(start - 1, 0), 1)
        after = _frames(x, jnp.minimum(start + size, t - 1), 1)
        run_of_frames = jnp.concatenate([before, _frames(x, start, size), after], axis=1)
        index = start - 1 + jnp.arange(size + 2)
        inside = ((index >= 0) & (index < t))[:, None, None, None]
        normalised = (run_of_frames * scale + shift).astype(x.dtype)
        # the convolution pads its own input, after norm and SiLU, with zeros
        return conv(jnp.where(inside, jax.nn.silu(normalised), 0), padded=False)

    return run


def _blank(shape: tuple[int, ...], dtype: jnp.dtype, *, after: Array) -> Array:
    # To be overwritten. Constants would do, but XLA makes all of those at the start and so keeps all at once.
    return jnp.full(shape, after[(0,) * after.ndim], dtype)


def _frames(x: Array, start: Array | int, size: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _write_chunks(make: Callable[[Array, Array, int], Array], out: Array, chunk: int) -> Array:
    """Overwrite the frames of ``out``, a chunk at a time, by ``make(out, first frame, frames)``."""

    def write(out: Array, start: Array | int, size: int) -> Array:
        start = jnp.asarray(start)
        return lax.dynamic_update_slice_in_dim(out, make(out, start, size), start, axis=1)

    out = constrain(out)
    whole, rest = divmod(out.shape[1], chunk)
    out = lax.fori_loop(0, whole, lambda i, out: write(out, i * chunk, chunk), out)
    return write(out, whole * chunk, rest) if rest else out
