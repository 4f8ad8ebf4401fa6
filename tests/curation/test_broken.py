"""Every kind of broken or odd video becomes clips, or is reported by name; none ends the run."""

import os

import numpy as np
import pytest

from svdjax.curation.pipeline import Task
from svdjax.curation.settings import Settings
from svdjax.curation.sources import find_videos
from svdjax.curation.store import read_failures, read_notes, read_rows
from svdjax.data.decoding import decode_all, probe
from tests.curation.broken import CASES, write_all

SETTINGS = Settings(text=False)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """All cases, curated in one run: rows, failures and notes by file name, and the directory."""
    folder, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("out")
    write_all(folder)
    videos = find_videos([str(folder)])
    for video in videos:
        assert Task(out=out, settings=SETTINGS)(video) == video.name
    names = {video.name: os.path.basename(video.where) for video in videos}
    rows = {name: [] for name in names.values()}
    for row in read_rows(out):
        rows[names[row["video"]]].append(row)
    failures = {names[failure["video"]]: failure["error"] for failure in read_failures(out)}
    return rows, failures, {names[name]: notes for name, notes in read_notes(out).items()}, out


def test_there_are_more_than_twenty_kinds():
    assert len(CASES) > 25


@pytest.mark.parametrize("name", CASES)
def test_each_is_handled_or_reported(curated, name):
    rows, failures, _, _ = curated
    expected = CASES[name][1]
    if isinstance(expected, str):
        assert rows[name] == [] and expected in failures[name] and name in failures[name]
        assert "\n" not in failures[name]
    else:
        assert name not in failures and len(rows[name]) == expected


@pytest.mark.parametrize("name", ["folder.mp4", "dangling.mp4", "locked.mp4", "pipe.mp4"])
def test_what_is_no_readable_file_is_reported(curated, name):
    rows, failures, _, _ = curated
    if name == "locked.mp4" and os.geteuid() == 0:  # nothing is locked to root
        assert len(rows[name]) == 1
    else:
        assert rows[name] == [] and name in failures[name]


def test_every_clip_is_a_sound_video_of_the_length_its_row_says(curated):
    rows, _, _, out = curated
    clips = [row for found in rows.values() for row in found]
    assert len(clips) > 20
    for row in clips:
        frames = decode_all(out / row["file"])
        assert len(frames.times) == row["frames"]
        assert frames.frames.shape[1:3] == (row["height"], row["width"])
        assert probe(out / row["file"]).last == pytest.approx(row["seconds"] - 1 / row["fps"], abs=0.01)
        assert 0 <= row["start"] < row["end"]
        assert np.isfinite(row["motion_score"])


def test_damage_is_noted_and_in_no_clip(curated):
    rows, _, notes, _ = curated
    assert "damaged" in notes["corrupt_middle.mp4"][0] and "ends after" in " ".join(notes["truncated.mp4"])
    before, after = sorted(rows["corrupt_middle.mp4"], key=lambda row: row["start"])
    assert before["end"] < after["start"]
    moves = [rows[name][0]["motion_score"] for name in ("ten_bit.mp4", "loop.gif", "web.webm", "alpha.mov")]
    moves += [before["motion_score"], after["motion_score"]]
    np.testing.assert_allclose(moves, np.mean(moves), rtol=0.03)  # the same motion, so the same pictures


def test_turned_videos_are_upright(curated):
    rows = curated[0]
    for name in ("turned.mp4", "turned_encoded.mp4"):
        (row,) = rows[name]
        assert (row["height"], row["width"]) == (128, 96) and row["camera"] == "pan down"
    assert rows["turned.mp4"][0]["copied"] and not rows["turned_encoded.mp4"][0]["copied"]
    assert rows["sound.mp4"][0]["camera"] == "pan right"
