"""Files that fail for a moment are read all the same, and those that go on failing are not taken for bad clips."""

import errno
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdjax.data import files
from svdjax.data.cache import LatentCache, finish, write_shard
from svdjax.data.decoding import decode, decode_all
from svdjax.data.files import PatientFile, caption_beside
from svdjax.data.motion import MotionBuckets
from svdjax.data.pictures import decode_picture
from svdjax.data.records import ClipRecord, write_shards
from svdjax.data.sources import ANNOTATIONS, FolderSource, ShardSource
from svdjax.errors import Unread, UserError
from tests.data.clips import encode, ramp


@pytest.fixture
def waits(monkeypatch):
    """The waits that were made, in no time."""
    made = []
    monkeypatch.setattr(files.time, "sleep", made.append)
    return made


@pytest.fixture
def hiccups(monkeypatch, waits):
    """Have reading fail: ``hiccups(name, every)`` the first and then each so many times in the files of a name."""

    def fail(name, every):
        class Failing(io.FileIO):
            reads = 0

            def readinto(self, buffer):
                if name in self.name:
                    Failing.reads += 1
                    if Failing.reads % every == 1 % every:
                        raise OSError(errno.EIO, "Input/output error")
                return super().readinto(buffer)

        monkeypatch.setattr(files, "FileIO", Failing)

    return fail


def test_a_patient_file_reads_like_any_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with PatientFile(path) as file:
        assert file.read(10) == bytes(range(10)) and file.tell() == 10
        assert file.seek(5, 1) == 15 and file.read(1) == b"\x0f"
        assert file.seek(-1, 2) == 99 and file.read() == b"c" and file.read() == b""
        assert file.seek(3) == 3 and file.read(2) == b"\x03\x04"
    assert file.closed


