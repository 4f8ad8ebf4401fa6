"""Residual blocks: convolutional in space, in time, and a learned blend of both."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from svdjax.models.layers import GroupNorm, TemporalConv, alpha_blend, conv3x3
from svdjax.models.sharding import constrain
from svdjax.typing import Array, Bool, Float

Blend = Literal["spatial", "temporal"]


class ResBlock(nnx.Module):
    """Norm, SiLU, conv, (+ embedding), norm, SiLU, conv, + shortcut; in space, or over frames."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        emb_dim: int | None = None,
        eps: float = 1e-6,
        temporal: bool = False,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            groups: of the group norms.
            emb_dim: width of the time embedding that is added between the convolutions; None for none.
            eps: of both group norms.
            temporal: convolve over three frames with norm statistics over the whole video, instead of 3x3
                and per image.
            zero_init: start the last convolution at zero, so that the block starts as its shortcut.
            rngs: random keys for the parameters.
        """
        conv = TemporalConv if temporal else conv3x3
        self.norm1 = GroupNorm(in_channels, groups=groups, eps=eps, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, rngs=rngs)
        if emb_dim is not None:
            self.emb = nnx.Linear(emb_dim, out_channels, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups=groups, eps=eps, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, zero_init=zero_init, rngs=rngs)
        if in_channels != out_channels:
            self.shortcut = nnx.Conv(in_channels, out_channels, (1, 1), rngs=rngs)

    def __call__(
        self, x: Float[Array, "b *t h w c"], emb: Float[Array, "b *t e"] | None = None
    ) -> Float[Array, "b *t h w c_out"]:
        """Apply to images ``[b, h, w, c]``, or to videos ``[b, t, h, w, c]`` where the block is temporal."""
        h = constrain(self.conv1(jax.nn.silu(self.norm1(x))))
        if emb is not None:
            h = h + self.emb(jax.nn.silu(emb))[..., None, None, :]
        h = constrain(self.conv2(jax.nn.silu(self.norm2(h))))
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + h


class VideoResBlock(nnx.Module):
    """A spatial block per frame, a temporal block on its output, and a learned blend of the two.

    From Align your Latents (arXiv 2304.08818, section 3.1), as kept by SVD (2311.15127). ``alpha`` weighs
    the spatial stream in the UNet and the temporal stream in the VAE decoder: ``alpha_of`` says which.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        emb_dim: int | None = None,
        eps: tuple[float, float] = (1e-6, 1e-5),
        temporal: bool = True,
        alpha_of: Blend = "spatial",
        mix_init: float = 0.5,
        zero_init: tuple[bool, bool] = (True, True),
        rngs: nnx.Rngs,
    ) -> None:
        """Build the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            groups: of the group norms.
            emb_dim: width of the time embedding; None for none.
            eps: of the spatial and the temporal group norms.
            temporal: False leaves only the spatial block (an image model).
            alpha_of: the stream that ``alpha = sigmoid(mix_factor)`` weighs.
            mix_init: first value of ``mix_factor``.
            zero_init: start the last spatial / temporal convolution at zero.
            rngs: random keys for the parameters.
        """
        sizes = {"groups": groups, "emb_dim": emb_dim}
        self.spatial = ResBlock(in_channels, out_channels, **sizes, eps=eps[0], zero_init=zero_init[0], rngs=rngs)
        self.alpha_of = alpha_of
        if temporal:
            self.temporal = ResBlock(
                out_channels,
                out_channels,
                **sizes,
                eps=eps[1],
                temporal=True,
                zero_init=zero_init[1],
                rngs=rngs,
            )
            self.mix_factor = nnx.Param(jnp.full((1,), mix_init))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        emb: Float[Array, "b t e"] | None = None,
        image_only: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w c_out"]:
        """Apply to a video.

        Args:
            x: features.
            emb: time embedding, per frame.
            image_only: frames whose temporal stream is ignored (they are images, not parts of a video).
        """
        b, t = x.shape[:2]
        folded_emb = None if emb is None else emb.reshape(b * t, -1)
        spatial = self.spatial(x.reshape(b * t, *x.shape[2:]), folded_emb)
        spatial = spatial.reshape(b, t, *spatial.shape[1:])
        if not hasattr(self, "temporal"):
            return spatial
        temporal = self.temporal(spatial, emb)
        if self.alpha_of == "temporal":
            return alpha_blend(self.mix_factor[...], temporal, spatial)
        keep = None if image_only is None else image_only[:, :, None, None, None]
        return alpha_blend(self.mix_factor[...], spatial, temporal, keep)
