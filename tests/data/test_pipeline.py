"""Batches: their form, determinism, exact resume, host slices, skipped videos, and real clips if given."""

import itertools
import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.data.motion import MotionBuckets
from svdjax.data.pipeline import ClipSampling, batches, clip_batches, fixed_clips, to_unit
from svdjax.data.records import ClipRecord, write_sprites
from svdjax.data.sources import FolderSource, ShardSource
from svdjax.data.sprites import World
from svdjax.errors import UserError
from tests.data.clips import encode, numbers, ramp

WORLD = World(height=16, width=16, frames=6)
# Random start, rate and mirroring: everything that a resumed run could get wrong.
RANDOM = ClipSampling(frames=3, fps=(3.5, 7.0), size=(12, 8), flip=True)


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sprites") / "set"
    write_sprites(WORLD, directory, seed=0, count=20, shards=3)
    return ShardSource(directory)


class Listed:
    """A source in memory."""

    def __init__(self, videos, **notes):
        self.buckets = MotionBuckets.fit([0.0, 1.0])
        base = {"fps": 10.0, "seconds": 2.0, "motion_score": 0.5}
        self.records = [
            ClipRecord(video=v, annotations=base | {"name": f"v{i}"} | notes) for i, v in enumerate(videos)
        ]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def take(dataset, count):
    return list(itertools.islice(dataset, count))


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


def test_batches_have_the_promised_form(sprites):
    (batch,) = take(clip_batches(sprites, ClipSampling(size=(16, 16), frames=6), batch_size=4, seed=0), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "video": ((4, 6, 16, 16, 3), "uint8"),
        "fps": ((4,), "float32"),
        "motion_bucket": ((4,), "float32"),
    }
    np.testing.assert_allclose(batch["fps"], 7.0, rtol=2e-3)
    assert batch["motion_bucket"].min() >= 1 and batch["motion_bucket"].max() <= 255


def test_clips_keep_their_own_bucket_and_caption(sprites):
    sampling = ClipSampling(size=(16, 16), frames=6, captions=True)
    known = {r.annotations["caption"]: r for r in (sprites[i] for i in range(20))}
    from svdjax.data.decoding import decode_all

    for batch in take(clip_batches(sprites, sampling, batch_size=5, seed=1, epochs=1), 4):
        for video, bucket, caption in zip(batch["video"], batch["motion_bucket"], batch["caption"], strict=True):
            record = known[caption]
            np.testing.assert_array_equal(video, decode_all(record.video).frames)
            assert bucket == sprites.buckets.bucket(record.annotations["motion_score"])


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_same_seed_gives_the_same_batches(sprites, in_memory):
    def run(seed, **options):
        return take(clip_batches(sprites, RANDOM, batch_size=4, seed=seed, **options), 8)

    assert same(run(3), run(3, in_memory=in_memory, threads=4))
    assert not same(run(3), run(4))


def test_epochs_see_each_clip_once_in_a_new_order_with_new_randomness(sprites):
    seen = take(clip_batches(sprites, RANDOM, batch_size=20, seed=0), 2)
    assert sorted(seen[0]["motion_bucket"]) == sorted(seen[1]["motion_bucket"])
    assert list(seen[0]["motion_bucket"]) != list(seen[1]["motion_bucket"])
    assert not np.array_equal(np.sort(seen[0]["fps"]), np.sort(seen[1]["fps"]))
    assert len(list(clip_batches(sprites, RANDOM, batch_size=6, seed=0, epochs=2))) == 40 // 6


@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_resuming_is_exact(sprites, at):
    dataset = clip_batches(sprites, RANDOM, batch_size=4, seed=3)
    whole = take(dataset, 10)
    iterator = iter(dataset)
    for _ in range(at):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert all(isinstance(value, int) for value in state.values())
    fresh = iter(clip_batches(sprites, RANDOM, batch_size=4, seed=3, in_memory=False, threads=1))
    fresh.set_state(state)
    assert same([next(fresh) for _ in range(10 - at)], whole[at:])
    iterator.set_state(state)
    assert same([next(iterator) for _ in range(10 - at)], whole[at:])


@pytest.mark.parametrize("hosts", [1, 3, 4])
def test_hosts_share_the_clips_out(sprites, hosts):
    captions = ClipSampling(size=(16, 16), frames=6, captions=True)
    shares = [
        {
            b["caption"][0]
            for b in clip_batches(sprites, captions, batch_size=1, seed=0, host=h, hosts=hosts, epochs=1)
        }
        for h in range(hosts)
    ]
    assert set.union(*shares) == {sprites[i].annotations["caption"] for i in range(20)}
    assert sum(len(share) for share in shares) == len(set.union(*shares))


def test_clips_start_anywhere_and_keep_their_rate():
    source = Listed([encode(ramp(20), gop=6)] * 4)
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(32, 48))
    starts = set()
    for batch in take(clip_batches(source, sampling, batch_size=4, seed=0), 20):
        for video, fps in zip(batch["video"], batch["fps"], strict=True):
            found = numbers(video)
            assert 4.0 <= fps <= 5.0
            steps = np.diff(found)
            assert set(steps) <= {2, 3} and found[-1] <= 19
            starts.add(found[0])
    assert len(starts) > 8


def test_mirroring_is_half_of_the_clips():
    frames = ramp(4, 16, 16)
    frames[:, :, 8:] = 255
    source = Listed([encode(frames, pixels="yuv444p")] * 8, seconds=0.4)
    sampling = ClipSampling(frames=2, fps=(5.0, 10.0), size=(16, 16), flip=True)
    mirrored = np.concatenate(
        [b["video"][:, 0, 4, 2, 0] > 128 for b in take(clip_batches(source, sampling, batch_size=8, seed=0), 20)]
    )
    assert 0.35 < mirrored.mean() < 0.65


