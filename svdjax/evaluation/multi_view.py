"""Generated views against the true ones, as on GSO (arXiv 2311.15127, section 4.5): CLIP similarity.

The paper's protocol: 50 objects of Google Scanned Objects, 21 views of each, 576x576 pixels; every metric, also
`reconstruction.psnr` and `ssim`, is taken of a generated view and its true one, and averaged over all of them.
"""

from collections.abc import Callable

import numpy as np

from svdjax.typing import Array, Float, UInt8, ndarray


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
