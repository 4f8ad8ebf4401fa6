"""LoRAs for sampling, each ``FILE`` or ``FILE:SCALE``: merged into a checkpoint that is not read yet."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from svdjax.conversion.checkpoint import Checkpoint
from svdjax.conversion.lora import read_lora
from svdjax.conversion.tensors import Tensor
from svdjax.errors import UserError
from svdjax.models.lora import LoRA, check_fits, update_of
from svdjax.sampling.options import ASSETS
from svdjax.typing import ndarray


def apply_loras(checkpoint: Checkpoint, specs: Sequence[str]) -> Checkpoint:
    """The same checkpoint with LoRAs in its UNet; their updates add up.

    They are added in float32 when the weights are read, before these are cast to the type to compute in: added to
    bfloat16 weights, small updates would be rounded away.

    Args:
        checkpoint: opened, not read yet.
        specs: each a file or the name of a bundled one, or ``FILE:SCALE`` with how strongly it acts (1 if left out;
            below 0 the opposite).

    Raises:
        UserError: a file is unusable or belongs to another model.
    """
    for spec in specs:
        path, scale = parse_lora(spec)
        lora = read_lora(path, checkpoint.config.unet)
        check_fits(lora, checkpoint.params, what=str(path))
        kernels = {f"{layer}.kernel": layer for layer in lora.layers}
        merged = {name: _merged(checkpoint.params[name], lora, layer, scale) for name, layer in kernels.items()}
        checkpoint = replace(checkpoint, params={**checkpoint.params, **merged})
    return checkpoint


def parse_lora(spec: str) -> tuple[Path, float]:
    """The file that a spec names, or the bundled one of that name where there is none; and the scale.

    Raises:
        UserError: the scale is no finite number.
    """
    file, colon, scale = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return _located(spec), 1.0
    try:
        value = float(scale)
    except ValueError:
        raise UserError(f"--lora {spec}: no such file, and {scale} is no scale: give FILE or FILE:SCALE") from None
    if not np.isfinite(value):
        raise UserError(f"--lora {spec}: the scale must be a finite number (1 is as trained)")
    return _located(file), value


def _located(file: str) -> Path:
    bundled = ASSETS / file
    return bundled if bundled.is_file() and not Path(file).exists() else Path(file)


def _merged(kernel: Tensor, lora: LoRA, layer: str, scale: float) -> Tensor:
    return replace(kernel, dtype=np.dtype(np.float32), load=partial(_load_merged, kernel, lora, layer, scale))


def _load_merged(kernel: Tensor, lora: LoRA, layer: str, scale: float) -> ndarray:
    return kernel.load().astype(np.float32) + update_of(lora, layer, scale)
