"""The folder of videos: measured once, broken files skipped by name, too many of them an error."""

import json
import logging
import os
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from svdjax.data import decoding, measuring, sources
from svdjax.data.decoding import Frames
from svdjax.data.measuring import BadClips
from svdjax.data.opening import open_mixture, open_source
from svdjax.data.pipeline import clip_batches
from svdjax.data.records import write_shards
from svdjax.data.sampling import ClipSampling
from svdjax.data.sources import ANNOTATIONS, FolderSource, InMemory, Mixture, ShardSource
from svdjax.errors import UserError
from tests.data.clips import encode, ramp, turned


@pytest.fixture
def folder(tmp_path):
    """Five kinds of readable videos, one in a subfolder, one with a caption, and a file that is no video."""
    ends = {
        "a.mp4": encode(ramp(8)),
        "b.webm": encode(ramp(8), codec="libvpx-vp9", container="webm"),
        "c.avi": encode(ramp(8, 30, 46), codec="mpeg4", container="avi"),
        "sub/d.MOV": turned(encode(ramp(8)), 1),
        "e.mkv": encode(ramp(8), times=[0, 50, 100, 300, 350, 600, 900, 1000], container="matroska"),
        "notes.md": b"# nothing",
        "a.txt": b" a grey wall \n",
    }
    (tmp_path / "sub").mkdir()
    for name, data in ends.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_folder_is_measured_in_order_of_names(folder):
    source = open_source(folder)
    assert [source[i].annotations["name"] for i in range(5)] == ["a.mp4", "b.webm", "c.avi", "e.mkv", "sub/d.MOV"]
    first, phone = source[0].annotations, source[4].annotations
    assert first["caption"] == "a grey wall" and "caption" not in source[1].annotations
    assert (first["fps"], first["seconds"]) == (pytest.approx(10), pytest.approx(0.8))
    assert (phone["height"], phone["width"]) == (48, 32)
    assert all(1 <= source.buckets.bucket(source[i].annotations["motion_score"]) <= 255 for i in range(5))


def test_a_caption_that_is_not_utf_8_is_read_all_the_same(folder):
    (folder / "b.txt").write_bytes("ein Mädchen".encode("latin-1"))
    (folder / "c.txt").write_text("ein Mädchen", encoding="utf-8")
    captions = [record.annotations.get("caption") for record in FolderSource(folder)]
    assert captions == ["a grey wall", "ein M\ufffddchen", "ein Mädchen", None, None]


def test_measurements_are_kept_until_a_file_changes(folder, monkeypatch):
    first = FolderSource(folder)
    monkeypatch.setattr(sources, "motion_score", lambda file, **known: 99.0)
    again = FolderSource(folder)
    assert [again[i] for i in range(5)] == [first[i] for i in range(5)]
    os.utime(folder / "c.avi", (time.time(), time.time() + 10))
    changed = FolderSource(folder)
    assert [changed[i].annotations["motion_score"] == 99.0 for i in range(5)] == [False, False, True, False, False]


def test_sizes_that_were_measured_as_if_all_pixels_were_square_are_measured_again(folder):
    (folder / "wide.mp4").write_bytes(encode(ramp(8), aspect=Fraction(2)))
    buckets = FolderSource(folder).buckets
    found = json.loads((folder / ANNOTATIONS).read_text())
    assert found["clips"]["wide.mp4"]["width"] == 96
    del found["clips"]["wide.mp4"]["version"]
    found["clips"]["wide.mp4"]["width"] = 48
    (folder / ANNOTATIONS).write_text(json.dumps(found))
    again = FolderSource(folder)
    assert again.geometry()[:, 3].tolist() == [48, 48, 46, 48, 32, 96] and again.buckets == buckets


