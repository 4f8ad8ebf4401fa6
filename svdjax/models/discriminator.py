"""The patch-wise temporal discriminator against which the temporal decoder is finetuned."""

from dataclasses import dataclass
from itertools import pairwise

import jax
from flax import nnx

from svdjax.models.layers import GroupNorm, TemporalConv, check_norm_groups
from svdjax.typing import Array, Float


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Attributes:
        channels: of each layer, each of half the rows and columns of the one before. The three of the default see
            patches of 22 x 22 pixels and seven frames.
        norm_groups: of every group norm.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    norm_groups: int = 32

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: the channels do not divide into the groups.
        """
        check_norm_groups("DiscriminatorConfig", self.channels, self.norm_groups)


class Layer(nnx.Module):
    """Half the rows and columns, then a look at the frames beside: a 3-D convolution in two factors."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, rngs: nnx.Rngs) -> None:
        self.spatial = nnx.Conv(in_channels, out_channels, (4, 4), strides=2, padding=1, rngs=rngs)
        self.temporal = TemporalConv(out_channels, out_channels, rngs=rngs)
        self.norm = GroupNorm(out_channels, groups=groups, eps=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c2"]:
        return jax.nn.leaky_relu(self.norm(self.temporal(self.spatial(x))), 0.2)


class Discriminator(nnx.Module):
    """Says of each patch of a video whether it is real (arXiv 2304.08818, section 3.1.1, which gives no sizes)."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs) -> None:
        widths = (3, *config.channels)
        self.layers = nnx.List(Layer(a, b, groups=config.norm_groups, rngs=rngs) for a, b in pairwise(widths))
        self.out = nnx.Linear(widths[-1], 1, rngs=rngs)

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h2 w2"]:
        """Logits, positive for patches taken for real; videos in about [-1, 1]."""
        for layer in self.layers:
            video = layer(video)
        return self.out(video)[..., 0]
