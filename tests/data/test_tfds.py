"""Clips of TensorFlow Datasets, on made-up data of the real data sets' form, and data sets of our own making."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from svdjax.data.opening import open_source
from svdjax.data.pipeline import clip_batches, fixed_clips
from svdjax.data.records import write_sprites
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World
from svdjax.data.tfds import TFDSClips, TFDSSource
from svdjax.errors import UserError
from svdjax.training.data import DataConfig, open_clips
from tests.data.clips import encode, ramp

tfds = pytest.importorskip("tensorflow_datasets")
build = pytest.importorskip("svdjax.data.tfds_builder").build


@pytest.fixture
def folder(tmp_path):
    with tfds.testing.mock_data(num_examples=3):
        yield tmp_path


def test_grey_videos_become_clips(folder):
    where = f"tfds:moving_mnist?data_dir={folder}&split=test&fps=10"
    source = open_source(where)
    assert isinstance(source, TFDSSource) and len(source) == 3
    notes, frames = source[1].annotations, source[1].video.frames
    assert (notes["name"], notes["fps"], notes["seconds"]) == ("moving_mnist-test-1", 10.0, pytest.approx(2.0))
    assert frames.shape == (20, 64, 64, 3)
    np.testing.assert_array_equal(frames, np.repeat(frames[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(source.geometry(), [[10.0, notes["seconds"], 64, 64]] * 3)
    batch = clip_batches(source, ClipSampling(frames=4, fps=(5.0, 5.0), size=(32, 32)), batch_size=2, seed=0)[0]
    assert batch["video"].shape == (2, 4, 32, 32, 3)
    assert open_source(where).buckets == source.buckets
    assert len(list(folder.glob("svdjax-*-test-10fps.json"))) == 1  # the scores are kept


def test_coloured_videos_have_the_rate_of_their_data_set(folder):
    source = open_source(f"tfds:ucf101?data_dir={folder}")
    frames = source[0].video.frames
    assert frames.shape[1:] == (256, 256, 3) and source[0].annotations["fps"] == 25.0
    np.testing.assert_allclose(source[0].video.times, np.arange(len(frames)) / 25)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("tfds:moving_mnist?split=test", "frame rate is not known: add"),
        ("tfds:ucf101?fps=fast", "frame rate is not known"),
        ("tfds:ucf101?speed=3", "unknown option speed: choose from data_dir, split, fps"),
        ("tfds:no_such_thing?fps=3", "no such data set"),
        ("tfds:mnist?fps=3", "holds 0 videos a record"),
    ],
)
def test_what_holds_no_clips_is_refused(folder, where, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(where)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_was_not_built_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read .* --file_format=array_record"):
        open_source(f"tfds:ucf101?data_dir={tmp_path}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data set of a folder of videos and of shards, and where these are."""
    root = tmp_path_factory.mktemp("own")
    (root / "films").mkdir()
    for number in range(3):
        (root / "films" / f"{number}.mp4").write_bytes(encode(ramp(8 + number)))
    (root / "films" / "1.txt").write_text("ein grauer Würfel")
    write_sprites(World(height=16, width=24, frames=4), root / "sprites", seed=0, count=12)
    splits = {"train": root / "films", "test": root / "sprites"}
    return root, build("films", splits, data_dir=root / "my data"), splits


def test_a_data_set_of_our_own_gives_the_clips_that_it_was_made_of(built):
    _, where, splits = built
    sampling = ClipSampling(frames=2, fps=(4.0, 7.0), size=(16, 24), captions=True)
    for split, directory in splits.items():
        made, source = open_source(f"{where}&split={split}"), open_source(directory)
        assert isinstance(made, TFDSClips) and len(made) == len(source) > 2
        assert (made.buckets, made.motion_measure) == (source.buckets, source.motion_measure)
        np.testing.assert_array_equal(made.geometry(), source.geometry())
        for a, b in zip(fixed_clips(made, sampling), fixed_clips(source, sampling), strict=True):
            assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    assert made[0] == source[0]
    assert "tensorflow" not in sys.modules


def test_a_run_reads_a_data_set_of_our_own(built):
    _, where, _ = built
    sampling = ClipSampling(frames=2, size=(8, 8))
    config = DataConfig(train=Path(where), validation=Path(f"{where}&split=test"), sampling=sampling)
    clips = open_clips(config, Console(quiet=True))
    assert clips.batches(batch=4, seed=0)[0]["video"].shape == (4, 2, 8, 8, 3)
    assert clips.held_out(batch=4, count=1)[0]["fps"].shape == (4,)


def test_pictures_become_a_data_set(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photos" / "a.png")
    made = open_source(build("photos", {"train": tmp_path / "photos"}, data_dir=tmp_path / "sets"))
    batch = clip_batches(made, ClipSampling(frames=2, size=(8, 8)), batch_size=2, seed=0)[0]
    assert made.has_pictures and batch["image_only"].all() and (batch["video"] == (255, 0, 0)).all()


def test_what_cannot_be_built_is_refused(built):
    root, where, splits = built
    for name, sources, message in (
        ("films", splits, "is there already"),
        ("new", {"train": where}, "no clips in files"),
        ("new", {"train": root / "none"}, "is not a folder"),
        ("new", {"no split": root / "films"}, "'no split': use letters"),
        ("../new", splits, "'../new': use letters"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(name, sources, data_dir=root / "my data")
        assert "\n" not in str(caught.value)
    (root / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be built in .*file"):
        build("new", splits, data_dir=root / "file")
    with pytest.raises(UserError, match=r"no split train\[:1\]: choose from train, test"):
        open_source(f"{where}&split=train[:1]")
