"""Attention: one entry for sequences, one for frames, in the form that suits the platform, and the module.

The platform is the one that a computation is *lowered* for, so a program compiled ahead of time for a TPU on
a CPU host gets the TPU's kernel.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import PartitionSpec

from svdjax.models.sharding import shared_axes, spec_of
from svdjax.typing import Array, Float

# Score matrices of up to this many numbers are made whole: 7 M on a CPU, 512 M (2 GiB in float32) elsewhere.
_WHOLE_ON_CPU = 7 * 2**20
_WHOLE_ON_ACCELERATOR = 2**29
# Beyond that, one block of scores has about this many numbers; on a CPU it should stay in cache.
_BLOCK_ON_CPU = 2**21
_BLOCK_ON_ACCELERATOR = 2**24
# Splash beats XLA's attention on TPU from 2304 tokens; at 9216 the latter does not even fit.
_SPLASH_TOKENS = 2304
_SPLASH_BLOCKS = (1152, 1024, 768, 512)


def attention(
    q: Float[Array, "b *s n d"], k: Float[Array, "b *s_k n d"], v: Float[Array, "b *s_k n d"]
) -> Float[Array, "b *s n d"]:
    """``softmax(q k^T / sqrt(d)) v`` per head, with memory linear in the number of tokens where that matters.

    Under a mesh (``jax.set_mesh``) each device works on its share of the batch and of the columns of queries, and
    sees all keys: so none of the loops and kernels below ever spans devices.

    Args:
        q: queries, one after the other or as an image ``[b, h, w, n, d]``.
        k: keys, likewise.
        v: values.

    Returns:
        The attended values in the dtype of ``q``.
    """
    queries = spec_of(q.shape, "b h w n d" if q.ndim == 5 else "b ...")
    if not shared_axes():
        return _attention_on_one_device(q, k, v)
    keys = PartitionSpec(queries[0])
    return jax.shard_map(
        _attention_on_one_device, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False
    )(q, k, v)


def _attention_on_one_device(q: Array, k: Array, v: Array) -> Array:
    accelerator = _cudnn_or_xla if jax.default_backend() == "gpu" else _whole_or_blocked_on_accelerator
    sequences = (x.reshape(len(x), -1, *x.shape[-2:]) for x in (q, k, v))
    out = lax.platform_dependent(*sequences, cpu=_whole_or_blocked_on_cpu, tpu=_splash_or_xla, default=accelerator)
    return out.reshape(q.shape)


def _scores(q: Array, k: Array) -> int:
    return q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]


def _whole_or_blocked_on_cpu(q: Array, k: Array, v: Array) -> Array:
    if _scores(q, k) <= _WHOLE_ON_CPU:
        return _whole(q, k, v)
    return _blocked(q, k, v, _BLOCK_ON_CPU)


def _whole_or_blocked_on_accelerator(q: Array, k: Array, v: Array) -> Array:
    if _scores(q, k) <= _WHOLE_ON_ACCELERATOR:
        return _whole(q, k, v)
    return _blocked(q, k, v, _BLOCK_ON_ACCELERATOR)


def _cudnn_or_xla(q: Array, k: Array, v: Array) -> Array:
    # Traced only where a GPU is present: jax asks for the cuDNN version while tracing.
    if q.dtype.itemsize == 2 and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _whole_or_blocked_on_accelerator(q, k, v)


def _splash_or_xla(q: Array, k: Array, v: Array) -> Array:
    if k.shape[1] >= _SPLASH_TOKENS and q.shape[1] >= min(_SPLASH_BLOCKS) and q.shape[-1] <= 128:
        return _splash(q, k, v)
    return _whole_or_blocked_on_accelerator(q, k, v)


def _whole(q: Array, k: Array, v: Array) -> Array:
    # Not jax.nn.dot_product_attention, whose softmax is in float32 even for float64.
    return jax.vmap(jax.vmap(_softmax_matmul, in_axes=1, out_axes=1))(q, k, v)


def _blocked(q: Array, k: Array, v: Array, budget: int) -> Array:
    """A few heads at a time, or one head by blocks of queries; the backward pass recomputes the scores."""
    b, s, n, d = q.shape
    per_head = s * k.shape[1]
    sizes = (size for size in range(1, b * n + 1) if b * n % size == 0 and size * per_head <= budget)
    together = max(sizes, default=1)
    blocks = -(-per_head // budget)
    rows = -(-s // blocks)
    attend = jax.checkpoint(jax.vmap(_softmax_matmul))

    def heads(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        if blocks == 1:
            return attend(q, k, v)
        parts = jnp.pad(q, ((0, 0), (0, blocks * rows - s), (0, 0))).reshape(blocks, 1, rows, d)
        return lax.map(lambda part: attend(part, k, v), parts).reshape(1, -1, d)[:, :s]

    groups = tuple(x.transpose(0, 2, 1, 3).reshape(-1, together, x.shape[1], d) for x in (q, k, v))
    return lax.map(heads, groups).reshape(b, n, s, d).transpose(0, 2, 1, 3)


def _softmax_matmul(q: Float[Array, "s d"], k: Float[Array, "s_k d"], v: Float[Array, "s_k d"]) -> Array:
    # Scores at least float32, and divided by their sum only after the product with v: fewer passes over them.
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("sd,kd->sk", q, k, preferred_element_type=accumulate) / math.sqrt(q.shape[-1])
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("sk,kd->sd", weights.astype(v.dtype), v, preferred_element_type=accumulate)
    return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)


def _splash(q: Array, k: Array, v: Array, *, interpret: bool = False) -> Array:
    """JAX's flash kernel for TPU; tokens are padded to whole blocks, padding is masked by segment ids."""
    _, s, n, d = q.shape
    s_k = k.shape[1]
    rows, columns = _splash_block(s), _splash_block(s_k)
    q, k, v = _padded_heads(q / math.sqrt(d), rows), _padded_heads(k, columns), _padded_heads(v, columns)
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([splash_mask.FullMask((q.shape[2], k.shape[2]))] * n),
        block_sizes=_splash_sizes(rows, columns),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if k.shape[2] != s_k:
        padding = (jnp.arange(k.shape[2]) >= s_k).astype(jnp.int32)
        segments = splash.SegmentIds(jnp.zeros(q.shape[2], jnp.int32), padding)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(q, k, v)
    return out[:, :, :s].transpose(0, 2, 1, 3)


