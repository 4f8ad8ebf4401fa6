"""Random weights for tests, drawn with NumPy: compiling the initialisers would take most of a test's time."""

import jax.numpy as jnp
import numpy as np

from svdjax.conversion.checkpoint import Checkpoint, shapes_of
from svdjax.conversion.tensors import Tensor
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.svd import SVD
from svdjax.training.sharding import place


def random_model(make, config, seed=0):
    """A module in which no parameter is zero or one: kernels scaled by their fan-in, norms around 1."""
    rng = np.random.default_rng(seed)
    module = abstract(make, config)
    flat = {path: jnp.asarray(_draw(rng, path, x.shape)) for path, x in flat_params(module).items()}
    return load_flat(module, flat, what="random weights")


def random_checkpoint(config, seed, dtype=np.float32):
    """The same for a whole model of any size: each parameter is drawn when it is read."""

    def tensor(number, path, shape):
        return Tensor(
            path,
            shape,
            np.dtype(dtype),
            lambda: _draw(np.random.default_rng((seed, number)), path, shape).astype(dtype),
        )

    shapes = flat_params(shapes_of(config)).items()
    params = {path: tensor(number, path, tuple(shape.shape)) for number, (path, shape) in enumerate(shapes)}
    return Checkpoint(what="random weights", config=config, params=params)


def _draw(rng, path, shape):
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) >= 2:
        return noise / np.float32(np.sqrt(np.prod(shape[:-1])))
    return np.asarray(np.float32(path.endswith("scale")) + np.float32(0.1) * noise)


def random_start(config, paths, seed, mesh):
    """What `svdjax.training.model.drawn` gives, without compiling the initialisers."""
    params = flat_params(random_model(SVD, config, seed))
    return place({path: params[path] for path in paths}, mesh)
