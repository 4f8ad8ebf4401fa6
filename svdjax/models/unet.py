"""The denoising U-Net of Stable Video Diffusion, its relatives, and the SD 2.1 image U-Net it grew from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.layers import (
    Downsample,
    EmbeddingMLP,
    GroupNorm,
    Upsample,
    check_norm_groups,
    conv3x3,
    sinusoidal_embedding,
)
from svdjax.models.remat import Recomputed, call
from svdjax.models.resnet import VideoResBlock
from svdjax.models.sharding import constrain
from svdjax.models.transformer import Transformer
from svdjax.typing import Array, Bool, Float

Watch = Callable[[str, Float[Array, "b t h w c"]], None]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a U-Net; the defaults are SVD's (arXiv 2311.15127, appendix D, and the released weights).

    Attributes:
        in_channels: latent channels plus those of the conditioning latent that is concatenated to them.
        out_channels: latent channels.
        channels: of each level, the finest first.
        num_res_blocks: of each level on the way down; one more on the way up.
        attention: which levels have transformers; the middle always has one.
        head_dim: width of one attention head.
        context_dim: width of the context tokens.
        vector_dim: width of the embedded vector conditioning, 0 for none.
        temporal: False for an image model, which has no layer over frames.
        norm_eps: which published implementation's group-norm epsilons the residual blocks use. The weights were
            trained with ``"sgm"``; ``"diffusers"`` changes the fifth digit, for comparisons with it.
        norm_groups: of every group norm. 32 in all published models; a toy below 64 channels wants fewer, or each
            group has one channel and takes its mean from every image.
        remat: kinds of block whose activations are recomputed in the backward pass instead of being kept; see
            ``svdjax.models.remat``, whose ``BLOCKS`` is the usual choice.
    """

    in_channels: int = 8
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    head_dim: int = 64
    context_dim: int = 1024
    vector_dim: int = 768
    temporal: bool = True
    norm_eps: Literal["sgm", "diffusers"] = "sgm"
    norm_groups: int = 32
    remat: tuple[Recomputed, ...] = ()

    def __post_init__(self) -> None:
        """Check what would otherwise fail deep inside a layer.

        Raises:
            UserError: the sizes do not fit together.
        """
        if len(self.attention) != len(self.channels):
            raise UserError(
                f"UNetConfig: attention has {len(self.attention)} levels and channels {len(self.channels)}: "
                "give one entry per level"
            )
        if unknown := sorted(set(self.remat) - set(get_args(Recomputed))):
            kinds = ", ".join(get_args(Recomputed))
            raise UserError(f"UNetConfig: remat names {', '.join(unknown)}: choose among {kinds}")
        check_norm_groups("UNetConfig", self.channels, self.norm_groups)
        attention = (*self.attention[:-1], True)  # the middle attends, and is as wide as the last level
        for channels, attends in zip(self.channels, attention, strict=True):
            if attends and channels % self.head_dim:
                raise UserError(
                    f"UNetConfig: {channels} channels of a level with attention do not divide by "
                    f"head_dim {self.head_dim}: change channels or head_dim"
                )

    @classmethod
    def svd(cls) -> "UNetConfig":
        """SVD and SVD-XT, image to video: 1,524,623,082 parameters."""
        return cls()

    @classmethod
    def text_to_video(cls, *, vector_dim: int = 512) -> "UNetConfig":
        """SVD's text-to-video stage: 1,524,283,882 parameters; 1,521,987,562 without vector conditioning."""
        return cls(in_channels=4, vector_dim=vector_dim)

    @classmethod
    def interpolation(cls) -> "UNetConfig":
        """Frame interpolation (conditioning latent and mask concatenated): 1,524,298,282 parameters."""
        return cls(in_channels=9, vector_dim=512)

    @classmethod
    def sv3d_u(cls) -> "UNetConfig":
        """SV3D without poses: 1,523,967,722 parameters."""
        return cls(vector_dim=256)

    @classmethod
    def sv3d_p(cls) -> "UNetConfig":
        """SV3D with poses: 1,525,278,442 parameters."""
        return cls(vector_dim=1280)

    @classmethod
    def sd21(cls) -> "UNetConfig":
        """The image model Stable Diffusion 2.1: 865,910,724 parameters."""
        return cls(in_channels=4, vector_dim=0, temporal=False)

    @classmethod
    def tiny(cls) -> "UNetConfig":
        """Every kind of block in a size for tests."""
        return cls(channels=(64, 64, 128, 128), num_res_blocks=1, head_dim=32, context_dim=64, vector_dim=96)


