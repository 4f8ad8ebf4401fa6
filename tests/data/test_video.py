"""Writing: every kind of file plays back, keeps its settings, and appears complete or not at all."""

import os

import av
import numpy as np
import pytest
from PIL import Image

from svdjax.data.decoding import decode_all, probe
from svdjax.data.video import read_metadata, write_video
from svdjax.errors import UserError
from tests.data.clips import numbers, ramp

SETTINGS = {"seed": 23, "checkpoint": "süd/模型.safetensors", "guidance": [1.0, 3.0], "long": "x" * 3000}


def smooth(frames=6, height=40, width=56):
    """Colourful gradients that wander, as sampled videos have them."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 9 + t / 3 + k) * np.cos(y / 11 - k) for k in (0, 2, 4)]
    return (np.stack(waves, -1) * 110 + 128).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", ["a.mp4", "a.MP4", "a.gif", "a.webp", "frames"])
def test_settings_are_inside_the_file(tmp_path, name):
    write_video(tmp_path / name, ramp(4), 7.0, metadata=SETTINGS)
    assert read_metadata(tmp_path / name) == SETTINGS
    assert os.listdir(tmp_path) == [name]
    write_video(tmp_path / name, ramp(3), 7.0)
    assert read_metadata(tmp_path / name) == {}


@pytest.mark.parametrize("size", [(40, 56), (41, 55), (1, 3)])
def test_mp4_has_true_colours_and_even_sides(tmp_path, size):
    video = smooth(6, *size)
    write_video(tmp_path / "a.mp4", video, 7.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 7
    decoded = decode_all(tmp_path / "a.mp4").frames
    assert decoded.shape == (6, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    if size[0] > 1:
        assert psnr(decoded[:, : size[0], : size[1]], video) > 35
    assert (tmp_path / "a.mp4").read_bytes().index(b"moov") < (tmp_path / "a.mp4").read_bytes().index(b"mdat")


def test_mp4_keeps_fractional_rates(tmp_path):
    write_video(tmp_path / "a.mp4", ramp(8), 30000 / 1001)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(29.97, rel=1e-4)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animated_pictures_hold_every_frame(tmp_path, name):
    write_video(tmp_path / name, ramp(6), 10.0)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 6 and image.info["loop"] == 0
        shown = []
        for index in range(6):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")))
            assert image.info["duration"] == 100
    assert numbers(np.stack(shown)) == list(range(6))


def test_a_folder_of_png_files_is_exact(tmp_path):
    video = smooth()
    write_video(tmp_path / "out", video, 7.0, metadata=SETTINGS)
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"frame_{i:04d}.png" for i in range(6)]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), video)
    assert read_metadata(files[-1]) == SETTINGS


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "frames"])
def test_frames_may_come_one_by_one(tmp_path, name):
    (tmp_path / "whole").mkdir()
    write_video(tmp_path / "whole" / name, ramp(5), 7.0)
    write_video(tmp_path / name, iter(ramp(5)), 7.0)
    for file in sorted((tmp_path / name).iterdir()) if name == "frames" else [tmp_path / name]:
        assert file.read_bytes() == (tmp_path / "whole" / file.relative_to(tmp_path)).read_bytes()


def test_one_frame_is_a_video_too(tmp_path):
    for name in ("a.mp4", "a.gif", "a.webp", "frames"):
        write_video(tmp_path / name, ramp(1), 7.0, metadata={"n": 1})
        assert read_metadata(tmp_path / name) == {"n": 1}


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        ("a.avi", 2, 7.0, r"ends in \.avi: name it"),
        ("none/a.mp4", 2, 7.0, "cannot be written"),
        ("none/frames", 2, 7.0, "cannot be written"),
        ("none/a.gif", 2, 7.0, "cannot be written"),
        ("a.mp4", 0, 7.0, "0 frames"),
        ("a.png", 2, 7.0, "several frames make no picture"),
        ("a.mp4", 2, 0.0, "at 0 fps"),
        ("a.mp4", 2, float("nan"), "at nan fps"),
        ("a.mp4", 2, float("inf"), "at inf fps"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, name, frames, fps, message):
    with pytest.raises(UserError, match=message) as caught:
        write_video(tmp_path / name, ramp(3)[:frames], fps)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files \(thesis\.txt\)"):
        write_video(tmp_path, ramp(2), 7.0)
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "a.mp4" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        write_video(tmp_path / "a.mp4", ramp(2), 7.0)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failure_keeps_the_older_file(tmp_path, monkeypatch):
    write_video(tmp_path / "a.gif", ramp(2), 7.0, metadata={"old": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        write_video(tmp_path / "a.gif", ramp(2), 7.0)
    monkeypatch.undo()
    assert read_metadata(tmp_path / "a.gif") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.gif"]


def test_metadata_of_other_peoples_files(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.gif")
    assert read_metadata(tmp_path / "plain.gif") == {}
    (tmp_path / "no.mp4").write_text("hello")
    (tmp_path / "no.gif").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("no.mp4", "no.gif", "empty", "missing.webp"):
        with pytest.raises(UserError, match="cannot be read"):
            read_metadata(tmp_path / name)