def test_what_fails_for_a_moment_is_read_on_where_it_was(tmp_path, hiccups, waits):
    video, picture = np.random.default_rng(0).integers(0, 256, (2, 9, 64, 64, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(video))
    (tmp_path / "a.txt").write_text("grey")
    Image.fromarray(picture[0]).save(tmp_path / "a.png")
    read = (
        lambda: decode(tmp_path / "a.mp4", [0.1, 0.7]),
        lambda: decode_all(tmp_path / "a.mp4").frames,
        lambda: decode_picture(tmp_path / "a.png").frames,
        lambda: caption_beside(tmp_path / "a.mp4"),
    )
    wanted = [each() for each in read]
    hiccups("a.", every=2)
    for each, found in zip(read, wanted, strict=True):
        waits.clear()
        np.testing.assert_array_equal(each(), found)
        assert set(waits) == {0.2}


@pytest.mark.parametrize("read", [lambda path: decode(path, [0.0]), decode_picture])
def test_what_goes_on_failing_is_said_in_one_line(tmp_path, hiccups, waits, read):
    (tmp_path / "a.mp4").write_bytes(encode(ramp()))
    hiccups("a.mp4", every=1)
    with pytest.raises(Unread, match=r"a\.mp4 cannot be read \(Input/output error\): check the disk or network"):
        read(tmp_path / "a.mp4")
    assert waits == [0.2, 1.0, 5.0]


@pytest.mark.parametrize("good", [2, 4])
def test_what_fails_half_way_is_waited_for_once(tmp_path, monkeypatch, waits, capfd, good):
    class Lost(io.FileIO):
        reads = 0

        def readinto(self, buffer):
            Lost.reads += 1
            if Lost.reads > good:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().readinto(buffer)

    noise = np.random.default_rng(0).integers(0, 256, (9, 128, 128, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(noise))
    monkeypatch.setattr(files, "FileIO", Lost)
    with pytest.raises(Unread, match=r"a\.mp4 cannot be read \(Stale file handle\)"):
        decode_all(tmp_path / "a.mp4")
    assert waits == [0.2, 1.0, 5.0] and not capfd.readouterr().err


@pytest.mark.parametrize("read", [lambda path: decode(path, [0.0]), decode_picture])
def test_a_missing_file_is_not_waited_for(tmp_path, waits, read):
    with pytest.raises(Unread, match=r"none\.mp4"):
        read(tmp_path / "none.mp4")
    (tmp_path / "none.mp4").mkdir()
    with pytest.raises(UserError, match=r"none\.mp4.*(not a picture|as a video \(Is a directory\): replace)"):
        read(tmp_path / "none.mp4")
    assert not waits


def test_what_could_not_be_read_is_not_noted_as_bad(tmp_path, hiccups, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(encode(ramp()))
    with monkeypatch.context() as patch:
        patch.setattr(files, "WAITS", ())
        hiccups("a.mp4", every=1)
        assert len(FolderSource(tmp_path, max_bad=0.5)) == 1
    hiccups("nothing", every=1)
    assert list(json.loads((tmp_path / ANNOTATIONS).read_text())["clips"]) == ["b.mp4"]
    assert len(FolderSource(tmp_path)) == 2


@pytest.fixture
def shards(tmp_path):
    """A data set and a latent cache of 5 clips of one shard each, with nothing read yet but how many they are."""
    noise = np.random.default_rng(0)
    notes = {"name": "a", "motion_score": 1.0}
    clips = [ClipRecord(video=noise.bytes(40_000), annotations=notes) for _ in range(5)]
    write_shards(clips, tmp_path / "set", shards=1)
    (tmp_path / "cache").mkdir()
    items = [{"latents": noise.random(5000)} for _ in range(5)]
    write_shard(tmp_path / "cache", 0, items, {"clips": [[1, 8, 8, 1]] * 5})
    finish(tmp_path / "cache", 1, MotionBuckets(thresholds=tuple(np.linspace(0, 1, 254))), "none")
    return ShardSource(tmp_path / "set"), LatentCache(tmp_path / "cache")


def lose(directory):
    """Put a file that cannot be read in the place of those that are open in a directory."""
    closed = os.open(os.devnull, os.O_WRONLY)
    for opened in Path("/proc/self/fd").iterdir():
        if opened.exists() and directory in opened.resolve().parents:
            os.dup2(closed, int(opened.name))
    os.close(closed)


@pytest.mark.skipif(sys.platform != "linux", reason="finds open files in /proc")
def test_shards_that_fail_for_a_moment_are_opened_anew(tmp_path, shards, waits, monkeypatch):
    clips, cache = shards
    wanted = [clips[i].video for i in range(5)], [cache[i]["latents"] for i in range(5)]
    lose(tmp_path)
    assert [clips[i].video for i in range(5)] == wanted[0]
    np.testing.assert_array_equal([cache[i]["latents"] for i in range(5)], wanted[1])
    assert waits == [0.2, 0.2]
    lose(tmp_path)
    monkeypatch.setattr(files, "WAITS", ())
    for source, name in (clips, "set/clips"), (cache, "cache/latents"):
        with pytest.raises(Unread, match=rf"{name}-0.*\.array_record cannot be read .Bad file descriptor.: check"):
            source[3]


def test_a_shard_that_is_gone_is_not_waited_for(tmp_path, shards, waits):
    for source, name in zip(shards, ("set", "cache"), strict=True):
        (shard,) = (tmp_path / name).glob("*.array_record")
        shard.unlink()
        with pytest.raises(Unread, match=rf"{shard.name} cannot be read \(No such file or directory\)"):
            source[3]
    assert not waits


def test_indices_that_fail_for_a_moment_are_read_and_else_not_called_damaged(tmp_path, shards, hiccups, waits):
    every = [
        ("set/dataset.json", ShardSource),
        ("cache/dataset.json", LatentCache),
        ("cache/clips.npy", LatentCache),
    ]
    for name, opened in every:
        hiccups(name, every=2)
        assert len(opened((tmp_path / name).parent)) == 5
        assert set(waits) == {0.2}
        hiccups(name, every=1)
        with pytest.raises(Unread, match=rf"{name} cannot be read \(Input/output error\)"):
            opened((tmp_path / name).parent)
        waits.clear()


@pytest.fixture
def full_disk():
    """Files end at 100 kB, as if the disk were full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_in_one_line_and_leaves_no_part_of_a_shard(tmp_path, full_disk):
    noise = np.random.default_rng(0)
    items = ({"latents": noise.random(4000)} for _ in range(9))
    with pytest.raises(
        UserError, match=r"latents-00003\.partial cannot be written \(.*File too large\): make"
    ) as caught:
        write_shard(tmp_path, 3, items, {"clips": []})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    clip = ClipRecord(video=noise.bytes(30_000), annotations={"name": "a", "motion_score": 1.0})
    with pytest.raises(UserError, match=r"clips-.* cannot be written \(.*File too large\): make"):
        write_shards([clip] * 20, tmp_path / "set")
    assert not list(tmp_path.iterdir())
