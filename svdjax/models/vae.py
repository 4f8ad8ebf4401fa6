"""The f8 KL autoencoder: an image encoder, and a decoder for single images or for videos."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from svdjax.models.attention import attention
from svdjax.models.layers import GroupNorm, TemporalConv, Upsample, check_norm_groups, conv3x3
from svdjax.models.remat import call
from svdjax.models.resnet import ResBlock, VideoResBlock
from svdjax.models.sharding import constrain, context_size, spec_of
from svdjax.typing import Array, Float, Key, PyTree

NORM_EPS = 1e-6  # of every norm over one frame; both references agree
TEMPORAL_NORM_EPS = 1e-5  # of the norms over a whole video; here too
# Images are encoded together up to this many pixels: one of 576x1024 takes 0.4 GiB in bfloat16.
_PIXELS_AT_ONCE = 576 * 1024


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of the autoencoder.

    Attributes:
        channels: width of each level, shallowest first; every level but the last halves rows and columns.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of a latent.
        scaling_factor: latents times this have about unit variance; the caller applies it.
        temporal_decoder: decode videos (SVD) instead of images one by one.
        norm_groups: of every group norm; as in :class:`svdjax.models.unet.UNetConfig`.
        post_quant_conv: a 1x1 convolution in front of the decoder (complete image autoencoders).
        remat: recompute each layer's activations in the backward pass instead of keeping them.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    temporal_decoder: bool = True
    post_quant_conv: bool = False
    norm_groups: int = 32
    remat: bool = False

    def __post_init__(self) -> None:
        """Check what would otherwise fail deep inside a layer.

        Raises:
            UserError: the sizes do not fit together.
        """
        check_norm_groups("VAEConfig", self.channels, self.norm_groups)

    @property
    def factor(self) -> int:
        """Rows (and columns) of pixels per row of latents."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def svd(cls) -> "VAEConfig":
        """SVD and SVD-XT: SD 2.1's encoder and the temporal decoder; 97,742,847 parameters."""
        return cls()

    @classmethod
    def svd_image_decoder(cls) -> "VAEConfig":
        """The image-decoder variants and SV3D: each frame is decoded alone."""
        return cls(temporal_decoder=False)

    @classmethod
    def sd21(cls) -> "VAEConfig":
        """The complete image autoencoder of SD 2.1; 83,653,863 parameters."""
        return cls(temporal_decoder=False, post_quant_conv=True)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "logvar"], meta_fields=[])
@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian over latents, ``q(z | x)`` of the KL autoencoder (arXiv 2112.10752, section 3.1).

    Attributes:
        mean: before the scaling factor.
        logvar: logarithm of the variance, clipped to [-30, 20].
    """

    mean: Float[Array, "*lead c"]
    logvar: Float[Array, "*lead c"]

    def mode(self) -> Float[Array, "*lead c"]:
        """The most likely latent."""
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*lead c"]:
        """A random latent, ``mean + exp(logvar / 2) * noise``."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


