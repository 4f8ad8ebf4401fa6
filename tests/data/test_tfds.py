"""Clips of TensorFlow Datasets, on made-up data of the real data sets' form."""

import numpy as np
import pytest

from svdjax.data.opening import open_source
from svdjax.data.pipeline import clip_batches
from svdjax.data.sampling import ClipSampling
from svdjax.data.tfds import TFDSSource
from svdjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


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
