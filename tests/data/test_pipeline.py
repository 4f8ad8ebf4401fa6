"""Batches: functions of their number, whoever makes them; bad videos, buckets, mixtures, real clips if given."""

import dataclasses
import logging
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.data import decoding
from svdjax.data.decoding import decode_all
from svdjax.data.motion import MotionBuckets
from svdjax.data.pipeline import batches, clip_batches, fixed_clip, fixed_clips, stream, to_batch, to_unit
from svdjax.data.records import ClipRecord, write_shards, write_sprites
from svdjax.data.sampling import ClipSampling, views_of
from svdjax.data.sources import FolderSource, Mixture, ShardSource, geometry_of
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

    motion_measure = "none"
    has_pictures = False

    def __init__(self, videos, **notes):
        self.buckets = MotionBuckets.fit([0.0, 1.0])
        base = {"fps": 10.0, "seconds": 2.0, "height": 32, "width": 48, "motion_score": 0.5}
        self.records = [
            ClipRecord(video=v, annotations=base | {"name": f"v{i}"} | notes) for i, v in enumerate(videos)
        ]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def geometry(self):
        return geometry_of([record.annotations for record in self.records])


class Numbers:
    """A source of numbers, as items."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"number": np.int64(index)}


def take(dataset, count, **options):
    return list(islice(stream(dataset, **options), count))


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


def test_batches_have_the_promised_form(sprites):
    batch = clip_batches(sprites, ClipSampling(size=(16, 16), frames=6), batch_size=4, seed=0)[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "video": ((4, 6, 16, 16, 3), "uint8"),
        "fps": ((4,), "float32"),
        "motion_bucket": ((4,), "float32"),
        "replaced": ((4,), "int32"),
    }
    np.testing.assert_allclose(batch["fps"], 7.0, rtol=2e-3)
    assert batch["motion_bucket"].min() >= 1 and batch["motion_bucket"].max() <= 255


def test_clips_keep_their_own_bucket_and_caption(sprites):
    sampling = ClipSampling(size=(16, 16), frames=6, captions=True)
    known = {r.annotations["caption"]: r for r in (sprites[i] for i in range(20))}
    for batch in take(clip_batches(sprites, sampling, batch_size=5, seed=1), 4):
        for video, bucket, caption in zip(batch["video"], batch["motion_bucket"], batch["caption"], strict=True):
            record = known[caption]
            np.testing.assert_array_equal(video, decode_all(record.video).frames)
            assert bucket == sprites.buckets.bucket(record.annotations["motion_score"])


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_is_a_function_of_seed_and_number_alone(sprites, in_memory):
    def dataset(seed, **options):
        return clip_batches(sprites, RANDOM, batch_size=4, seed=seed, **options)

    whole = [dataset(3)[i] for i in range(8)]
    other = dataset(3, in_memory=in_memory)
    assert same(whole[::-1], [other[i] for i in range(7, -1, -1)])
    assert same(whole, take(other, 8, threads=4)) and same(whole, take(other, 8, threads=0))
    assert same(whole[5:], take(dataset(3), 3, start=5))
    assert not same(whole, take(dataset(4), 8))


@pytest.mark.parametrize("rows", [[0], [2, 3], [3, 1, 0]])
def test_a_host_makes_its_rows_of_the_same_batches(sprites, rows):
    whole = take(clip_batches(sprites, RANDOM, batch_size=4, seed=3), 3)
    part = take(clip_batches(sprites, RANDOM, batch_size=4, seed=3, rows=rows), 3)
    assert same(part, [{key: values[rows] for key, values in batch.items()} for batch in whole])


def test_worker_processes_decode_with_one_thread_each():
    counts = grain.MapDataset.range(3).map(lambda _: decoding.threads(1920 * 1080))
    assert take(counts, 3) == [0, 0, 0] and decoding.threads(512 * 512) == 1
    assert take(counts, 3, workers=1) == [1, 1, 1]


def test_worker_processes_make_the_same_batches(sprites):
    dataset = clip_batches(sprites, RANDOM, batch_size=4, seed=3)
    assert same(take(dataset, 5, start=1), take(dataset, 5, start=1, workers=2, threads=1))


@pytest.mark.parametrize("batch_size", [4, 7, 45])
def test_every_pass_holds_each_item_once_in_a_new_order(batch_size):
    dataset = batches(Numbers(20), batch_size=batch_size, seed=0)
    seen = np.concatenate([dataset[i]["number"] for i in range(-(-60 // batch_size))])[:60].reshape(3, 20)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(20), (3, 1)))
    assert len({tuple(order) for order in seen}) == 3


def test_a_clip_is_cut_anew_in_every_pass(sprites):
    first, second = take(clip_batches(sprites, RANDOM, batch_size=20, seed=0), 2)
    assert sorted(first["motion_bucket"]) == sorted(second["motion_bucket"])
    assert not np.isin(first["fps"], second["fps"]).any()


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


def test_bad_videos_are_replaced_counted_and_named(caplog):
    source = Listed([encode(ramp(20))] * 9 + [b"rotten"])
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(8, 8))
    dataset = clip_batches(source, sampling, batch_size=10, seed=0)
    clean = clip_batches(Listed([encode(ramp(20))] * 10), sampling, batch_size=10, seed=0)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            batch, wanted = dataset[number], clean[number]
            assert batch["replaced"].sum() == 1 and not wanted["replaced"].any()
            kept = batch["replaced"] == 0  # the others are not moved by it
            np.testing.assert_array_equal(batch["video"][kept], wanted["video"][kept])
            np.testing.assert_array_equal(batch["fps"][kept], wanted["fps"][kept])
    assert caplog.text.count("skipped") == caplog.text.count("v9 cannot be read") == 1
    assert same([dataset[0]], [clip_batches(source, sampling, batch_size=10, seed=0, in_memory=True)[0]])


def test_a_video_that_ends_early_is_replaced_too(caplog):
    whole, short = (encode(ramp(count), container="matroska", gop=1) for count in (20, 8))
    sampling = ClipSampling(frames=4, fps=(4.0, 5.0), size=(8, 8))
    with caplog.at_level(logging.WARNING):
        take(clip_batches(Listed([whole] * 9 + [short]), sampling, batch_size=5, seed=0), 12)
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
    batch = clip_batches(source, sampling, batch_size=6, seed=0)[0]
    assert batch["video"].shape == (6, 2, 8, 8, 3)
    assert len({clip.tobytes() for clip in batch["video"]}) > 2


def test_impossible_requests_are_refused_at_once(sprites):
    for rows in ([], [4], [-1, 2]):
        with pytest.raises(UserError, match="a batch of 4 has no rows"):
            clip_batches(sprites, RANDOM, batch_size=4, seed=0, rows=rows)
    with pytest.raises(UserError, match="the data set is empty"):
        batches(Numbers(0), batch_size=4, seed=0)
    with pytest.raises(UserError, match="mirrored"):
        ClipSampling(flip=True, captions=True)
    for wrong in (
        {"frames": 0},
        {"fps": (8.0, 7.0)},
        {"fps": (0.0, 7.0)},
        {"size": (0, 4)},
        {"buckets": ((1, 0, 4),)},
    ):
        with pytest.raises(UserError, match="positive"):
            ClipSampling(**wrong)


def test_an_error_that_is_not_expected_passes_through():
    class Failing(Numbers):
        def __getitem__(self, index):
            raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        batches(Failing(3), batch_size=1, seed=0)[0]


def test_a_mixture_is_drawn_in_the_proportions_of_its_weights():
    names = ["a"] * 3 + ["b"] * 30
    sources = [Listed([encode(ramp(20))] * count, caption=name) for name, count in (("a", 3), ("b", 30))]
    mixture = Mixture(sources, (3.0, 1.0))
    assert [mixture[i].annotations["caption"] for i in range(33)] == names
    sampling = ClipSampling(frames=1, fps=(4.0, 5.0), size=(8, 8), captions=True)
    drawn = take(clip_batches(mixture, sampling, batch_size=8, seed=0), 10)
    assert Counter(caption for batch in drawn for caption in batch["caption"]) == {"a": 60, "b": 20}


def test_the_clips_of_a_mixture_are_on_one_map():
    """Half of the clips score 0..1 and half 2..3: on the map of both, the first are below the middle bucket."""
    parts = []
    for low, score in ((0.0, 0.5), (2.0, 2.5)):
        parts.append(Listed([encode(ramp(20))] * 4, motion_score=score, caption=str(score)))
        parts[-1].buckets = MotionBuckets.fit(np.linspace(low, low + 1, 510))
    mixture, sampling = (
        Mixture(parts, (1.0, 1.0)),
        ClipSampling(frames=1, fps=(4.0, 5.0), size=(8, 8), captions=True),
    )
    batch = clip_batches(mixture, sampling, batch_size=8, seed=0)[0]
    found = dict(zip(batch["caption"], batch["motion_bucket"], strict=True))
    assert abs(found["0.5"] - 64) <= 2 and abs(found["2.5"] - 192) <= 2
    assert [part.buckets.bucket(part[0].annotations["motion_score"]) for part in parts] == [128, 128]


def test_a_mixture_of_unlike_parts_is_refused():
    one, other = Listed([b""]), Listed([b""])
    other.motion_measure = "pixels"
    with pytest.raises(UserError, match="different kinds"):
        Mixture([one, other], (1.0, 1.0))
    for weights in ((), (1.0,), (1.0, 0.0), (1.0, float("inf"))):
        with pytest.raises(UserError, match="one positive weight for each"):
            Mixture([one, one], weights)


def shaped(height, width, frames=20, count=1):
    notes = {"height": height, "width": width, "seconds": frames / 10}
    return Listed([encode(ramp(frames, height, width))] * count, **notes)


BUCKETS = ClipSampling(fps=(4.0, 5.0), buckets=((4, 8, 8), (4, 8, 12), (2, 8, 12), (4, 16, 24), (4, 64, 96)))


@pytest.mark.parametrize(
    ("video", "shape"),
    [
        ((32, 32, 20), (4, 8, 8)),
        ((32, 48, 20), (4, 16, 24)),  # the largest that need not be enlarged
        ((12, 18, 20), (4, 8, 12)),
        ((32, 48, 6), (2, 8, 12)),  # too short for more frames
        ((32, 34, 20), (4, 8, 8)),
    ],
)
def test_a_video_takes_the_bucket_that_suits_it(video, shape):
    assert BUCKETS.shape_of(shaped(*video)[0].annotations) == shape


def test_buckets_come_as_often_as_their_clips_and_one_at_a_time():
    source = Mixture([shaped(32, 32, count=2), shaped(32, 48, count=6)], (1.0, 3.0))
    dataset = clip_batches(source, BUCKETS, batch_size=3, seed=0)
    shapes = Counter(dataset[i]["video"].shape for i in range(60))
    assert set(shapes) == {(3, 4, 8, 8, 3), (3, 4, 16, 24, 3)}
    # 60 draws with probability 1/4: 15 expected, standard deviation 3.4.
    assert 5 <= shapes[3, 4, 8, 8, 3] <= 25
    assert same([dataset[7]], [clip_batches(source, BUCKETS, batch_size=3, seed=0)[7]])


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


@pytest.fixture(scope="module")
def solids(tmp_path_factory):
    directory = tmp_path_factory.mktemp("solids") / "set"
    world = World(height=16, width=16, frames=6, orbit_share=1.0, elevation=(-5.0, 30.0))
    write_sprites(world, directory, seed=0, count=4, shards=1)
    return ShardSource(directory)


def test_orbits_carry_where_the_camera_stood(solids):
    """Of each frame that is shown, also where a part is cut out, at half the rate."""
    whole = ClipSampling(frames=6, size=(16, 16), views=True)
    batch = clip_batches(solids, whole, batch_size=4, seed=0)[0]
    assert batch["azimuths"].shape == batch["elevation"].shape == (4, 6)
    assert batch["azimuths"].dtype == batch["elevation"].dtype == np.float32
    np.testing.assert_array_equal(np.ptp(batch["elevation"], axis=1), 0)
    elevations = sorted(float(batch["elevation"][row, 0]) for row in range(4))
    assert elevations == pytest.approx(sorted(solids[i].annotations["elevation"] for i in range(4)))
    part = ClipSampling(frames=2, fps=(3.5, 3.5), size=(16, 16), views=True)
    for index in range(4):
        frames, azimuths = decode_all(solids[index].video).frames, solids[index].annotations["azimuths"]
        (item,) = [item for i, item in enumerate(fixed_clips(solids, part)) if i == index]
        for shown, azimuth in zip(item["video"], item["azimuths"], strict=True):
            place = int(np.argmin(np.abs(np.array(azimuths) - azimuth)))
            assert azimuths[place] == pytest.approx(azimuth, abs=1e-4)
            np.testing.assert_array_equal(shown, frames[place])
        assert (item["azimuths"][1] - item["azimuths"][0]) % 360 == pytest.approx(120, abs=1e-3)


def test_each_frame_keeps_its_elevation_beside_orbits_that_have_one(solids, tmp_path):
    """Of 6 frames of one orbit, which rises, 2 at half the rate; the other's elevation is one for all frames."""
    level, rising = (dataclasses.replace(solids[i], annotations=dict(solids[i].annotations)) for i in range(2))
    rising.annotations["elevation"] = [0, 5, 10, 15, 20, 25]
    write_shards([level, rising], tmp_path / "mixed", shards=1)
    part = ClipSampling(frames=2, fps=(3.5, 3.5), size=(16, 16), views=True)
    batch = to_batch(list(fixed_clips(ShardSource(tmp_path / "mixed"), part)))
    assert batch["elevation"].shape == batch["azimuths"].shape == (2, 2)
    rows = {bool(np.ptp(row)): row for row in batch["elevation"]}
    np.testing.assert_allclose(rows[False], level.annotations["elevation"], rtol=1e-6)
    assert rows[True][1] - rows[True][0] == 10
    rising.annotations["elevation"] = [0, 5, 10]
    with pytest.raises(UserError, match="has 6 azimuths and 3 elevations"):
        views_of(rising, np.zeros(1))


