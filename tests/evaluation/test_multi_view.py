"""Metrics of views, against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.evaluation.multi_view import clip_similarity, lpips
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.sampling.images import from_uint8
from tests.weights import random_model


@pytest.fixture(scope="module")
def views():
    """Two objects of three views, and others."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (2, 3, 24, 20, 3), np.uint8) for _ in range(2)]


def test_lpips_is_of_each_view_in_the_range_that_the_network_takes(views):
    network = random_model(LPIPS, LPIPSConfig(blocks=((8,), (8,))))
    made, true = views
    found = lpips(made, true, network)
    wanted = network(jnp.asarray(from_uint8(made[1])), jnp.asarray(from_uint8(true[1])))
    assert found.shape == (2, 3) and found[1] == pytest.approx(np.asarray(wanted), rel=1e-4)
    assert lpips(made, made, network) == pytest.approx(np.zeros((2, 3))) and (found > 0).all()


def test_clip_similarity_is_the_cosine(views):
    def embed(pictures):
        return pictures.reshape(len(pictures), -1)[:, :2] + np.array([1.0, 0.0])

    made, true = (v.copy() for v in views)
    made[0, 0, 0, 0, :2], true[0, 0, 0, 0, :2] = (0, 1), (2, 0)  # (1, 1) and (3, 0)
    found = clip_similarity(made, true, embed)
    assert found.shape == (2, 3) and found[0, 0] == pytest.approx(np.sqrt(0.5))
    assert clip_similarity(made, made, embed) == pytest.approx(np.ones((2, 3)))
