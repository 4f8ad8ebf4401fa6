"""Random weights for tests, drawn with NumPy: compiling the initialisers would take most of a test's time."""

import jax.numpy as jnp
import numpy as np

from svdjax.models.params import abstract, flat_params, load_flat


def random_model(make, config, seed=0):
    """A module in which no parameter is zero or one: kernels scaled by their fan-in, norms around 1."""
    rng = np.random.default_rng(seed)
    module = abstract(make, config)

    def draw(path, shape):
        if len(shape) >= 2:
            return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        return float(path.endswith("scale")) + 0.1 * rng.normal(size=shape)

    flat = {path: jnp.asarray(draw(path, x.shape), jnp.float32) for path, x in flat_params(module).items()}
    return load_flat(module, flat, what="random weights")
