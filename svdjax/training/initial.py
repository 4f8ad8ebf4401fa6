"""Interim."""
from dataclasses import dataclass
import numpy as np
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD, SVDConfig


@dataclass(frozen=True)
class Initial:
    config: SVDConfig
    loaded: dict[str, np.ndarray]
    new: tuple[str, ...]


def initial(config, console):
    return Initial(config.model, {}, tuple(flat_params(abstract(SVD, config.model))))
