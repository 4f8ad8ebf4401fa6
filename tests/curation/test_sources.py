"""Videos are found in folders, lists and URLs, and keep their names."""

from pathlib import Path

import pytest

from svdjax.curation.sources import Origin, SourceVideo, caption_of, find_videos, local_file
from svdjax.errors import UserError


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_folders_lists_and_files_are_searched(tmp_path):
    films = folder(tmp_path / "films", "a.mp4", "sub/b c.WEBM", "notes.txt", "sub/still.png")
    other = folder(tmp_path, "one.mkv", "listed.mov")
    (tmp_path / "list.txt").write_text(f"listed.mov\n\n{films}/a.mp4\ngs://bucket/x.mp4\n")
    found = find_videos([str(films), str(other / "one.mkv"), str(tmp_path / "list.txt")])
    assert {video.where for video in found} == {
        f"{films}/a.mp4",
        f"{films}/sub/b c.WEBM",
        f"{other}/one.mkv",
        f"{tmp_path}/listed.mov",
        "gs://bucket/x.mp4",
    }


def test_names_stay_when_the_folder_moves_and_tell_videos_apart(tmp_path):
    names = ("x/a.mp4", "x/a.webm", "x-a.mp4", "x/ä.mp4")
    here = find_videos([str(folder(tmp_path / "1" / "films", *names))])
    there = find_videos([str(folder(tmp_path / "2" / "films", *names))])
    assert [video.name for video in here] == [video.name for video in there]
    assert len({video.name for video in here}) == 4
    assert all(video.name.isascii() and "/" not in video.name for video in here)
    assert find_videos([str(tmp_path / "1" / "films")] * 2) == here


def test_clips_that_curation_wrote_into_a_source_are_no_source(tmp_path):
    films = folder(tmp_path / "films", "a.mp4", "set/clips/a/a_000000.mp4", "set/curation.json", "settle/b.mp4")
    assert [video.where for video in find_videos([str(films)])] == [f"{films}/a.mp4", f"{films}/settle/b.mp4"]


def test_a_video_is_known_where_its_folder_moves_and_not_taken_for_another(tmp_path, monkeypatch):
    films = folder(tmp_path / "1" / "films", "a.mp4")
    (video,) = find_videos([str(films)])
    origin = Origin.of(video)
    origin.check(video)
    monkeypatch.chdir(tmp_path / "1")
    origin.check(find_videos(["films"])[0])
    (tmp_path / "link").symlink_to(tmp_path / "1")
    origin.check(find_videos([str(tmp_path / "link" / "films")])[0])
    (twin,) = find_videos([str(folder(tmp_path / "2" / "films", "a.mp4"))])
    with pytest.raises(UserError, match=f"{twin.where} and {video.where} would have one name"):
        origin.check(twin)
    Path(video.where).unlink()
    origin.check(twin)
    Path(twin.where).write_bytes(b"another size")
    with pytest.raises(UserError, match="would have one name"):
        origin.check(twin)


def test_mistakes_are_named(tmp_path):
    films = folder(tmp_path / "films", "a.mp4")
    twin = folder(tmp_path / "more" / "films", "a.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00\x00")
    for sources, message in (
        (["nowhere"], "nowhere does not exist"),
        ([tmp_path / "empty"], "no videos"),
        ([films, twin], "one name"),
        ([tmp_path / "bad.txt"], "no list"),
    ):
        with pytest.raises(UserError, match=message):
            find_videos([str(source) for source in sources])


def test_a_url_is_copied_for_the_time_it_is_needed_and_has_its_caption(tmp_path):
    film = folder(tmp_path, "bucket/deep/film.mp4") / "bucket/deep/film.mp4"
    (video,) = find_videos([f"file://{tmp_path}/bucket/"])
    assert video.where == f"file://{film}"
    with local_file(video, tmp_path) as path:
        assert path != film and path.read_bytes() == film.read_bytes()
    assert not path.exists() and film.exists()
    with pytest.raises(UserError, match="cannot be written") as raised, local_file(video, film):
        pass
    assert isinstance(raised.value.__cause__, OSError)  # no fault of the video
    assert caption_of(video) == ""
    film.with_suffix(".txt").write_bytes("ein Café\n".encode("latin-1"))
    assert caption_of(video) == caption_of(SourceVideo(name="same", where=str(film))) == "ein Caf\ufffd"
    gone = SourceVideo(name="gone", where=f"file://{tmp_path}/gone.mp4")
    with pytest.raises(UserError, match="cannot be read"), local_file(gone, tmp_path):
        pass
    assert not list(tmp_path.glob(".gone*"))