def test_motion_buckets_stay_when_files_come_and_go(folder):
    before = FolderSource(folder).buckets
    for shift in range(3):
        (folder / f"moving{shift}.mp4").write_bytes(encode(np.roll(ramp(8), 4 * shift, axis=2)[:, :, ::-1]))
    (folder / "a.mp4").unlink()
    assert len(FolderSource(folder)) == 7 and FolderSource(folder).buckets == before
    (folder / ANNOTATIONS).unlink()
    assert FolderSource(folder).buckets != before


@pytest.mark.parametrize("kept", ["none", "of an older version", "of other files"])
def test_without_opencv_what_is_missing_is_named(folder, monkeypatch, kept):
    if kept != "none":
        FolderSource(folder)
        found = json.loads((folder / ANNOTATIONS).read_text())
        if kept == "of an older version":
            for entry in found["clips"].values():
                del entry["changed"]
        else:
            del found["clips"]["b.webm"]
        (folder / ANNOTATIONS).write_text(json.dumps(found))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"cv2 is not installed: run `pip install 'svdjax\[measure\]'`"):
        FolderSource(folder)


def test_what_is_measured_needs_no_opencv(folder, monkeypatch):
    FolderSource(folder)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert len(FolderSource(folder)) == 5


@pytest.mark.parametrize("damaged", ["{{{", "[]", '{"motion_thresholds": []}'])
def test_a_damaged_cache_is_named_and_left_alone(folder, damaged):
    (folder / ANNOTATIONS).write_text(damaged)
    with pytest.raises(UserError, match=rf"{ANNOTATIONS} cannot be read \(.*\): restore it, or remove it"):
        FolderSource(folder)
    assert (folder / ANNOTATIONS).read_text() == damaged


def test_a_folder_that_cannot_be_written_only_costs_time(folder, caplog, monkeypatch):
    def full(path, value):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(measuring, "write_json", full)
    with caplog.at_level(logging.WARNING):
        assert len(FolderSource(folder)) == 5
    assert caplog.text.count("cannot be written (No space left on device): the clips will be measured again") == 1


@pytest.mark.parametrize("often", [0.0, 60.0])
def test_an_interrupted_measurement_goes_on_where_it_stopped(folder, monkeypatch, often):
    monkeypatch.setattr(measuring, "_OFTEN", often)
    measure, seen = sources.measure, []

    def interrupted(file, name):
        seen.append(name)
        if len(seen) == 3:
            kept = folder / ANNOTATIONS
            assert (len(json.loads(kept.read_text())["clips"]) if kept.exists() else 0) == (0 if often else 2)
            raise KeyboardInterrupt
        return measure(file, name)

    monkeypatch.setattr(sources, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FolderSource(folder)
    found = FolderSource(folder)
    assert seen == ["a.mp4", "b.webm", "c.avi", "c.avi", "e.mkv", "sub/d.MOV"]
    assert [found[i].annotations["name"] for i in range(5)] == [*seen[:3], *seen[4:]]


def test_how_far_it_is_with_measuring_is_shown(folder, capfd):
    FolderSource(folder)
    assert "5/5" in capfd.readouterr().err
    FolderSource(folder)
    assert not capfd.readouterr().err


def test_what_is_known_is_not_written_again(folder):
    broken(folder, 1)
    FolderSource(folder, max_bad=0.5)
    before = (folder / ANNOTATIONS).stat()
    FolderSource(folder, max_bad=0.5)
    after = (folder / ANNOTATIONS).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_is_opened_twice_to_be_measured(folder, monkeypatch):
    opened, real = [], decoding.opened
    monkeypatch.setattr(decoding, "opened", lambda *args: opened.append(args) or real(*args))
    sources.measure(folder / "a.mp4", "a.mp4")
    assert len(opened) == 2


def broken(folder, count):
    for index in range(count):
        (folder / f"bad{index}.mp4").write_bytes([b"", b"just text", encode(ramp())[:800]][index % 3])


@pytest.mark.parametrize(("share", "said"), [(0.1, "10%"), (0.005, "0.5%"), (0.00025, "0.025%"), (0.0, "0%")])
def test_the_share_that_may_be_bad_is_said_as_it_is(share, said):
    bad = BadClips(max_share=share, what="clips")
    bad.judge(10)
    bad.skip(1, UserError("rotten"))
    bad.skip(2, UserError("rotten"))
    with pytest.raises(UserError, match=rf"2 of 10 clips cannot be used, more than the {said} allowed:"):
        bad.judge(10)
    with pytest.raises(UserError, match="2 of 2 clips cannot be used, so none is left: see the log"):
        bad.judge(2)


def test_broken_files_are_skipped_by_name(folder, caplog):
    broken(folder, 3)
    with caplog.at_level(logging.WARNING):
        source = FolderSource(folder, max_bad=0.5)
    assert len(source) == 5
    for index in range(3):
        assert f"bad{index}.mp4" in caplog.text


def test_too_many_broken_files_are_an_error_that_costs_no_measurement(folder, monkeypatch, caplog):
    broken(folder, 1)
    with pytest.raises(UserError, match=r"1 of 6 files in .* cannot be used, more than the 10%"):
        FolderSource(folder)
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "measure", lambda file, name: pytest.fail(f"{name} is measured again"))
        assert len(FolderSource(folder, max_bad=0.5)) == 5
    assert "bad0.mp4 cannot be read as a video" in caplog.text
    (folder / "bad0.mp4").write_bytes(encode(ramp(8)))
    assert len(FolderSource(folder)) == 6


