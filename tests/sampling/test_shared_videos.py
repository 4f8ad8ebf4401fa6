"""One video over several devices when sampling: the same frames as on one, and what cannot be shared is refused."""

import dataclasses
from operator import itemgetter

import jax
import numpy as np
import pytest

from svdjax.diffusion import moves_of
from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.sampling.options import Sample, resolve
from svdjax.sampling.pipeline import Pipeline, Settings, check_context
from tests.training.tiny import MODEL
from tests.weights import random_model

DEFAULTS = dataclasses.replace(MODEL.defaults, frames=3, width=64, guidance=(1.0, 2.0))


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, MODEL)


def stage_by_stage(model, settings):
    """Conditioning, latents and frames of two videos, as the devices hold them."""
    pipeline = Pipeline(model, settings)
    pictures = np.random.default_rng(3).uniform(-1, 1, (2, 16, 64, 3)).astype(np.float32)
    request, videos = pipeline.request(images=pictures), np.arange(2)
    condition, start, step, decode = pipeline._stages(2)
    seed, moves = np.uint32(settings.seed), moves_of(pipeline._sigmas())
    branches, run = condition(seed, request, videos), start((seed, moves.sigma[0]), videos, None)
    for number in range(DEFAULTS.steps):
        run = step((seed, jax.tree.map(itemgetter(number), moves)), run, branches, videos, None)
    return {"condition": branches, "sample": run.x, "decode": decode((), run.x)}


@pytest.fixture(scope="module")
def each_alone(model):
    return stage_by_stage(model, Settings(defaults=DEFAULTS))


@pytest.mark.parametrize(
    "more", [{}, pytest.param({"chunk": 2, "decode": "exact"}, marks=pytest.mark.slow)], ids=["whole", "chunked"]
)
def test_four_devices_that_share_a_video_make_that_of_one(more, model, each_alone):
    """Two videos on two rows of four devices. Sums in another order are 1e-6 of the largest value off at most."""
    shared = stage_by_stage(model, Settings(defaults=DEFAULTS, context=4, **more))
    for (path, wanted), found in zip(
        jax.tree_util.tree_leaves_with_path(each_alone), jax.tree.leaves(shared), strict=True
    ):
        close = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=close, err_msg=jax.tree_util.keystr(path))
    for made in (shared["sample"], shared["decode"]):
        b, t, h, w, c = made.shape
        assert made.sharding.shard_shape(made.shape) == (b // 2, t, h, w // 4, c)


@pytest.mark.slow
def test_a_longer_video_is_shared_as_well(model):
    """A window begins with latents that several devices hold. Pixels are rounded: so 1 of 255."""
    settings = Settings(defaults=DEFAULTS, context=2, windows=2)
    pictures = np.random.default_rng(4).uniform(-1, 1, (1, 16, 64, 3)).astype(np.float32)
    video = Pipeline(model, settings)(images=pictures)
    alone = Pipeline(model, dataclasses.replace(settings, context=1))(images=pictures)
    assert video.shape == (1, 5, 16, 64, 3)
    assert np.abs(video.astype(int) - alone).max() <= 1


def test_rows_of_devices_count_as_one_device_each(model):
    pipeline = Pipeline(model, Settings(defaults=DEFAULTS, context=2, per_device=2))
    # Four rows with two videos each; DEFAULTS have two steps.
    assert [pipeline.step_calls(count) for count in (1, 3, 8, 9)] == [2, 2, 2, 4]
    odd = dataclasses.replace(DEFAULTS, width=48)
    assert Pipeline(model, Settings(defaults=odd, context=3)).step_calls(9) == 5 * 2, "two devices stay idle"


@pytest.mark.parametrize(
    ("context", "width", "says"),
    [
        (0, 1024, "--context 0: must be from 1 to 8, the number of devices here"),
        (16, 1024, "--context 16: must be from 1 to 8"),
        (3, 1024, "--context 3: videos 1024 pixels wide .* make the width a multiple of 192"),
        (4, 900, "--context 4: videos 900 pixels wide .* a multiple of 256"),  # 900 is padded to 960
    ],
)
def test_what_devices_cannot_share_is_refused(context, width, says):
    config = SVDConfig.svd()
    settings = resolve(Sample(context=context, width=width), config.defaults)
    with pytest.raises(UserError, match=says):
        check_context(config, settings, devices=8)
    check_context(config, dataclasses.replace(settings, context=5 if width == 900 else 2), devices=8)
