"""Array aliases and the axis vocabulary shared by every module.

Every array is annotated with jaxtyping, e.g. ``Float[Array, "b t h w c"]``. The letters always mean:

====  =========================================================================
b     batch (videos, or images where there is no ``t``)
t     frames
h w   rows and columns, of pixels or of latents
c     channels, always last
n d   attention heads, and the width of one head
s     tokens of a sequence (context tokens, or queries in attention)
v     width of the vector conditioning
====  =========================================================================

Videos are ``b t h w c`` everywhere; frames are folded into the batch only inside the block that needs it.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree, Shaped, UInt8, UInt32
from numpy import ndarray

AnyArray = Array | ndarray  # on a device, or on the host

__all__ = ["AnyArray", "Array", "Bool", "Float", "Int", "Key", "PyTree", "Shaped", "UInt8", "UInt32", "ndarray"]
