"""Rematerialisation: blocks whose activations are recomputed in the backward pass instead of being kept."""

from typing import Literal

import jax
from flax import nnx

from svdjax.typing import Array

# The kinds of block of a UNet. "transformer" is a whole one, of which only the input is kept; "spatial" and
# "temporal" are its halves, recomputed one at a time, and "feed_forward" the layers of that name in them.
Recomputed = Literal["residual", "transformer", "spatial", "temporal", "feed_forward"]
BLOCKS: tuple[Recomputed, ...] = ("residual", "transformer")


def call(block: nnx.Module, x: Array, *, recompute: bool, **inputs: Array | None) -> Array:
    """``block(x, **inputs)``; with ``recompute`` only the inputs are kept for the backward pass."""
    if not recompute:
        return block(x, **inputs)
    graphdef, state = nnx.split(block)
    return jax.checkpoint(lambda state, x, inputs: nnx.merge(graphdef, state)(x, **inputs))(state, x, inputs)