@pytest.mark.parametrize("in_memory", [False, True])
def test_bad_videos_are_left_out_and_named(caplog, in_memory):
    good = encode(ramp(20))
    source = Listed([good] * 9 + [b"rotten"])
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(8, 8))
    with caplog.at_level(logging.WARNING):
        seen = take(clip_batches(source, sampling, batch_size=3, seed=0, in_memory=in_memory), 12)
    assert len(seen) == 12
    assert caplog.text.count("v9 cannot be read") == 1


def test_a_video_that_fails_in_several_ways_counts_once(caplog):
    whole = encode(ramp(20), container="matroska", gop=1)
    source = Listed([whole] * 9 + [encode(ramp(8), container="matroska", gop=1)])
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(8, 8))
    with caplog.at_level(logging.WARNING):
        assert len(take(clip_batches(source, sampling, batch_size=5, seed=0), 12)) == 12
    assert caplog.text.count("skipped") == caplog.text.count("v9 ends before") == 1


@pytest.mark.parametrize(
    ("videos", "notes", "message"),
    [
        ([b"rotten"] * 4, {}, "cannot be used"),
        (["good", "good", b"", b""], {}, "of 4 clips cannot be used"),
        (["good"] * 4, {"seconds": 0.5}, "of 4 clips"),
        (["good"] * 4, {"fps": 3.0}, "of 4 clips"),
    ],
)
def test_too_many_bad_videos_stop_the_run(videos, notes, message, caplog):
    source = Listed([encode(ramp(20)) if v == "good" else v for v in videos], **notes)
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(8, 8))
    with pytest.raises(UserError, match=message) as caught:
        take(clip_batches(source, sampling, batch_size=2, seed=0), 20)
    assert "\n" not in str(caught.value)
    if notes:
        assert "too short or slow" in caplog.text


def test_few_videos_fill_a_larger_batch_with_different_clips():
    source = Listed([encode(ramp(20))] * 2)
    sampling = ClipSampling(frames=2, fps=(4.0, 5.0), size=(8, 8))
    (batch,) = take(clip_batches(source, sampling, batch_size=6, seed=0), 1)
    assert batch["video"].shape == (6, 2, 8, 8, 3)
    assert len({clip.tobytes() for clip in batch["video"]}) > 2


def test_impossible_requests_are_refused_at_once(sprites):
    with pytest.raises(UserError, match="do not fill a batch"):
        clip_batches(sprites, RANDOM, batch_size=21, seed=0, epochs=1)
    with pytest.raises(UserError, match="do not fill a batch"):
        clip_batches(sprites, RANDOM, batch_size=6, seed=0, hosts=4, epochs=1)
    with pytest.raises(UserError, match="do not fill a batch"):
        clip_batches(sprites, RANDOM, batch_size=1, seed=0, hosts=21)
    with pytest.raises(UserError, match="mirrored"):
        ClipSampling(flip=True, captions=True)
    for wrong in ({"frames": 0}, {"fps": (8.0, 7.0)}, {"fps": (0.0, 7.0)}, {"size": (0, 4)}):
        with pytest.raises(UserError, match="positive"):
            ClipSampling(**wrong)


def test_fixed_clips_never_change(sprites):
    once, again = list(fixed_clips(sprites, RANDOM)), list(fixed_clips(sprites, RANDOM))
    assert len(once) == 20 and same(once, again)
    assert once[0]["video"].shape == (3, 12, 8, 3) and once[0]["fps"].dtype == np.float32


def test_fixed_clips_can_have_the_buckets_of_another_source(sprites):
    high = MotionBuckets(thresholds=(1e9,) * 254)
    assert {float(item["motion_bucket"]) for item in fixed_clips(sprites, RANDOM, buckets=high)} == {1.0}


def test_fixed_clips_leave_out_bad_videos_until_they_are_too_many(caplog):
    sampling = ClipSampling(frames=2, fps=(4.0, 5.0), size=(8, 8))
    some = Listed([encode(ramp(20))] * 19 + [b"rotten"])
    assert len(list(fixed_clips(some, sampling))) == 19 and "skipped" in caplog.text
    with pytest.raises(UserError, match="1 of 2 clips cannot be used"):
        list(fixed_clips(Listed([encode(ramp(20)), b"rotten"]), sampling))


def test_anything_with_an_index_can_be_batched():
    items = [{"latent": np.full(2, i, np.float32)} for i in range(10)]
    (batch,) = take(batches(items, batch_size=10, seed=0, epochs=1), 1)
    assert sorted(batch["latent"][:, 0]) == list(range(10))


def test_bytes_become_the_unit_range_on_the_device():
    values = jax.jit(to_unit)(jnp.array([0, 127, 128, 255], jnp.uint8))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [-1, -1 / 255, 1 / 255, 1], atol=1e-7)


@pytest.mark.skipif(
    "SVDJAX_REAL_CLIPS" not in os.environ, reason="SVDJAX_REAL_CLIPS names no folder of real videos"
)
def test_real_clips():
    source = FolderSource(Path(os.environ["SVDJAX_REAL_CLIPS"]))
    sampling = ClipSampling(frames=8, fps=(5.0, 10.0), size=(64, 96))
    seen = take(clip_batches(source, sampling, batch_size=len(source), seed=0), 3)
    assert all(batch["video"].std((1, 2, 3, 4)).min() > 5 for batch in seen)
