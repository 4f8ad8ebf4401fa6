"""The spatio-temporal transformer: attention within frames, to the context, and over frames."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from svdjax.models.attention import Attention
from svdjax.models.layers import EmbeddingMLP, GroupNorm, alpha_blend, sinusoidal_embedding
from svdjax.models.remat import Recomputed, call
from svdjax.models.sharding import constrain
from svdjax.typing import Array, Bool, Float


class FeedForward(nnx.Module):
    """Linear, GEGLU (arXiv 2002.05202), linear, with an inner width of four times the outer one."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.proj_in = nnx.Linear(dim, 8 * dim, rngs=rngs)
        self.proj_out = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "*lead c"]) -> Float[Array, "*lead c"]:
        """Apply to every token; the first half of the inner projection is the value, the second its gate."""
        value, gate = jnp.split(self.proj_in(x), 2, axis=-1)
        return self.proj_out(value * jax.nn.gelu(gate, approximate=False))


def _layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each pre-normed and residual.

    The temporal kind attends over frames instead of within them and has one more feed-forward in front.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        context_dim: int,
        temporal: bool,
        remat: tuple[Recomputed, ...] = (),
        rngs: nnx.Rngs,
    ) -> None:
        self.is_temporal = temporal
        self.remat = remat
        if temporal:
            self.norm_in = _layer_norm(dim, rngs)
            self.ff_in = FeedForward(dim, rngs=rngs)
        self.norm1 = _layer_norm(dim, rngs)
        self.attn1 = Attention(dim, head_dim=head_dim, rngs=rngs)
        self.norm2 = _layer_norm(dim, rngs)
        self.attn2 = Attention(dim, head_dim=head_dim, context_dim=context_dim, rngs=rngs)
        self.norm3 = _layer_norm(dim, rngs)
        self.ff = FeedForward(dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], context: Float[Array, "b s_k c_k"]
    ) -> Float[Array, "b t h w c"]:
        """Apply to the tokens of a video; its frames share the context tokens."""
        feed = partial(call, recompute="feed_forward" in self.remat)
        if self.is_temporal:
            x = x + feed(self.ff_in, self.norm_in(x))
        attend = self.attn1.over_frames if self.is_temporal else self.attn1.within_frames
        x = x + attend(self.norm1(x))
        x = x + self.attn2.to_context(self.norm2(x), context)
        return x + feed(self.ff, self.norm3(x))


class Transformer(nnx.Module):
    """Norm, linear, spatial block, temporal block, blend, linear, + input. Only here frames have positions."""

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        head_dim: int,
        context_dim: int,
        temporal: bool = True,
        remat: tuple[Recomputed, ...] = (),
        rngs: nnx.Rngs,
    ) -> None:
        """Build the blocks, with that many ``groups`` in the norm; without ``temporal`` an image model's."""
        self.remat = remat
        self.norm = GroupNorm(channels, groups=groups, eps=1e-6, rngs=rngs)
        self.proj_in = nnx.Linear(channels, channels, rngs=rngs)
        sizes = {"head_dim": head_dim, "context_dim": context_dim, "remat": remat}
        self.spatial = TransformerBlock(channels, **sizes, temporal=False, rngs=rngs)
        if temporal:
            self.temporal = TransformerBlock(channels, **sizes, temporal=True, rngs=rngs)
            self.frame_embed = EmbeddingMLP(channels, 4 * channels, channels, rngs=rngs)
            self.mix_factor = nnx.Param(jnp.full((1,), 0.5))
        self.proj_out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        context: Float[Array, "b s c_k"],
        temporal_context: Float[Array, "b s_t c_k"] | None = None,
        image_only: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Apply to a video.

        Args:
            x: features.
            context: tokens for the spatial cross-attention, and for the temporal one if it has none of its own.
            temporal_context: other tokens for the temporal cross-attention.
            image_only: frames whose temporal stream is ignored (they are images, not parts of a video).
        """
        t = x.shape[1]
        tokens = self.norm(x.reshape(-1, *x.shape[2:])).reshape(x.shape)
        spatial, temporal = (partial(call, recompute=kind in self.remat) for kind in ("spatial", "temporal"))
        tokens = spatial(self.spatial, self.proj_in(tokens), context=context)
        if hasattr(self, "temporal"):
            moving = temporal(
                self.temporal,
                tokens + self._frame_positions(t, x.dtype),
                context=context if temporal_context is None else temporal_context,
            )
            keep = None if image_only is None else image_only[:, :, None, None, None]
            tokens = alpha_blend(self.mix_factor[...], tokens, moving, keep)
        return constrain(x + self.proj_out(tokens))

    def _frame_positions(self, frames: int, dtype: jnp.dtype) -> Float[Array, "t 1 1 c"]:
        # Sinusoids at least float32. They reach the temporal block alone, not the other side of the blend.
        indices = jnp.arange(frames, dtype=jnp.promote_types(dtype, jnp.float32))
        channels = self.proj_in.kernel.shape[0]
        return self.frame_embed(sinusoidal_embedding(indices, channels))[:, None, None].astype(dtype)
