"""LPIPS, the distance between pictures that agrees best with what people see (Zhang et al., arXiv 1801.03924)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from svdjax.models.layers import conv3x3
from svdjax.typing import Array, Float

# Of the ImageNet pictures on which the network was trained, for values in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True, kw_only=True)
class LPIPSConfig:
    """Sizes of the network that is compared in: VGG-16's, in which nothing but a test wants anything else.

    Attributes:
        blocks: channels of the convolutions of each block; blocks are pooled between, and compared after each.
    """

    blocks: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)


class LPIPS(nnx.Module):
    """Squared differences of VGG-16's normalised features, weighted by channel, averaged over places."""

    def __init__(self, config: LPIPSConfig, *, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List()
        channels = 3
        for widths in config.blocks:
            block = nnx.List()
            for width in widths:
                block.append(conv3x3(channels, width, rngs=rngs))
                channels = width
            self.blocks.append(block)
        self.weights = nnx.List(nnx.Param(jnp.ones((widths[-1],))) for widths in config.blocks)

    def __call__(self, a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"]) -> Float[Array, " n"]:
        """Distance of each pair of pictures with values in [-1, 1]; 0 for equal ones, about 1 for unlike ones."""
        features = zip(self._features(a), self._features(b), self.weights, strict=True)
        return sum(jnp.mean(jnp.square(x - y) @ weight[...], axis=(1, 2)) for x, y, weight in features)

    def _features(self, images: Float[Array, "n h w 3"]) -> list[Float[Array, "n h2 w2 c"]]:
        """Each block's output, of length 1 at every place."""
        x = (images - jnp.array(_SHIFT, images.dtype)) / jnp.array(_SCALE, images.dtype)
        found = []
        for number, block in enumerate(self.blocks):
            x = _pooled(x) if number else x
            for conv in block:
                x = jax.nn.relu(conv(x))
            # Inside the root too, for its gradient at 0 is infinite.
            length = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-20)
            found.append(x / (length + 1e-10))
        return found


def _pooled(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