def _narrow_posterior(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """First biases of the moments: mean 0 and log-variance -6, or noise would drown an untrained encoder."""
    return jnp.where(jnp.arange(*shape) < shape[0] // 2, 0, -6).astype(dtype)


class FrameAttention(nnx.Module):
    """Self-attention over the pixels of one frame: a single head as wide as the features."""

    def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels, groups=groups, eps=NORM_EPS, rngs=rngs)
        self.q = nnx.Linear(channels, channels, rngs=rngs)
        self.k = nnx.Linear(channels, channels, rngs=rngs)
        self.v = nnx.Linear(channels, channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Attend, and add the input."""
        tokens = self.norm(x)[..., None, :]
        out = attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return x + self.out(out)[..., 0, :]


class Downsample(nnx.Module):
    """Halving by a stride-2 convolution padded after the last row and column only (the UNet pads both ends)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        padding = ((0, 1), (0, 1))
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=padding, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Halve rows and columns, rounding down."""
        return self.conv(x)


class ImageBlock(nnx.Module):
    """A video block without its temporal half, so that the two kinds of decoder call alike what they share."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, rngs: nnx.Rngs) -> None:
        self.spatial = ResBlock(in_channels, out_channels, groups=groups, eps=NORM_EPS, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        return self.spatial(images)


Block = Callable[..., ResBlock | VideoResBlock | ImageBlock]


class Mid(nnx.Module):
    """Block, attention, block, at the lowest resolution."""

    def __init__(self, channels: int, block: Block, *, groups: int, rngs: nnx.Rngs) -> None:
        self.res = nnx.List([block(channels, channels, groups=groups, rngs=rngs) for _ in range(2)])
        self.attn = FrameAttention(channels, groups=groups, rngs=rngs)

    def layers(self) -> list[nnx.Module]:
        """The layers in the order of execution."""
        return [self.res[0], self.attn, self.res[1]]


class Level(nnx.Module):
    """The blocks of one resolution, then a halving, a doubling or nothing."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        block: Block,
        *,
        groups: int,
        resample: type[Downsample] | type[Upsample] | None,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [in_channels, *[out_channels] * blocks]
        self.res = nnx.List([block(a, b, groups=groups, rngs=rngs) for a, b in itertools.pairwise(widths)])
        if resample is Downsample:
            self.downsample = Downsample(out_channels, rngs=rngs)
        if resample is Upsample:
            self.upsample = Upsample(out_channels, rngs=rngs)

    def layers(self) -> list[nnx.Module]:
        """The layers in the order of execution."""
        resample = [getattr(self, name) for name in ("downsample", "upsample") if hasattr(self, name)]
        return [*self.res, *resample]


class Encoder(nnx.Module):
    """Images to the moments of a Gaussian over latents."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        widths = config.channels
        last = len(widths) - 1
        block = functools.partial(ResBlock, eps=NORM_EPS)
        self.remat = config.remat
        self.conv_in = conv3x3(3, widths[0], rngs=rngs)
        self.down = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.num_res_blocks,
                    block,
                    groups=config.norm_groups,
                    resample=Downsample if i < last else None,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.mid = Mid(widths[-1], block, groups=config.norm_groups, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], groups=config.norm_groups, eps=NORM_EPS, rngs=rngs)
        self.conv_out = conv3x3(widths[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Mean and log-variance, one after the other on the channels."""
        x = self.conv_in(images)
        for layer in (layer for part in (*self.down, self.mid) for layer in part.layers()):
            x = call(layer, x, recompute=self.remat)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Decoder(nnx.Module):
    """Latents to frames; the temporal one also convolves over frames after each block.

    The temporal decoder is Video LDM's (arXiv 2304.08818, section 3.1) as kept by SVD (2311.15127): each block
    is followed by a temporal one, blended as ``alpha * temporal + (1 - alpha) * spatial``, and the last
    convolution over frames is always applied. Its group norms take their statistics over all frames.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        widths = config.channels[::-1]
        last = len(widths) - 1
        block = _video_block if config.temporal_decoder else ImageBlock
        self.remat = config.remat
        self.conv_in = conv3x3(config.latent_channels, widths[0], rngs=rngs)
        self.mid = Mid(widths[0], block, groups=config.norm_groups, rngs=rngs)
        self.up = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.num_res_blocks + 1,
                    block,
                    groups=config.norm_groups,
                    resample=Upsample if i < last else None,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.norm_out = GroupNorm(widths[-1], groups=config.norm_groups, eps=NORM_EPS, rngs=rngs)
        self.conv_out = conv3x3(widths[-1], 3, rngs=rngs)
        if config.temporal_decoder:
            self.time_conv = TemporalConv(3, 3, identity=True, rngs=rngs)

    def layers(self) -> list[Callable[[Array], Array]]:
        """The layers in the order of execution.

        ``VideoResBlock`` and ``TemporalConv`` take videos ``[b, t, h, w, c]``; every other layer takes frames
        ``[b, h, w, c]`` and treats each alone.
        """
        parts = [layer for part in (self.mid, *self.up) for layer in part.layers()]
        head = [self.norm_out, jax.nn.silu, self.conv_out]
        return [self.conv_in, *parts, *head, *([self.time_conv] if hasattr(self, "time_conv") else [])]

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 3"]:
        """Decode all frames at once."""
        for layer in self.layers():
            # the silu is no module
            again = self.remat and isinstance(layer, nnx.Module)
            run = functools.partial(call, layer, recompute=True) if again else layer
            z = constrain(run(z) if is_temporal(layer) else each_frame(run, z))
        return z


def _in_turn(layer: Callable[[Array], Array], images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """Apply a layer to images, to as many at once as have few enough pixels."""
    b, h, w, _ = images.shape
    together = max((n for n in range(1, b + 1) if b % n == 0 and n * h * w <= _PIXELS_AT_ONCE), default=1)
    if together == b:
        return layer(images)
    out = jax.lax.map(layer, images.reshape(-1, together, *images.shape[1:]))
    return out.reshape(b, *out.shape[2:])


def is_temporal(layer: Callable) -> bool:
    """Whether a layer of the decoder mixes frames."""
    return isinstance(layer, VideoResBlock | TemporalConv)


def each_frame(layer: Callable[[Array], Array], x: Float[Array, "b t ..."]) -> Float[Array, "b t ..."]:
    """Apply a layer of images to every frame of a video."""
    b, t = x.shape[:2]
    out = layer(x.reshape(b * t, *x.shape[2:]))
    return out.reshape(b, t, *out.shape[1:])


def _video_block(in_channels: int, out_channels: int, *, groups: int, rngs: nnx.Rngs) -> VideoResBlock:
    # Temporal part zero at first: so a new decoder starts as the image decoder, whatever the blend.
    return VideoResBlock(
        in_channels,
        out_channels,
        groups=groups,
        eps=(NORM_EPS, TEMPORAL_NORM_EPS),
        alpha_of="temporal",
        mix_init=0.0,
        zero_init=(False, True),
        rngs=rngs,
    )


class VAE(nnx.Module):
    """The autoencoder of latent diffusion (arXiv 2112.10752); the caller applies ``config.scaling_factor``."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = nnx.Conv(moments, moments, (1, 1), bias_init=_narrow_posterior, rngs=rngs)
        if config.post_quant_conv:
            channels = config.latent_channels
            self.post_quant_conv = nnx.Conv(channels, channels, (1, 1), rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, images: Float[Array, "b *t h w 3"]) -> Gaussian:
        """The distribution of the latents of images, or of each frame of videos.

        Large images are encoded one after the other, and the frames of one video share the devices of the mesh
        axis "context": an image needs no other.

        Args:
            images: pixels in [-1, 1]; rows and columns multiples of ``config.factor``.

        Returns:
            Latents ``[b, *t, h / factor, w / factor, c]``, before the scaling factor.
        """
        alone = images.ndim == 4
        moments = self._moments(images[:, None])[:, 0] if alone else constrain(self._moments(images))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(logvar, -30.0, 20.0))

    def _moments(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h2 w2 c"]:
        """Mean and log-variance of each frame."""
        t = video.shape[1]
        shares = context_size() if t > 1 else 1
        video = jnp.pad(video, ((0, 0), (0, -t % shares), *[(0, 0)] * 3))
        spec = spec_of(video.shape, "b frames ...")
        graphdef, state = nnx.split((self.encoder, self.quant_conv))

        def on_one_device(state: PyTree, video: Array) -> Array:
            encoder, quant_conv = nnx.merge(graphdef, state)
            return each_frame(lambda images: _in_turn(lambda x: quant_conv(encoder(x)), images), video)

        if not any(spec):
            return on_one_device(state, video)
        split = jax.shard_map(on_one_device, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
        return split(state, video)[:, :t]

    def decode(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 3"]:
        """Frames of videos, all at once; see ``svdjax.sampling.decode`` for long or large ones.

        Args:
            z: latents already divided by the scaling factor.

        Returns:
            Pixels around [-1, 1], not clipped.
        """
        return self.decoder(self.before_decoder(z))

    def before_decoder(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """What the decoder sees of a latent: the latent, through ``post_quant_conv`` where there is one."""
        return each_frame(self.post_quant_conv, z) if hasattr(self, "post_quant_conv") else z
