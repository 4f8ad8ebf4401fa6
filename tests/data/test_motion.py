"""Motion: buckets are quantiles, Farneback measures known shifts, scores don't depend on frame rate or size."""

import numpy as np
import pytest

from svdjax.data.decoding import Frames, resize_crop
from svdjax.data.motion import MotionBuckets, flow_fields, flow_magnitude, motion_score
from svdjax.data.render import Scene, random_texture, render
from svdjax.errors import UserError


def panning(pixels_per_frame, frames=4, height=96, width=128):
    """A texture that moves to the left."""
    texture = random_texture(
        np.random.default_rng(0), np.full(3, 0.5), waves=12, contrast=0.15, tint=0.3, band=(1.0, 5.0)
    )
    centre = np.stack([np.arange(frames) * pixels_per_frame / height, np.zeros(frames)], 1)
    scene = Scene(background=texture, sprites=(), centre=centre, scale=np.ones(frames))
    return render(scene, height, width)[0]


def test_buckets_are_equal_shares_from_1_to_255():
    scores = np.random.default_rng(0).lognormal(size=25_500)
    buckets = MotionBuckets.fit(scores)
    counts = np.bincount([buckets.bucket(score) for score in scores], minlength=256)
    assert counts[0] == 0 and len(counts) == 256
    np.testing.assert_allclose(counts[1:], 100, atol=1)
    assert (buckets.bucket(-1.0), buckets.bucket(np.median(scores)), buckets.bucket(1e9)) == (1, 128, 255)


def test_equal_scores_share_the_lowest_bucket_and_order_is_kept():
    buckets = MotionBuckets.fit([0.0] * 50 + list(np.linspace(0.1, 1, 50)))
    assert buckets.bucket(0.0) == 1
    found = [buckets.bucket(score) for score in np.linspace(0, 1, 30)]
    assert found == sorted(found) and found[-1] == 255
    assert MotionBuckets.fit([3.0]).bucket(3.0) == 1


def test_the_map_of_a_union_is_that_of_its_clips():
    low, high = np.linspace(0, 1, 2000), np.linspace(0.5, 3, 2000)
    union = MotionBuckets.union([MotionBuckets.fit(low), MotionBuckets.fit(high)], (1.0, 1.0))
    pooled = MotionBuckets.fit(np.concatenate([low, high]))
    probes = np.linspace(0, 3, 50)
    assert all(abs(union.bucket(x) - pooled.bucket(x)) <= 2 for x in probes)
    weighted = MotionBuckets.union([MotionBuckets.fit(low), MotionBuckets.fit(high)], (3.0, 1.0))
    assert weighted.bucket(1.0) == pytest.approx(1 + 255 * (0.75 + 0.25 * 0.2), abs=2)


def test_bad_thresholds_are_refused():
    for thresholds in ((1.0,), tuple(np.arange(254.0, 0.0, -1.0)), (float("nan"),) * 254):
        with pytest.raises(UserError, match="254 finite"):
            MotionBuckets(thresholds=thresholds)
    with pytest.raises(UserError, match="no motion scores"):
        MotionBuckets.fit([])


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, 5.0])
def test_flow_of_a_known_shift(shift):
    flow = flow_fields(panning(shift))
    assert flow.shape == (3, 96, 128, 2)
    inner = flow[:, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner[..., 0]), -shift, atol=0.03 + 0.03 * shift)
    np.testing.assert_allclose(np.median(inner[..., 1]), 0.0, atol=0.05)
    assert flow_magnitude(panning(shift)) == pytest.approx(shift, rel=0.15, abs=0.05)


def test_flow_is_in_pixels_of_the_frames_given():
    large = panning(2.0, height=192, width=256)
    small = resize_crop(large, (96, 128))
    assert flow_magnitude(small) == pytest.approx(flow_magnitude(large) / 2, rel=0.1)
    assert flow_magnitude(large[:1]) == 0.0


def test_scores_depend_on_speed_alone():
    def score(frames, fps):
        return motion_score(Frames(frames=frames, times=np.arange(len(frames)) / fps))

    slow = score(panning(0.5, frames=24), 8.0)  # 4 pixels per second
    assert slow == pytest.approx(100 * 0.5 * 4 / 96, rel=0.15)
    assert score(panning(0.25, frames=48), 16.0) == pytest.approx(slow, rel=0.1)
    assert score(panning(1.0, frames=24, height=192, width=256), 8.0) == pytest.approx(slow, rel=0.1)
    assert score(panning(0.5, frames=3), 8.0) == pytest.approx(slow, rel=0.2)
    assert score(panning(0.5, frames=1), 8.0) == 0.0
