"""Rematerialisation: blocks whose activations are recomputed in the backward pass instead of being kept."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from svdjax.typing import Array, PyTree

# The kinds of block of a UNet. "transformer" is a whole one, of which only the input is kept; "spatial" and
# "temporal" are its halves, recomputed one at a time, and "feed_forward" the layers of that name in them. With
# "offload" what the residual blocks and transformers keep waits for the backward pass in the host's memory.
Recomputed = Literal["residual", "transformer", "spatial", "temporal", "feed_forward", "offload"]
BLOCKS: tuple[Recomputed, ...] = ("residual", "transformer")
_INPUT = "block input"
_OFFLOAD = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=(),
    names_which_can_be_offloaded=(_INPUT,),
    offload_src="device",
    offload_dst="pinned_host",
)


def call(block: nnx.Module, *xs: Array, recompute: bool, offload: bool = False, **inputs: Array | None) -> Array:
    """``block(x, **inputs)``, ``x`` being the arrays joined along their channels.

    Args:
        block: what to call.
        xs: one or several arrays.
        recompute: keep only the inputs for the backward pass; of several arrays not the joined one.
        offload: keep ``xs`` in the host's memory; without ``recompute`` there is no such thing.
        inputs: more arguments.
    """

    if not recompute:
        return block(_joined(xs), **inputs)
    graphdef, state = nnx.split(block)

    def run(state: PyTree, xs: tuple[Array, ...], inputs: dict[str, Array | None]) -> Array:
        kept = tuple(checkpoint_name(x, _INPUT) for x in xs)
        return nnx.merge(graphdef, state)(_joined(kept), **inputs)

    return jax.checkpoint(run, policy=_OFFLOAD if offload else None)(state, xs, inputs)


def _joined(xs: tuple[Array, ...]) -> Array:
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=-1)
