"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

from svdjax.typing import Array, Float, Int, PyTree


def ema_decay(step: Int[Array, ""], longest: float) -> Float[Array, ""]:
    """Decay after ``step`` updates: (1 + n) / (10 + n), at most ``longest``: a young average forgets fast."""
    n = step.astype(jnp.float32)
    return jnp.minimum(longest, (1 + n) / (10 + n))


def update_ema(ema: PyTree, params: PyTree, decay: Float[Array, ""]) -> PyTree:
    """``decay * ema + (1 - decay) * params``, leaf by leaf."""
    return jax.tree.map(lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old), ema, params)