def _padded_heads(x: Array, block: int) -> Array:
    return jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))


def _splash_block(tokens: int) -> int:
    """The block length that pads least."""
    return min(_SPLASH_BLOCKS, key=lambda block: -tokens % block)


def _splash_sizes(rows: int, columns: int) -> splash.BlockSizes:
    return splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )


def frame_attention(
    q: Float[Array, "b t *s n d"], k: Float[Array, "b t *s n d"], v: Float[Array, "b t *s n d"]
) -> Float[Array, "b t *s n d"]:
    """Attention over the frames of every site, all to all.

    Sequences are a few tens of frames at many sites: bound by memory, so frames stay where they are instead
    of being moved next to the heads.
    """
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bt...nd,bu...nd->b...ntu", q, k, preferred_element_type=accumulate)
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1)
    return jnp.einsum("b...ntu,bu...nd->bt...nd", weights.astype(v.dtype), v)


class Attention(nnx.Module):
    """Multi-head attention of ``[b, t, h, w, c]`` tokens: within a frame, over frames, or to context tokens."""

    def __init__(self, dim: int, *, head_dim: int, context_dim: int | None = None, rngs: nnx.Rngs) -> None:
        """Build the projections; ``context_dim`` is the width of the tokens attended to, None for ``dim``."""
        self.head_dim = head_dim
        self.q = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
        self.k = nnx.Linear(context_dim or dim, dim, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(context_dim or dim, dim, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(dim, dim, rngs=rngs)

    def within_frames(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Every token attends to all tokens of its frame."""
        frames = x.reshape(-1, *x.shape[2:])
        q, k, v = (self._heads(project(frames)) for project in (self.q, self.k, self.v))
        return self.out(attention(q, k, v).reshape(x.shape))

    def over_frames(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Every token attends to the tokens at its site in all frames of its video."""
        q, k, v = (self._heads(project(x)) for project in (self.q, self.k, self.v))
        return self.out(frame_attention(q, k, v).reshape(x.shape))

    def to_context(
        self, x: Float[Array, "b t h w c"], context: Float[Array, "b s_k c_k"]
    ) -> Float[Array, "b t_or_1 h_or_1 w_or_1 c"]:
        """Every token attends to its video's context tokens; the result may have size 1 along t, h and w.

        A softmax over one key is 1. With a single context token (SVD's image embedding) the result is
        therefore the same vector for every query: ``q``, ``k`` and the norm in front have no effect whatever
        their weights, and are not computed. They are parameters all the same, for checkpoints have them.
        """
        if context.shape[1] == 1:
            return self.out(self.v(context))[:, None, None]
        b, t, h, w, c = x.shape
        q = self._heads(self.q(x.reshape(b, t * h, w, c)))
        k, v = self._heads(self.k(context)), self._heads(self.v(context))
        return self.out(attention(q, k, v).reshape(x.shape))

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)
