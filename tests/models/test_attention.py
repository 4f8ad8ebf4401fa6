"""Every form of attention against the formula, its gradients and memory, and the TPU kernel's use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from svdjax.models import attention as module
from svdjax.models.attention import Attention, attention, frame_attention


def formula(q, k, v):
    scores = np.einsum("bsnd,bknd->bnsk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnsk,bknd->bsnd", weights, v)


def normals(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("s", "s_k"), [(9, 9), (700, 700), (700, 77), (1501, 1500)])
def test_attention_is_the_formula(s, s_k):
    q, k, v = normals(s, (2, s, 3, 16), (2, s_k, 3, 16), (2, s_k, 3, 16))
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), formula(q, k, v), atol=2e-5)


@pytest.mark.parametrize("budget", [256 * 600, 600 * 600, 2 * 600 * 600, 2**30])
def test_blocks_give_the_same_values_and_gradients_as_whole_scores(budget):
    """A head in three blocks of 200 queries, whole, two heads together, and all."""
    qkv = normals(1, *[(2, 600, 2, 8)] * 3)

    def loss(attend):
        return lambda qkv: (jnp.sin(attend(*qkv)) ** 2).sum()

    whole = jax.jit(jax.value_and_grad(loss(module._whole)))(qkv)
    blocked = jax.jit(jax.value_and_grad(loss(lambda q, k, v: module._blocked(q, k, v, budget))))(qkv)
    for a, b in zip(jax.tree.leaves(blocked), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_memory_of_the_backward_pass_stays_far_below_one_score_matrix():
    shape = jax.ShapeDtypeStruct((1, 8192, 2, 16), jnp.float32)
    gradient = jax.jit(jax.grad(lambda qkv: attention(*qkv).sum()))
    used = gradient.lower((shape,) * 3).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.2 * 2 * 8192**2 * 4


def test_half_precision_scores_are_summed_in_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in normals(2, *[(1, 1200, 2, 16)] * 3))
    out = attention(q, k, v)
    exact = formula(*(np.asarray(x, np.float32) for x in (q, k, v)))
    assert out.dtype == jnp.bfloat16
    assert np.abs(np.asarray(out, np.float32) - exact).max() < 0.03


def test_frame_attention_is_attention_of_each_site_alone():
    q, k, v = normals(3, *[(2, 5, 7, 3, 8)] * 3)
    expected = np.stack([formula(*(np.asarray(x[:, :, site]) for x in (q, k, v))) for site in range(7)], axis=2)
    np.testing.assert_allclose(frame_attention(q, k, v), expected, atol=2e-5)


def test_under_a_mesh_each_device_attends_to_its_share_without_communication():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    qkv = normals(4, *[(8, 700, 1, 16)] * 3)
    expected = formula(*map(np.asarray, qkv))
    with jax.set_mesh(mesh):
        split = jax.device_put(qkv, jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        compiled = jax.jit(attention).lower(*split).compile()
        np.testing.assert_allclose(compiled(*split), expected, atol=2e-5)
        hlo = compiled.as_text()
        assert not any(word in hlo for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
        odd = jax.jit(attention)(*(x[:3] for x in qkv))
    np.testing.assert_allclose(odd, expected[:3], atol=2e-5)


@pytest.mark.parametrize(("tokens", "block"), [(9216, 1152), (2304, 1152), (5184, 768), (2880, 1024)])
def test_splash_blocks_pad_least(tokens, block):
    assert module._splash_block(tokens) == block


def test_splash_with_padding_is_the_formula():
    """The TPU kernel in interpret mode, 600 tokens in blocks of 768."""
    qkv = normals(6, *[(1, 600, 2, 64)] * 3)
    out = jax.jit(lambda q, k, v: module._splash(q, k, v, interpret=True))(*qkv)
    np.testing.assert_allclose(out, formula(*map(np.asarray, qkv)), atol=2e-5)


@pytest.mark.parametrize("tokens", [2304, 2880])
def test_tpu_programs_of_many_tokens_use_the_splash_kernel(tokens):
    """Lowered for a TPU on this host: padded (2880) or not, and with its backward pass."""
    shape = jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda qkv: attention(*qkv).astype(jnp.float32).sum()))
    text = gradient.trace((shape,) * 3).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 3
    few = jax.ShapeDtypeStruct((1, 576, 2, 64), jnp.bfloat16)
    text = jax.jit(attention).trace(few, few, few).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in text


def test_one_context_token_needs_neither_queries_nor_keys():
    block = Attention(16, head_dim=8, context_dim=12, rngs=nnx.Rngs(0))
    x, context = normals(5, (2, 3, 2, 2, 16), (2, 1, 12))
    constant = block.to_context(x, context)
    assert constant.shape == (2, 1, 1, 1, 16)
    # The same token twice cannot change a weighted mean, but takes the general path.
    general = block.to_context(x, jnp.repeat(context, 2, axis=1))
    np.testing.assert_allclose(np.broadcast_to(constant, general.shape), general, atol=1e-5)
