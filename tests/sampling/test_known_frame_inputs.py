"""Clips and pictures with known frames on the command line: what is asked of them, and what is written."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdjax.cli import main
from svdjax.conversion.native import save_native
from svdjax.data.decoding import decode_all, probe
from svdjax.data.video import write_video
from svdjax.errors import UserError
from svdjax.models.svd import SVD, SamplingDefaults
from svdjax.sampling.images import from_uint8
from svdjax.sampling.inputs import READERS, Given
from svdjax.sampling.options import Sample, overlap_of
from tests.training.tiny import KNOWN_FRAMES
from tests.weights import random_model

DEFAULTS = SamplingDefaults(frames=5, height=16, width=16, steps=1, guidance=(1.0, 1.0))
FRAMES = np.random.default_rng(0).integers(0, 255, (7, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip of 7 frames at 6 fps, and two pictures."""
    folder = tmp_path_factory.mktemp("given")
    write_video(folder / "clip.gif", FRAMES, 6.25)
    for name, frame in zip("ab", FRAMES, strict=False):
        Image.fromarray(frame).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "known.safetensors"
    save_native(random_model(SVD, dataclasses.replace(KNOWN_FRAMES, defaults=DEFAULTS)), path)
    return path


def given(task, defaults=DEFAULTS, **options):
    return READERS[task].read(Sample(**options), defaults)


def shown(path):
    return from_uint8(decode_all(path).frames)


def command(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in argv])
    return exit_.value.code


def test_each_pair_of_a_clip_is_the_ends_of_a_video(folder):
    clip = folder / "clip.gif"
    found, frames = given("frame_interpolation", photos=(clip, clip)), shown(clip)
    assert found.pieces == [6, 6] and found.rates == [pytest.approx(25.0)] * 2 and not found.before
    video, known = found.some(np.arange(12))["video"], found.inputs["known"]
    assert video.shape == (12, 5, 16, 16, 3)
    np.testing.assert_array_equal(known, [[True, False, False, False, True]] * 12)
    np.testing.assert_array_equal(video[:6, 0], frames[:-1])
    np.testing.assert_array_equal(video[:6, 4], frames[1:])
    np.testing.assert_allclose(found.inputs["fps"], 25.0)
    fast = given("frame_interpolation", dataclasses.replace(DEFAULTS, frames=9), photos=(clip,))
    assert fast.rates == [pytest.approx(50.0)]
    np.testing.assert_allclose(fast.inputs["fps"], 30.0)


def test_all_gaps_of_a_clip_are_kept_in_the_memory_of_its_frames(tmp_path):
    """And of those that are asked for the pixels are made, twice if need be."""
    clip = np.random.default_rng(0).integers(0, 255, (50, 16, 16, 3), np.uint8)
    write_video(tmp_path / "long.gif", clip, 10.0)
    found = given("frame_interpolation", photos=(tmp_path / "long.gif",))
    video = found.inputs["video"]
    assert video.given.nbytes == clip.nbytes and video.index.nbytes < clip.nbytes / 10
    some, frames = found.some(np.array([48, 0, 48])), shown(tmp_path / "long.gif")
    assert some["video"].shape == (3, 5, 16, 16, 3) and some["fps"].shape == (3,)
    np.testing.assert_array_equal(some["video"][:, 0], frames[[48, 0, 48]])
    np.testing.assert_array_equal(some["video"][:, 4], frames[[49, 1, 49]])
    assert not some["video"][:, 1:4].any()


def test_the_last_frames_of_a_clip_begin_the_video_that_goes_on(folder):
    clip = folder / "clip.gif"
    found, frames = given("video_prediction", photos=(clip,), overlap=2), shown(clip)
    np.testing.assert_array_equal(found.inputs["known"], [[True, True, False, False, False]])
    np.testing.assert_array_equal(found.some(np.arange(1))["video"][0, :2], frames[-2:])
    np.testing.assert_array_equal(from_uint8(found.before[0]), frames[:-2])
    slower = given("video_prediction", dataclasses.replace(DEFAULTS, fps=3.125), photos=(clip,), overlap=2)
    np.testing.assert_array_equal(slower.some(np.arange(1))["video"][0, :2], frames[[4, 6]])
    np.testing.assert_allclose(slower.inputs["fps"], 3.125)


def test_a_video_that_goes_on_from_a_picture_has_the_rate_asked_for(folder):
    """A picture is probed as 1 fps, which nobody means."""
    found = given("video_prediction", photos=(folder / "a.png",), overlap=1)
    np.testing.assert_array_equal(found.inputs["fps"], DEFAULTS.fps)
    assert found.rates == [DEFAULTS.fps] and len(found.before[0]) == 0
    np.testing.assert_array_equal(found.some(np.arange(1))["video"][0, 0], from_uint8(FRAMES[0]))


def test_pictures_lie_where_they_are_said_to(folder):
    pictures = (folder / "a.png", folder / "b.png")
    first_last = given("first_last", photos=pictures)
    placed = given("known_frames", photos=pictures[::-1], at=(4, 0))
    for found in (first_last, placed):
        np.testing.assert_array_equal(found.inputs["known"], [[True, False, False, False, True]])
        np.testing.assert_array_equal(found.inputs["video"][0, [0, 4]], from_uint8(FRAMES[:2]))
    assert first_last.names == ["a-b"]


