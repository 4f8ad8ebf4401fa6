"""Reference networks with random weights of which none is zero, one or shared, and how far off we are."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill every parameter in place with random numbers and switch to evaluation.

    Matrices and kernels are scaled by their fan-in so that activations keep a sane size; vectors that start
    at one (norm weights) are drawn around 1, the others (biases, mix factors) around 0 with deviation 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            if x.ndim >= 2:
                value = noise / np.sqrt(max(1, x[0].numel()))
            else:
                around = 1.0 if name.endswith("weight") and bool((x == 1).all()) else 0.0
                value = around + 0.3 * noise
            x.copy_(value)
    return module.eval()


def tensors(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict as NumPy arrays."""
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def relative(a: object, b: object) -> float:
    """``max |a - b| / max |b|``: the largest difference in units of the reference's largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"{a.shape} against {b.shape}"
    return float(np.abs(a - b).max() / np.abs(b).max())


@contextmanager
def float64_sinusoids() -> Iterator[None]:
    """Let diffusers compute its timestep embeddings in float64: on its own it rounds them to float32."""

    def embedding(timesteps, dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
        half = dim // 2
        powers = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        angles = scale * timesteps.double()[:, None] * max_period**-powers
        parts = [angles.sin(), angles.cos()]
        return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=-1)

    with mock.patch("diffusers.models.embeddings.get_timestep_embedding", embedding):
        yield
