"""Whole models as single files: what a stage leaves for the next one, and what a run leaves for the user."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from svdjax.conversion.checkpoint import Checkpoint
from svdjax.conversion.native import write_native_file
from svdjax.conversion.output import finished
from svdjax.conversion.tensors import Tensor
from svdjax.models.params import flat_params
from svdjax.models.svd import SVD


def save_model(model: SVD, path: Path, *, dtype: str = "float32") -> None:
    """Write a model's parameters and configuration as one ``.safetensors`` file; an older one is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {name: np.asarray(value.astype(jnp.dtype(dtype))) for name, value in flat_params(model).items()}
    params = {name: Tensor.of(name, array) for name, array in arrays.items()}
    checkpoint = Checkpoint(what=str(path), config=model.config, params=params)
    with finished(path, overwrite=True) as partial:
        write_native_file(checkpoint, partial, lambda _: None)