def test_nothing_left_is_an_error_whatever_the_share(tmp_path):
    broken(tmp_path, 2)
    with pytest.raises(UserError, match="2 of 2"):
        FolderSource(tmp_path, max_bad=1.0)


def test_folders_without_videos_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no videos or pictures"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_source(tmp_path / "missing")


def test_a_folder_becomes_shards(folder, tmp_path):
    source = FolderSource(folder)
    write_shards((source[i] for i in range(5)), tmp_path / "set", shards=2)
    shards = open_source(tmp_path / "set")
    assert isinstance(shards, ShardSource) and shards.buckets == source.buckets
    packed = {shards[i].annotations["name"]: shards[i].video for i in range(5)}
    assert packed["sub/d.MOV"] == (folder / "sub" / "d.MOV").read_bytes()


def test_in_memory_decodes_once(folder, monkeypatch):
    source = InMemory(FolderSource(folder), ClipSampling(size=(16, 24)))
    first = source[3]
    assert isinstance(first.video, Frames) and first.video.frames.shape == (8, 16, 24, 3)
    np.testing.assert_allclose(first.video.times, [0, 0.05, 0.1, 0.3, 0.35, 0.6, 0.9, 1.0], atol=2e-3)
    assert source[np.int64(3)] is first


def test_sources_are_sorted_into_buckets_without_reading_them(folder, tmp_path):
    source = FolderSource(folder)
    write_shards((source[i] for i in range(5)), tmp_path / "set", shards=2)
    shards = open_source(tmp_path / "set")
    for each in (source, shards, open_mixture([folder, tmp_path / "set"], (1.0, 1.0))):
        known = [each[i].annotations for i in range(len(each))]
        wanted = [[notes[name] for name in ("fps", "seconds", "height", "width")] for notes in known]
        np.testing.assert_array_equal(each.geometry(), wanted)
    (tmp_path / "set" / "geometry.npy").unlink()
    with pytest.raises(UserError, match=r"holds no geometry\.npy"):
        clip_batches(shards, ClipSampling(buckets=((1, 8, 8),)), batch_size=1, seed=0)


def test_one_source_is_opened_as_it_is(folder):
    assert isinstance(open_mixture([folder], ()), FolderSource)
    both = open_mixture([folder, folder], (1.0, 2.0))
    assert isinstance(both, Mixture) and len(both) == 10
    assert both[7] == both[2] and both[-1].annotations["name"] == "sub/d.MOV"
