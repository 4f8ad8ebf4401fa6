"""From a frame to what the CLIP image tower sees: antialiased resize to a square, then normalisation.

Both references blur with a Gaussian and resample bicubically. Each step is linear and separable, so here each
axis is one small matrix, computed once in float64: ``rows @ image @ columns``.
"""

from functools import lru_cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.errors import UserError
from svdjax.typing import Array, Float, ndarray

Mode = Literal["sgm", "diffusers"]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CUBIC_A = -0.75  # torch's bicubic coefficient (Keys' own choice is -0.5)


def preprocess(
    images: Float[Array, "b h w 3"], *, mode: Mode = "sgm", size: int = 224
) -> Float[Array, "b size size 3"]:
    """Resize and normalise frames for the CLIP image tower; the whole frame is squashed, nothing is cropped.

    Args:
        images: pixels in [-1, 1].
        mode: ``"sgm"`` (kornia) blurs only if some axis shrinks; ``"diffusers"``
            (``StableVideoDiffusionPipeline``) always goes through the blur. They agree on pictures of two
            pixels or more a side, for an axis that does not shrink gets a blur of sigma 0.001: none.
        size: side of the tower's input in pixels.

    Returns:
        Pixels minus CLIP's mean over CLIP's deviation, float32, or float64 for float64 images.

    Raises:
        UserError: the picture is too small to be reflected at its edges.
    """
    _, height, width, _ = images.shape
    blur = mode == "diffusers" or max(height, width) > size
    if blur and min(height, width) < 2:
        raise UserError(f"a picture of {height}x{width} pixels is too small for CLIP: each side needs at least 2")
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    rows, columns = (jnp.asarray(resize_matrix(n, size, blur), dtype) for n in (height, width))
    # The two matmuls are a few hundred MFLOP: full precision on accelerators costs nothing that one notices.
    square = jnp.einsum(
        "ph,bhwc,qw->bpqc", rows, images.astype(dtype), columns, precision=jax.lax.Precision.HIGHEST
    )
    return ((square + 1) / 2 - jnp.asarray(MEAN, dtype)) / jnp.asarray(STD, dtype)


@lru_cache(maxsize=32)
def resize_matrix(n: int, size: int, blur: bool) -> Float[ndarray, "size n"]:
    """The float64 matrix that takes an axis of ``n`` pixels to ``size``: Gaussian blur, then bicubic."""
    matrix = bicubic_matrix(n, size)
    return matrix @ blur_matrix(n, gaussian_kernel(n / size)) if blur else matrix


def gaussian_kernel(factor: float) -> Float[ndarray, " k"]:
    """kornia's kernel for an axis that shrinks by ``factor``: sigma is (factor - 1) / 2.

    The length is about 4 sigma, odd and at least 3; sigma is at least 0.001, which leaves the image as it is.
    """
    sigma = max((factor - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1
    weights = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def blur_matrix(n: int, kernel: Float[ndarray, " k"]) -> Float[ndarray, "n n"]:
    """The matrix that correlates an axis with an odd kernel; edges are reflected (``numpy.pad``'s way)."""
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    source = np.abs(np.arange(n)[:, None] + offsets)
    source = (n - 1) - np.abs((n - 1) - source)
    return _gathering(n, source, np.broadcast_to(kernel, source.shape))


def bicubic_matrix(n: int, size: int) -> Float[ndarray, "size n"]:
    """The matrix of torch's bicubic with ``align_corners=True``: first and last pixels stay in place."""
    position = np.arange(size) * ((n - 1) / (size - 1))
    first = np.floor(position).astype(int)
    offsets = np.arange(-1, 3)
    weights = _cubic(position[:, None] - first[:, None] - offsets)
    return _gathering(n, np.clip(first[:, None] + offsets, 0, n - 1), weights)


def _cubic(x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Keys' cubic convolution kernel (1981, eq. 4, here with a = -0.75)."""
    x, a = np.abs(x), CUBIC_A
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _gathering(n: int, source: ndarray, weights: ndarray) -> Float[ndarray, "m n"]:
    """The matrix whose row i sums ``weights[i, j]`` times pixel ``source[i, j]``; repeated pixels add up."""
    matrix = np.zeros((len(source), n))
    np.add.at(matrix, (np.arange(len(source))[:, None], source), weights)
    return matrix
