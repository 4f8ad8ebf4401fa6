"""Records and shards: bit-exact round trips, nothing half-written, broken data sets refused."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from svdjax.data.decoding import Frames, decode_all
from svdjax.data.records import ClipRecord, check_sprites, pack, unpack, write_shards, write_sprites
from svdjax.data.sources import ShardSource
from svdjax.data.sprites import World, draw_clip
from svdjax.errors import UserError

SMALL = World(height=16, width=16, frames=4)


def clip(number, video=b"\x00\xff video"):
    return ClipRecord(
        video=video, annotations={"name": f"n{number}", "motion_score": float(number), "ünï": [1, None]}
    )


def test_records_are_bit_exact():
    record = clip(3, bytes(range(256)))
    assert unpack(pack(record)) == record
    assert pack(unpack(pack(record))) == pack(record)


def test_files_are_read_into_records(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"abc")
    assert unpack(pack(clip(0, tmp_path / "a.mp4"))).video == b"abc"
    with pytest.raises(TypeError, match="encoded"):
        pack(clip(0, Frames(frames=np.zeros((1, 8, 8, 3), np.uint8), times=np.zeros(1))))


def test_foreign_bytes_are_refused():
    with pytest.raises(UserError, match="another format"):
        unpack(b"RIFF....")


def test_sprites_come_back_from_shards_bit_for_bit(tmp_path):
    write_sprites(SMALL, tmp_path / "set", seed=5, count=7, shards=3)
    source = ShardSource(tmp_path / "set")
    assert len(source) == 7
    names = {source[i].annotations["name"]: source[i] for i in range(7)}
    for index in range(7):
        drawn, read = draw_clip(SMALL, 5, index), names[f"sprites-5-{index}"]
        decoded = decode_all(read.video)
        np.testing.assert_array_equal(decoded.frames, drawn.frames)
        np.testing.assert_allclose(decoded.times, np.arange(4) / 7, atol=1e-6)
        assert read.annotations["caption"] == drawn.truth.caption
        assert read.annotations["motion_score"] == drawn.truth.motion
        assert read.annotations == read.annotations | json.loads(json.dumps(drawn.truth.annotations()))


def test_a_set_drawn_with_other_settings_is_refused(tmp_path):
    write_sprites(SMALL, tmp_path / "set", seed=5, count=3)
    check_sprites(SMALL, tmp_path / "set", seed=5, count=3)
    with pytest.raises(UserError, match="drawn with another count of"):
        check_sprites(SMALL, tmp_path / "set", seed=5, count=4)
    with pytest.raises(UserError, match="drawn with another seed, frames of"):
        check_sprites(World(height=16, width=16, frames=5), tmp_path / "set", seed=6, count=3)
    index = tmp_path / "set" / "dataset.json"
    older = json.loads(index.read_text())
    del older["sprites"]["radius"]
    index.write_text(json.dumps(older))
    check_sprites(SMALL, tmp_path / "set", seed=5, count=3)
    with pytest.raises(UserError, match="drawn with another radius of"):
        check_sprites(dataclasses.replace(SMALL, radius=(0.2, 0.3)), tmp_path / "set", seed=5, count=3)
    write_shards((clip(i) for i in range(5)), tmp_path / "own")
    check_sprites(SMALL, tmp_path / "own", seed=5, count=3)


def test_the_index_counts_what_is_there(tmp_path):
    write_shards((clip(i) for i in range(5)), tmp_path / "set", shards=2)
    index = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert list(index["shards"].values()) == [3, 2] and index["clips"] == 5
    assert index["bytes"] == sum(len(pack(clip(i))) for i in range(5))
    assert ShardSource(tmp_path / "set").buckets.bucket(4.0) == 255
    assert ShardSource(tmp_path / "set").buckets.bucket(0.0) == 1


def test_a_failure_leaves_nothing(tmp_path):
    def failing():
        yield clip(0)
        raise UserError("the disk of clips is gone")

    with pytest.raises(UserError, match="is gone"):
        write_shards(failing(), tmp_path / "set")
    with pytest.raises(UserError, match="no motion scores"):
        write_shards([], tmp_path / "set")
    assert os.listdir(tmp_path) == []


def test_a_full_directory_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        write_shards([clip(0)], tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_shards([clip(0)], tmp_path / "file" / "set")


def test_a_damaged_record_is_named(tmp_path):
    write_shards((clip(i, np.random.default_rng(i).bytes(40_000)) for i in range(5)), tmp_path / "set", shards=1)
    (shard,) = (tmp_path / "set").glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[100_000:100_100] = bytes(100)
    shard.write_bytes(data)
    source = ShardSource(tmp_path / "set")
    assert source[0].annotations["name"] == "n0"
    with pytest.raises(UserError, match=r"clip 2 of .* is damaged"):
        source[2]


def damage_json(path: Path):
    (path / "dataset.json").write_text("{")


def damage_format(path: Path):
    (path / "dataset.json").write_text('{"format": "other"}')


def damage_shard(path: Path):
    next(path.glob("*.array_record")).unlink()


def swap_shards(path: Path):
    first, second = sorted(path.glob("*.array_record"))
    first.write_bytes(second.read_bytes())


def truncate_shard(path: Path):
    first = min(path.glob("*.array_record"))
    first.write_bytes(first.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_json, "is not JSON"),
        (damage_format, "not of format"),
        (damage_shard, "lacks clips-0000"),
        (swap_shards, "holds 4 clips, not 5"),
        (truncate_shard, "copy"),
        (lambda path: (path / "dataset.json").unlink(), "no dataset.json"),
    ],
)
def test_broken_data_sets_are_refused(tmp_path, damage, message):
    write_shards((clip(i) for i in range(5)), tmp_path / "set", shards=2)
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        ShardSource(tmp_path / "set")
    assert "\n" not in str(caught.value)