def _res_eps(config: UNetConfig, where: Literal["down", "mid", "up"], level: int) -> float:
    """Epsilon of the group norms of a residual block.

    The original uses 1e-5 throughout. diffusers' video model uses 1e-6 on levels with attention on the way down
    and on every level on the way up; its image model agrees with the original.
    """
    if config.norm_eps == "sgm" or not config.temporal or where == "mid":
        return 1e-5
    return 1e-6 if where == "up" or config.attention[level] else 1e-5


class Stage(nnx.Module):
    """The blocks of one level, or of the middle: residual blocks, transformers, a change of resolution."""

    def __init__(
        self,
        config: UNetConfig,
        widths: list[tuple[int, int]],
        *,
        eps: float,
        attn: int,
        downsample: bool = False,
        upsample: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the blocks.

        Args:
            config: the network's.
            widths: input and output channels of each residual block.
            eps: of their group norms.
            attn: number of transformers.
            downsample: halve the resolution at the end.
            upsample: double the resolution at the end.
            rngs: random keys for the parameters.
        """
        out = widths[-1][1]
        common = {"groups": config.norm_groups, "temporal": config.temporal, "rngs": rngs}
        emb_dim = 4 * config.channels[0]
        self.res = nnx.List(VideoResBlock(*pair, emb_dim=emb_dim, eps=(eps, eps), **common) for pair in widths)
        sizes = {"head_dim": config.head_dim, "context_dim": config.context_dim, "remat": config.remat}
        self.attn = nnx.List(Transformer(out, **sizes, **common) for _ in range(attn))
        if downsample:
            self.downsample = Downsample(out, rngs=rngs)
        if upsample:
            self.upsample = Upsample(out, rngs=rngs)


class UNet(nnx.Module):
    """The network ``F`` of the denoiser: it sees scaled latents and ``c_noise``, never sigma."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        channels, emb_dim = config.channels, 4 * config.channels[0]
        last = len(channels) - 1
        self.time_embed = EmbeddingMLP(channels[0], emb_dim, emb_dim, rngs=rngs)
        if config.vector_dim:
            self.vector_embed = EmbeddingMLP(config.vector_dim, emb_dim, emb_dim, rngs=rngs)
        self.conv_in = conv3x3(config.in_channels, channels[0], rngs=rngs)
        self.down = nnx.List(
            Stage(
                config,
                down_widths(config, level),
                eps=_res_eps(config, "down", level),
                attn=config.num_res_blocks * config.attention[level],
                downsample=level < last,
                rngs=rngs,
            )
            for level in range(last + 1)
        )
        self.mid = Stage(
            config, [(channels[-1], channels[-1])] * 2, eps=_res_eps(config, "mid", last), attn=1, rngs=rngs
        )
        self.up = nnx.List(
            Stage(
                config,
                up_widths(config, level),
                eps=_res_eps(config, "up", level),
                attn=(config.num_res_blocks + 1) * config.attention[level],
                upsample=level > 0,
                rngs=rngs,
            )
            for level in range(last, -1, -1)
        )
        self.norm_out = GroupNorm(channels[0], groups=config.norm_groups, eps=1e-5, rngs=rngs)
        self.conv_out = conv3x3(channels[0], config.out_channels, zero_init=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        c_noise: Float[Array, " b"],
        context: Float[Array, "b s c_k"],
        vector: Float[Array, "b t v"] | None = None,
        *,
        image_only: Bool[Array, "b t"] | None = None,
        temporal_context: Float[Array, "b s_t c_k"] | None = None,
        watch: Watch | None = None,
    ) -> Float[Array, "b t h w c_out"]:
        """Run the network, in the dtype of ``x`` and the parameters.

        Args:
            x: scaled noisy latents, with the conditioning latents concatenated behind them. Any number of
                frames, rows and columns; odd sizes on the way down are met again on the way up.
            c_noise: noise level per video: ``log(sigma) / 4`` for SVD, the timestep index for SD 2.1.
            context: tokens for cross-attention, shared by the frames: one image embedding, or text.
            vector: embedded vector conditioning per frame, exactly where the config has a ``vector_dim``.
            image_only: frames to treat as images: the temporal layers do not reach them.
            temporal_context: other tokens for the temporal cross-attention (text to video).
            watch: called with name and output of ``conv_in``, ``down.0`` ..., ``mid``, ``up.0`` ..., ``conv_out``.

        Raises:
            UserError: ``vector`` is missing or not wanted.
        """
        watch = watch or (lambda name, x: None)
        remat = self.config.remat
        run = partial(call, offload="offload" in remat, image_only=image_only)
        res = partial(run, recompute="residual" in remat, emb=self._embedding(x, c_noise, vector))
        attn = partial(run, recompute="transformer" in remat, context=context, temporal_context=temporal_context)
        h = constrain(self.conv_in(constrain(x)))
        watch("conv_in", h)
        skips = [h]
        for level, stage in enumerate(self.down):
            for block, transformer in _pairs(stage):
                h = res(block, h)
                h = h if transformer is None else attn(transformer, h)
                skips.append(h)
            if hasattr(stage, "downsample"):
                h = constrain(stage.downsample(h))
                skips.append(h)
            watch(f"down.{level}", h)

        h = res(self.mid.res[1], attn(self.mid.attn[0], res(self.mid.res[0], h)))
        watch("mid", h)

        for level, stage in enumerate(self.up):
            for block, transformer in _pairs(stage):
                h = res(block, h, skips.pop())
                h = h if transformer is None else attn(transformer, h)
            if hasattr(stage, "upsample"):
                h = constrain(stage.upsample(h, skips[-1].shape[2:4]))
            watch(f"up.{level}", h)

        h = self.norm_out(h.reshape(-1, *h.shape[2:])).reshape(h.shape)
        out = constrain(self.conv_out(jax.nn.silu(h)))
        watch("conv_out", out)
        return out

    def _embedding(self, x: Array, c_noise: Array, vector: Array | None) -> Float[Array, "b t e"]:
        """Noise level and vector conditioning, added after an MLP each, for every frame."""
        if (vector is not None) != bool(self.config.vector_dim):
            wanted = f"a vector of width {self.config.vector_dim}" if self.config.vector_dim else "no vector"
            raise UserError(f"UNet: the config wants {wanted}: check the task's conditioning")
        emb = self.time_embed(sinusoidal_embedding(c_noise, self.config.channels[0]))[:, None]
        if vector is not None:
            emb = emb + self.vector_embed(vector)
        return jnp.broadcast_to(emb, (*x.shape[:2], emb.shape[-1])).astype(x.dtype)


def down_widths(config: UNetConfig, level: int) -> list[tuple[int, int]]:
    """Input and output channels of a level's residual blocks on the way down."""
    out = config.channels[level]
    return [(config.channels[max(0, level - 1)], out)] + [(out, out)] * (config.num_res_blocks - 1)


def up_widths(config: UNetConfig, level: int) -> list[tuple[int, int]]:
    """Input and output channels of a level's residual blocks on the way up, in the order of execution.

    Every block takes what the previous one made and one skip; skips arrive in reverse order of their making.
    """
    channels, out = config.channels, config.channels[level]
    below = channels[min(level + 1, len(channels) - 1)]
    skips = [out] * config.num_res_blocks + [channels[max(0, level - 1)]]
    made = [below] + [out] * config.num_res_blocks
    return [(a + b, out) for a, b in zip(made, skips, strict=True)]


def _pairs(stage: Stage) -> list[tuple[VideoResBlock, Transformer | None]]:
    """The residual blocks of a level, each with the transformer that follows it, if any."""
    transformers = list(stage.attn) or [None] * len(stage.res)
    return list(zip(stage.res, transformers, strict=True))
