"""The data of a run as its configuration names it: mixtures, their motion buckets, held-out clips of all shapes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from svdjax.data.motion import MotionBuckets
from svdjax.data.records import write_sprites
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.errors import UserError
from svdjax.training.data import DataConfig, open_clips
from svdjax.training.directory import claim, keep_motion_map
from svdjax.training.samples import check_grid, grid_clips
from tests.training.tiny import KNOWN_FRAMES, MODEL, tiny_run

ONE = ClipSampling(frames=2, size=(16, 16))
BUCKETS = ClipSampling(buckets=((2, 16, 16), (2, 8, 16)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, height in (("square", 16), ("wide", 8)):
        write_sprites(World(height=height, width=16, frames=4), root / name, seed=0, count=6)
    return root


def opened(folders, **changes):
    square, wide = folders / "square", folders / "wide"
    config = {"train": square, "validation": square, "also": (wide,), "weights": (3.0, 1.0), "sampling": BUCKETS}
    return open_clips(DataConfig(**config | changes), Console(quiet=True))


def test_a_run_can_mix_sources_of_several_shapes(folders):
    clips = opened(folders)
    assert len(clips.train) == 12
    batches = clips.batches(batch=3, seed=0)
    shapes = {batches[i]["video"].shape for i in range(12)}
    assert shapes == {(3, 2, 16, 16, 3), (3, 2, 8, 16, 3)}
    assert clips.batches(batch=3, seed=0, frames=1)[0]["video"].shape[1] == 1


def test_a_run_keeps_the_map_of_motion_buckets_of_its_mixture(folders, tmp_path):
    config = tiny_run(tmp_path)
    claim(config)
    mixture, other = opened(folders).train, opened(folders, weights=(1.0, 9.0)).train
    keep_motion_map(config, other)
    keep_motion_map(config, mixture)  # nothing is trained yet
    kept = json.loads((config.out / "motion_buckets.json").read_text())
    assert MotionBuckets(thresholds=tuple(kept["motion_thresholds"])) == mixture.buckets != other.buckets
    assert kept["motion_measure"] == mixture.motion_measure
    (config.out / "vae").mkdir()
    keep_motion_map(config, mixture)
    with pytest.raises(UserError, match=r"motion_buckets\.json: the clips have another map"):
        keep_motion_map(config, other)


def test_held_out_batches_hold_one_shape_each(folders):
    clips = opened(folders, also=(), weights=())
    mixed = type(clips)(clips.config, clips.train, opened(folders).train)
    batches = mixed.held_out(batch=4, count=3)
    assert [batch["video"].shape for batch in batches] == [(4, 2, 16, 16, 3), (4, 2, 8, 16, 3)]
    again = mixed.held_out(batch=4, count=3)
    assert all(np.array_equal(a["video"], b["video"]) for a, b in zip(batches, again, strict=True))
    assert [len(batch["fps"]) for batch in mixed.held_out(batch=4, count=1)] == [4, 2]  # of the first 8
    assert [len(batch["fps"]) for batch in mixed.held_out(batch=2, count=2)] == [2, 2, 2]
    assert len(opened(folders, also=(), weights=(), sampling=ONE).held_out(batch=1, count=2)) == 2


def test_samples_are_asked_for_by_clips_as_long_as_they_are_if_there_are_such(folders):
    clips = opened(folders, sampling=ClipSampling(buckets=((2, 16, 16), (3, 8, 16))))
    mixed = type(clips)(clips.config, clips.train, clips.train)
    assert {frames: grid_clips(mixed, frames)["video"].shape[1] for frames in (2, 3, 9)} == {2: 2, 3: 3, 9: 2}
    longer = replace(KNOWN_FRAMES, defaults=replace(KNOWN_FRAMES.defaults, frames=9))
    with pytest.raises(UserError, match=r"--data\.validation .*: its first clips are none of 9 frames"):
        check_grid(mixed, longer)
    check_grid(mixed, replace(MODEL, defaults=longer.defaults))  # its task says nothing of single frames
