"""A whole model spread over the mesh."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from svdjax.conversion.source import open_checkpoint, read_arrays
from svdjax.models.params import abstract, cast_floating, draw_params, flat_params, load_flat
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training.sharding import AtRest, gather, param_shardings, place
from svdjax.typing import Array


def svd_shapes(config: SVDConfig) -> SVD:
    """The module of a configuration, without values."""
    return abstract(SVD, config)


@dataclass(frozen=True)
class Model:
    """A model's configuration, and its parameters by dotted path, each on all devices together.

    Attributes:
        params: those that a stage has frozen may be at rest after it.
        structure: makes the module without values; a stage may add parameters to it.
    """

    config: SVDConfig
    params: Mapping[str, Array | AtRest]
    structure: Callable[[SVDConfig], SVD] = svd_shapes

    @property
    def shapes(self) -> SVD:
        """The module without values."""
        return self.structure(self.config)

    @property
    def module(self) -> SVD:
        """The module, for compiled functions that run on the mesh; no parameter may be at rest."""
        return load_flat(self.shapes, self.params, what="the model")

    def whole(self, dtype: str = "float32") -> SVD:
        """All of it in this process's memory, in a type; all processes have to call this together."""
        arrays = {path: cast_floating(gather(value), jnp.dtype(dtype)) for path, value in self.params.items()}
        return load_flat(self.shapes, arrays, what="the model")


def read(path: Path, mesh: Mesh) -> Model:
    """Read a checkpoint onto the mesh in float32, without filling one device with it."""
    checkpoint = open_checkpoint(path).cast(np.dtype(np.float32))
    return Model(checkpoint.config, place(dict(read_arrays(checkpoint.params)), mesh))


def drawn(config: SVDConfig, paths: Iterable[str], seed: int, mesh: Mesh) -> dict[str, Array]:
    """Random float32 values of some parameters of a model, made where they belong."""
    paths = set(paths)
    if not paths:
        return {}
    shapes = {path: shape for path, shape in flat_params(abstract(SVD, config)).items() if path in paths}

    def draw(key: Array) -> dict[str, Array]:
        return {path: value for path, value in draw_params(SVD, config, key).items() if path in paths}

    return jax.jit(draw, out_shardings=param_shardings(shapes, mesh))(jax.random.key(seed))
