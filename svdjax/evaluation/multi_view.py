"""Generated views against the true ones, as on GSO (arXiv 2311.15127, section 4.5): LPIPS and CLIP similarity.

The paper's protocol: 50 objects of Google Scanned Objects, 21 views of each, 576x576 pixels; each of its three
metrics, the third being `reconstruction.psnr`, is taken of a generated view and its true one, and averaged over all
of them.
"""

from collections.abc import Callable

import numpy as np
from flax import nnx

from svdjax.data.pipeline import to_unit
from svdjax.models.lpips import LPIPS
from svdjax.typing import Array, Float, UInt8, ndarray


def lpips(
    made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"], network: LPIPS
) -> Float[ndarray, "n t"]:
    """LPIPS between each view and its true one: 0 for equal ones.

    Args:
        network: with weights of the published package, see `conversion.lpips.read_lpips`.
    """
    return np.stack([np.asarray(_distance(network, *pair)) for pair in zip(made, true, strict=True)])


@nnx.jit  # here, so that one compilation serves all calls
def _distance(network: LPIPS, a: UInt8[Array, "t h w 3"], b: UInt8[Array, "t h w 3"]) -> Float[Array, " t"]:
    return network(to_unit(a), to_unit(b))


def clip_similarity(
    made: UInt8[ndarray, "n t h w 3"],
    true: UInt8[ndarray, "n t h w 3"],
    embed: Callable[[UInt8[ndarray, "k h w 3"]], Float[Array, "k d"] | Float[ndarray, "k d"]],
) -> Float[ndarray, "n t"]:
    """CLIP-S between images: the cosine of the angle between the embeddings of each view and its true one.

    Args:
        embed: pictures to the embeddings of a CLIP image tower.
    """

    def directions(views: UInt8[ndarray, "n t h w 3"]) -> Float[ndarray, "n t d"]:
        vectors = np.stack([np.asarray(embed(each), np.float64) for each in views])
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    return np.sum(directions(made) * directions(true), axis=-1)