def test_clips_that_are_no_orbits_have_no_views(sprites):
    with pytest.raises(UserError, match="is no orbit: its annotations lack azimuths or elevation"):
        fixed_clip(sprites, ClipSampling(frames=6, size=(16, 16), views=True), 0)
    with pytest.raises(UserError, match="mirrored orbits turn the other way"):
        ClipSampling(views=True, flip=True)


CUT = {"frames": 2, "fps": (5.0, 10.0), "size": (8, 8)}
THREE = {"image": "a ball", "video": "a ball rolls", "merged": "a red ball rolls"}


def captions_of(captions, count, seed=0, batch=8, **options):
    """Captions of the first ``count`` batches of a run whose clips all have these annotations."""
    source = Listed([encode(ramp(), fps=10)], **captions)
    sampling = ClipSampling(**CUT, captions=True)
    dataset = clip_batches(source, sampling, batch_size=batch, seed=seed, in_memory=True, **options)
    return [caption for number in range(count) for caption in dataset[number]["caption"]]


def test_of_three_captions_one_is_drawn_by_the_papers_weights():
    counts = Counter(captions_of({"captions": THREE}, 75))
    assert counts.keys() == set(THREE.values())
    for name, share in {"image": 0.5, "video": 0.25, "merged": 0.25}.items():
        assert abs(counts[THREE[name]] / 600 - share) < 5 * (share * (1 - share) / 600) ** 0.5


def test_a_missing_caption_leaves_its_share_to_the_others():
    counts = Counter(captions_of({"captions": {"image": "a ball", "video": None, "merged": "a red ball"}}, 75))
    assert counts.keys() == {"a ball", "a red ball"}
    assert abs(counts["a ball"] / 600 - 2 / 3) < 0.1
    assert set(captions_of({"captions": {}, "caption": "one"}, 1)) == {"one"}
    assert set(captions_of({"captions": None, "caption": None}, 1)) == {""}


def test_the_draw_belongs_to_the_position_whatever_the_rows_and_workers():
    whole = captions_of({"captions": THREE}, 4)
    rows = [captions_of({"captions": THREE}, 4, rows=[row]) for row in range(8)]
    assert whole == [rows[i % 8][i // 8] for i in range(32)]
    assert whole != captions_of({"captions": THREE}, 4, seed=1)


def test_a_single_caption_costs_no_random_numbers():
    source = Listed([encode(ramp(20), fps=10)], caption="one")
    mute, told = (
        clip_batches(source, ClipSampling(**CUT, captions=captions), batch_size=4, seed=0)[3]
        for captions in (False, True)
    )
    assert told.pop("caption") == ["one"] * 4 and same([mute], [told])
