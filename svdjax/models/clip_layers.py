"""The pre-norm transformer block that both towers of OpenCLIP ViT-H/14 are made of."""

import jax
import jax.numpy as jnp
from flax import nnx

from svdjax.models.attention import attention
from svdjax.typing import Array, Float

EPSILON = 1e-5  # torch's default for LayerNorm; flax's is 1e-6


def layer_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm with torch's epsilon."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def causal_attention(
    q: Float[Array, "b s n d"], k: Float[Array, "b s n d"], v: Float[Array, "b s n d"]
) -> Float[Array, "b s n d"]:
    """Attention of each token over itself and those before it; softmax at least in float32.

    Written plainly: 77 tokens are too few for a blocked kernel to pay, and JAX's own drops float64 to float32.
    """
    scores = jnp.einsum("bsnd,btnd->bnst", q * q.shape[-1] ** -0.5, k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    seen = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("bnst,btnd->bsnd", weights, v)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases, over all tokens or over the earlier ones (``causal``)."""

    def __init__(self, width: int, heads: int, *, causal: bool, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.causal = causal
        self.q = nnx.Linear(width, width, rngs=rngs)
        self.k = nnx.Linear(width, width, rngs=rngs)
        self.v = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        b, s, c = x.shape
        q, k, v = (project(x).reshape(b, s, self.heads, -1) for project in (self.q, self.k, self.v))
        mixed = causal_attention(q, k, v) if self.causal else attention(q, k, v)
        return self.out(mixed.reshape(b, s, c))


class MLP(nnx.Module):
    """Two linear layers around the exact GELU (the erf form; OpenCLIP never used the tanh one)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, width: int, heads: int, mlp_dim: int, *, causal: bool, rngs: nnx.Rngs) -> None:
        self.norm1 = layer_norm(width, rngs=rngs)
        self.attn = SelfAttention(width, heads, causal=causal, rngs=rngs)
        self.norm2 = layer_norm(width, rngs=rngs)
        self.mlp = MLP(width, mlp_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def table(shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Param:
    """A learned table (positions, class token, projection), drawn from N(0, 0.02^2)."""
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))