def test_copies_of_files_are_made_of_neighbouring_videos():
    found = Given(inputs={}, names=["x", "y"], notes=[{}, {}], pieces=[2, 1])
    np.testing.assert_array_equal(found.rows(2), [0, 1, 0, 1, 2, 2])
    videos = (np.full((3, 1, 1, 3), n, np.uint8) for n in range(6))
    files = [[int(frame[0, 0, 0]) for frame in frames] for frames in found.files(videos, 2)]
    assert files == [[0, 0, 0, 1, 1], [2, 2, 2, 3, 3], [4, 4, 4], [5, 5, 5]]


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("frame_interpolation", {"photos": ("a.png",)}, "a.png: has a single frame"),
        ("video_prediction", {"photos": ("a.png",), "overlap": 2}, "to go on from 2: .* --overlap 1"),
        ("video_prediction", {"photos": ("clip.gif",), "overlap": 5}, "--overlap 5: of 5 frames"),
        ("video_prediction", {"photos": ("none.mp4",)}, "does not exist"),
        ("first_last", {"photos": ("a.png",)}, "1 pictures: give two"),
        ("known_frames", {"photos": ("a.png",)}, "--at: 0 numbers for 1 pictures"),
        (
            "known_frames",
            {"photos": ("a.png", "b.png"), "at": (1, 5)},
            "--at 1 5: give different numbers",
        ),
    ],
)
def test_unusable_input_is_named(folder, task, options, says):
    photos = tuple(folder / name for name in options.get("photos", ()))
    with pytest.raises(UserError, match=says):
        given(task, **{**options, "photos": photos})


@pytest.mark.parametrize(
    ("task", "options", "frames", "least"),
    [
        ("frame_interpolation", {"photos": ("clip.gif",)}, (1, 2), 3),
        ("first_last", {"photos": ("a.png", "b.png")}, (1, 2), 3),
        ("video_prediction", {"photos": ("clip.gif",)}, (1,), 2),
        ("known_frames", {"photos": ("a.png",), "at": (0,)}, (1,), 2),
        ("known_frames", {"photos": ("a.png", "b.png"), "at": (1, 0)}, (2,), 3),
    ],
)
def test_a_video_of_given_frames_alone_is_refused(folder, task, options, frames, least):
    photos = tuple(folder / name for name in options["photos"])
    for count in frames:
        with pytest.raises(UserError, match=f"--frames {count}: .* at least {least}$"):
            given(task, dataclasses.replace(DEFAULTS, frames=count), **{**options, "photos": photos})
    given(task, dataclasses.replace(DEFAULTS, frames=least), **{**options, "photos": photos})


def test_a_window_shares_a_quarter_of_known_frames_or_one_picture_unless_told():
    ahead = Sample(task="video_prediction")
    assert [overlap_of(ahead, frames) for frames in (2, 5, 14, 25)] == [1, 1, 3, 6]
    assert overlap_of(Sample(), 25) == 1 and overlap_of(Sample(task="text_to_video"), 8) == 4
    assert overlap_of(Sample(overlap=4), 5) == 4


def test_the_command_goes_on_with_a_clip_for_several_windows(checkpoint, folder, tmp_path, capsys):
    argv = ("sample", folder / "clip.gif", "--checkpoint", checkpoint, "--out", tmp_path, "--format", "png")
    assert command(*argv, "--task", "video_prediction", "--overlap", 2, "--windows", 2) == 0
    (path,) = capsys.readouterr().out.split()
    frames = sorted(Path(path).iterdir())
    assert len(frames) == 7 + 2 * 3, "the clip, and three new frames from each window"
    clip = decode_all(folder / "clip.gif").frames
    for frame, file in zip(clip, frames, strict=False):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), frame)
    assert command(*argv) == 2
    assert "--at: 0 numbers for 1 pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_fills_a_clip_up_to_four_times_its_rate(checkpoint, folder, tmp_path, capsys):
    argv = ("sample", folder / "clip.gif", "--checkpoint", checkpoint, "--out", tmp_path, "--per-device", 2)
    assert command(*argv, "--task", "frame_interpolation") == 0
    (path,) = capsys.readouterr().out.split()
    assert len(decode_all(Path(path)).frames) == 6 * 4 + 1
    assert probe(Path(path)).fps == pytest.approx(25.0)


def test_a_model_of_interpolation_makes_as_many_frames_as_it_was_trained_for(folder, tmp_path, capsys):
    config = dataclasses.replace(
        KNOWN_FRAMES, task="frame_interpolation", defaults=dataclasses.replace(DEFAULTS, frames=3)
    )
    save_native(random_model(SVD, config), tmp_path / "pairs.safetensors")
    options = ("--checkpoint", tmp_path / "pairs.safetensors", "--out", tmp_path / "out", "--format", "gif")
    assert not command("sample", folder / "clip.gif", *options)
    (path,) = capsys.readouterr().out.split()
    assert len(decode_all(Path(path)).frames) == 6 * 2 + 1
