"""Videos against the true ones, frame by frame and from frame to frame: PSNR, SSIM and flicker."""

import numpy as np

from svdjax.errors import require
from svdjax.typing import Float, UInt8, ndarray


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


def flicker(made: UInt8[ndarray, "n t h w 3"], true: UInt8[ndarray, "n t h w 3"]) -> Float[ndarray, " n"]:
    """How much the error changes from frame to frame, in steps of 8-bit brightness; 0 where it stays the same.

    The mean over pixels and pairs of frames of |(made[t+1] - made[t]) - (true[t+1] - true[t])|: what shimmers in a
    video that should not, whatever moves in it.
    """
    error = made.astype(np.float64) - true
    return np.mean(np.abs(np.diff(error, axis=1)), axis=(1, 2, 3, 4))
