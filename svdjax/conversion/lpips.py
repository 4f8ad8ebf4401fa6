"""LPIPS weights: the state dict of the ``lpips`` package's VGG variant, saved as safetensors."""

from pathlib import Path

import numpy as np

from svdjax.conversion.mapping import Entry, Layout, conv2d, to_ours
from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.conversion.tensors import checked
from svdjax.errors import UserError
from svdjax.models.lpips import LPIPSConfig

_WEIGHT = Layout("1x1 to one channel", lambda xs: (xs[0][0, :, 0, 0],), lambda xs: (xs[0][None, :, None, None],))
# What else that state dict holds: the heads under a second name, and constants.
_REPEATED = ("lins.", "scaling_layer.")


def read_lpips(path: Path, config: LPIPSConfig | None = None) -> dict[str, np.ndarray]:
    """Parameters of `models.lpips.LPIPS` by dotted path.

    Args:
        path: a safetensors file of ``lpips.LPIPS(net="vgg").state_dict()``. config: sizes, if not VGG-16's.

    Raises:
        UserError: no such file, or other weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of LPIPS weights: docs/temporal_decoder.md says how to make it")
    tensors, _ = read_safetensors(path)
    kept = {key: checked(tensor) for key, tensor in tensors.items() if not key.startswith(_REPEATED)}
    flat = to_ours(lpips_table(config or LPIPSConfig()), kept, what=str(path))
    return {name: tensor.load().astype(np.float32) for name, tensor in flat.items()}


def lpips_table(config: LPIPSConfig) -> list[Entry]:
    """Rows of the network and of its heads."""
    rows, layer = [], 0
    for number, widths in enumerate(config.blocks):
        layer += number > 0  # the pooling between blocks
        for place in range(len(widths)):
            rows += conv2d(f"blocks.{number}.{place}", f"net.slice{number + 1}.{layer}")
            layer += 2  # the convolution and its ReLU
        rows.append(Entry((f"weights.{number}",), (f"lin{number}.model.1.weight",), _WEIGHT))
    return rows
