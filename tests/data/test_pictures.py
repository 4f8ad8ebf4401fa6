"""Pictures as clips of one frame: read as they are meant to look, marked, repeated, and mixed with videos."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from svdjax.data.opening import open_mixture, open_source
from svdjax.data.pictures import decode_picture, measure_picture
from svdjax.data.pipeline import clip_batches, fixed_clips
from svdjax.data.records import write_shards, write_sprites
from svdjax.data.sampling import ClipSampling
from svdjax.data.sources import ANNOTATIONS, PICTURES, FolderSource
from svdjax.data.sprites import World
from svdjax.errors import UserError
from svdjax.training.data import DataConfig, open_clips
from tests.data.clips import encode, ramp

SAMPLING = ClipSampling(frames=3, fps=(4.0, 6.0), size=(16, 24), captions=True)


def halves(height=40, width=60):
    """Red above blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = pixels[height // 2 :, :, 2] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same picture as different cameras and editors keep it; one has a caption."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "sub").mkdir()
    halves().save(root / "a.png")
    (root / "a.txt").write_text(" red over blue\n")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned clockwise
    halves().rotate(90, expand=True).save(root / "sub" / "B.JPG", exif=turned, quality=95)
    halves().save(root / "c.webp", lossless=True)
    clear = halves().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 20, 60, 40))
    clear.save(root / "d.png")
    (root / "notes.md").write_text("# nothing")
    return root


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sprites") / "set"
    write_sprites(World(height=16, width=24, frames=4), directory, seed=0, count=12)
    return directory


def test_a_folder_of_pictures_is_a_source_of_clips(folder):
    source = open_source(folder)
    notes = [source[i].annotations for i in range(len(source))]
    assert isinstance(source, FolderSource) and source.has_pictures
    assert [entry["name"] for entry in notes] == ["a.png", "c.webp", "d.png", "sub/B.JPG"]
    assert [entry.get("caption") for entry in notes] == ["red over blue", None, None, None]
    assert {(entry["height"], entry["width"]) for entry in notes} == {(40, 60)}
    assert (folder / PICTURES).exists() and not (folder / ANNOTATIONS).exists()


def test_pictures_look_as_they_are_meant_to(folder):
    wanted = np.asarray(halves())[None]
    for name in ("a.png", "c.webp", "sub/B.JPG"):
        frames = decode_picture(folder / name).frames
        assert frames.shape == wanted.shape
        assert np.abs(frames.astype(int) - wanted).mean() < 3
        assert decode_picture((folder / name).read_bytes(), size=(8, 12)).frames.shape == (1, 8, 12, 3)
    clear = decode_picture(folder / "d.png").frames
    np.testing.assert_array_equal(clear[:, :20], wanted[:, :20])
    assert (clear[:, 20:] == 255).all()


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_picture_fills_the_frames_and_is_marked(folder, in_memory):
    batch = clip_batches(open_source(folder), SAMPLING, batch_size=8, seed=0, in_memory=in_memory)[0]
    assert batch["video"].shape == (8, 3, 16, 24, 3)
    assert (batch["video"] == batch["video"][:, :1]).all()
    assert batch["image_only"].dtype == bool and batch["image_only"].all()
    assert set(batch["motion_bucket"]) == {1.0} and set(batch["caption"]) == {"", "red over blue"}
    assert batch["fps"].min() >= 4 and batch["fps"].max() <= 6 and len(set(batch["fps"])) == 8
    one = ClipSampling(frames=1, size=(16, 24), fps=(0.01, 31.0))
    assert clip_batches(open_source(folder), one, batch_size=2, seed=0)[0]["video"].shape == (2, 1, 16, 24, 3)


def test_pictures_and_videos_in_one_batch(folder, sprites):
    mixture = open_mixture([sprites, folder], (3.0, 1.0))
    videos = open_source(sprites)
    assert mixture.motion_measure == videos.motion_measure and mixture.has_pictures
    # Each threshold of the map is the lowest with its share of the videos' clips below it: pictures have no part.
    assert mixture.buckets == open_mixture([sprites], (1.0,)).buckets
    batch = clip_batches(mixture, ClipSampling(frames=3, size=(16, 24)), batch_size=16, seed=0)[0]
    still = (batch["video"] == batch["video"][:, :1]).all((1, 2, 3, 4))
    assert batch["image_only"].sum() == 4 and still[batch["image_only"]].all()
    assert not still[~batch["image_only"]].all()
    assert "image_only" not in clip_batches(videos, ClipSampling(frames=3, size=(16, 24)), batch_size=2, seed=0)[0]


def test_with_several_shapes_a_picture_takes_the_fewest_frames(folder, sprites):
    sampling = ClipSampling(buckets=((1, 24, 16), (1, 16, 24), (4, 16, 24)))
    dataset = clip_batches(open_mixture([sprites, folder], (1.0, 1.0)), sampling, batch_size=2, seed=0)
    for batch in (dataset[i] for i in range(12)):
        assert batch["video"].shape[1:4] == ((1, 16, 24) if batch["image_only"].all() else (4, 16, 24))
        assert batch["image_only"].all() or not batch["image_only"].any()


def test_held_out_clips_can_be_pictures(folder, sprites):
    data = DataConfig(train=sprites, also=(folder,), weights=(1.0, 1.0), validation=folder, sampling=SAMPLING)
    (batch,) = open_clips(data, Console(quiet=True)).held_out(batch=4, count=1)
    assert batch["image_only"].all() and (batch["motion_bucket"] == 1).all()


@pytest.mark.parametrize("content", ["", "just text", "half"])
def test_broken_pictures_are_bad_clips(folder, tmp_path, caplog, content):
    """One without a header is left out at once, one that breaks off when it is drawn."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(noise).save(tmp_path / f"good{index}.png")
    whole = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2] if content == "half" else content.encode())
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path, max_bad=0.5)
        clips = list(fixed_clips(source, SAMPLING, max_bad=0.5))
    assert len(clips) == 3 and len(source) == (4 if content == "half" else 3)
    assert caplog.text.count("bad.png: not a picture") == 1
    with pytest.raises(UserError, match=r"1 of 4 .* cannot be used"):
        list(fixed_clips(open_source(tmp_path), SAMPLING))


def test_pictures_become_shards(folder, tmp_path):
    source = open_source(folder)
    write_shards((source[i] for i in range(4)), tmp_path / "set", shards=2)
    shards = open_source(tmp_path / "set")
    assert shards.has_pictures and shards.motion_measure == source.motion_measure
    first, again = (
        next(item for item in fixed_clips(each, SAMPLING) if item["caption"] == "red over blue")
        for each in (source, shards)
    )
    assert again["image_only"]
    np.testing.assert_array_equal(first["video"], again["video"])


def test_previews_beside_videos_are_left_out(tmp_path, caplog):
    (tmp_path / "a.mp4").write_bytes(encode(ramp(8)))
    halves().save(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert len(source) == 1 and not source.has_pictures
    assert "1 pictures beside videos are left out" in caplog.text


def test_errors_name_the_picture():
    with pytest.raises(UserError, match=r"none\.png: no such picture"):
        measure_picture(Path("none.png"), "none.png")
    with pytest.raises(UserError, match="cover: not a picture"):
        decode_picture(b"GIF", name="cover")
