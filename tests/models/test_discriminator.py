"""The discriminator judges patches over several frames."""

import jax
import jax.numpy as jnp
import pytest

from svdjax.errors import UserError
from svdjax.models.discriminator import Discriminator, DiscriminatorConfig
from svdjax.models.params import initialise
from tests.weights import random_model

CONFIG = DiscriminatorConfig(channels=(8, 16), norm_groups=4)


@pytest.fixture(scope="module")
def discriminator():
    return random_model(Discriminator, CONFIG)


def test_there_is_a_logit_for_every_patch_of_every_frame(discriminator):
    assert discriminator(jnp.zeros((2, 5, 16, 24, 3))).shape == (2, 5, 4, 6)


def test_a_logit_depends_on_the_frames_beside_it(discriminator):
    """Each layer looks one frame further; norms see all of a video and are kept out of this."""
    for layer in discriminator.layers:
        layer.norm = lambda x: x
    video = jnp.zeros((1, 7, 8, 8, 3))
    gradient = jax.grad(lambda video: discriminator(video)[0, 3].sum())(video)
    seen = jnp.abs(gradient).sum((0, 2, 3, 4)) > 0
    assert seen.tolist() == [False, True, True, True, True, True, False]


def test_a_new_one_has_an_opinion():
    """With zeros anywhere on the way the decoder would learn nothing from it."""
    video = jax.random.normal(jax.random.key(0), (1, 3, 16, 16, 3))
    gradient = jax.grad(lambda video: initialise(Discriminator, CONFIG, 0)(video).mean())(video)
    assert jnp.abs(gradient).max() > 0


def test_groups_have_to_divide():
    with pytest.raises(UserError, match="norm_groups"):
        DiscriminatorConfig(channels=(8, 10), norm_groups=4)
