"""Generated views against the true ones: PSNR, SSIM and CLIP similarity, as on GSO (arXiv 2311.15127, section 4.5).

The paper's protocol: 50 objects of Google Scanned Objects, 21 views of each, 576x576 pixels; every metric is taken
of a generated view and its true one, and averaged over views and objects.
"""

from collections.abc import Callable

import numpy as np

from svdjax.errors import require
from svdjax.typing import Array, Float, UInt8, ndarray


def psnr(made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"]) -> Float[ndarray, "n t"]:
    """Peak signal-to-noise ratio of each view in dB: 10 log10(255^2 / mse); infinite where the views are equal."""
    error = np.mean((made.astype(np.float64) - true) ** 2, axis=(2, 3, 4))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def ssim(made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"]) -> Float[ndarray, "n t"]:
    """Structural similarity of each view, at most 1 (Wang et al. 2004, with their constants and Gaussian window).

    The window, of deviation 1.5 pixels and 11 wide, is slid over each colour; at the borders views are mirrored.

    Raises:
        UserError: SciPy is not installed.
    """
    gaussian = require("scipy.ndimage", "measure").gaussian_filter

    def blurred(x: ndarray) -> ndarray:
        return gaussian(x, sigma=(0, 0, 1.5, 1.5, 0), truncate=3.5)

    a, b = made.astype(np.float64), true.astype(np.float64)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return np.mean(similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)), axis=(2, 3, 4))


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
