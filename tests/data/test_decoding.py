"""Decoding: the right frames at the right times, upright and in true colours, from every kind of file."""

from fractions import Fraction

import numpy as np
import pytest

from svdjax.data import decoding
from svdjax.data.decoding import Frames, decode, decode_all, on_show, opened, packets_of, probe, resize_crop
from svdjax.data.video import encode_lossless
from svdjax.errors import UserError
from tests.data.clips import encode, numbers, ramp, turned


def test_lossless_clips_come_back_bit_for_bit():
    video = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), dtype=np.uint8)
    decoded = decode_all(encode_lossless(video, 7.0))
    np.testing.assert_array_equal(decoded.frames, video)
    np.testing.assert_allclose(decoded.times, np.arange(5) / 7, atol=1e-6)


def test_a_time_shows_the_last_frame_that_has_appeared():
    times = np.array([0.0, 0.1, 0.5])
    targets = np.array([0.0, 0.0995, 0.0985, 0.3, 0.4999, 0.5, 9.0])
    assert on_show(times, targets).tolist() == [0, 1, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("gop", [1, 5, 100])
@pytest.mark.parametrize("start", [0.0, 1.25, 1.9])
def test_sampling_at_a_lower_rate_after_seeking(gop, start):
    data = encode(ramp(22), gop=gop)
    times = start + np.arange(2) / 5 if start > 1.5 else start + np.arange(4) / 5
    expected = np.floor(times * 10 + 1e-6).astype(int)
    if start > 1.5:
        times, expected = times[:1], expected[:1]
    assert numbers(decode(data, times)) == expected.tolist()


@pytest.mark.parametrize(("codec", "container"), [("mpeg2video", "mpeg"), ("libx264", "mpegts")])
def test_a_container_that_seeks_too_far_gives_the_same_frames(codec, container):
    """MPEG-PS lands between key frames, MPEG-TS after the frame that is asked for."""
    still = {"x264-params": "scenecut=0:bframes=0"} if codec == "libx264" else {"sc_threshold": "1000000000"}
    video = np.repeat(ramp(22), 5, axis=0)
    data = encode(video, codec=codec, container=container, fps=25, gop=40, options=still)
    for time in np.arange(0.1, 4.3, 0.4):
        assert numbers(decode(data, [time])) == [int(time * 5)], time


def test_times_finer_than_the_frame_rate_repeat_frames():
    assert numbers(decode(encode(ramp(4)), [0.0, 0.04, 0.1, 0.16, 0.3])) == [0, 0, 1, 1, 3]


def test_decoded_frames_answer_like_the_file():
    data = encode(ramp(12))
    times = [0.05, 0.3, 0.95]
    np.testing.assert_array_equal(decode(decode_all(data), times), decode(data, times))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_variable_frame_rates_go_by_time_stamps(container):
    times = [0, 40, 80, 500, 540, 2000]
    data = encode(ramp(6), times=times, container=container)
    assert numbers(decode(data, [0.0, 0.3, 0.52, 1.9, 2.0])) == [0, 2, 3, 4, 5]
    assert probe(data).last == pytest.approx(2.0, abs=2e-3)
    assert probe(data).fps == pytest.approx(25.0, rel=1e-3)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_phone_videos_are_turned_upright(quarter_turns):
    video = ramp(3)
    data = turned(encode(video), quarter_turns)
    expected = np.rot90(video, -quarter_turns, axes=(1, 2))
    decoded = decode_all(data).frames
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 4
    info = probe(data)
    assert (info.height, info.width) == expected.shape[1:3]


@pytest.mark.parametrize(("container", "quarter_turns"), [("mp4", 0), ("mp4", 1), ("matroska", 0)])
def test_pixels_that_are_not_square_are_made_square(container, quarter_turns):
    """A box of 32 x 32 pixels that are shown 16:9 is shown 57 wide and 32 high, at its place."""
    video = np.full((2, 96, 128, 3), 20, np.uint8)
    video[:, 32:64, 16:48] = 220
    data = encode(video, container=container, aspect=Fraction(16, 9))
    if quarter_turns:
        data = turned(data, quarter_turns)
    turn = -quarter_turns
    wanted = np.full((96, 228), False)
    wanted[32:64, 28:85] = True
    info, (whole,) = probe(data), decode(data, [0.0])
    assert (info.height, info.width) == whole.shape[:2] == np.rot90(wanted, turn).shape
    assert ((whole[..., 0] > 120) == np.rot90(wanted, turn)).mean() > 0.99
    (part,) = decode(data, [0.0], size=(48, 48))
    assert ((part[..., 0] > 120) == np.rot90(wanted[::2, 66:162:2], turn)).mean() > 0.97
    np.testing.assert_array_equal(decode_all(data, size=(48, 48)).frames[0], part)


@pytest.mark.parametrize(
    ("codec", "pixels", "container", "size", "tolerance"),
    [
        ("libx264", "yuv420p10le", "mp4", (32, 48), 2),
        ("libx264", "yuv444p", "mp4", (31, 45), 2),
        ("libvpx-vp9", "yuv420p", "webm", (32, 48), 3),
        ("prores_ks", "yuv422p10le", "mov", (30, 46), 3),
        ("mpeg4", "yuv420p", "avi", (32, 48), 6),
        ("mpeg2video", "yuv420p", "mpeg", (32, 48), 4),
        ("ffv1", "bgr0", "matroska", (7, 5), 0),
    ],
)
def test_codecs_bit_depths_and_odd_sizes(codec, pixels, container, size, tolerance):
    video = ramp(6, *size)
    fps = 25 if container == "mpeg" else 10
    data = encode(video, codec=codec, pixels=pixels, container=container, fps=fps)
    decoded = decode_all(data)
    assert decoded.frames.shape == video.shape and decoded.frames.dtype == np.uint8
    middle = np.s_[:, size[0] // 2, size[1] // 2]
    assert np.abs(decoded.frames[middle].astype(int) - video[middle]).max() <= tolerance
    assert probe(data).last == pytest.approx(5 / fps, abs=1e-3)
    assert numbers(decode(data, np.array([0, 2, 5]) / fps)) == [0, 2, 5]


def test_resize_and_crop_keep_the_centre_and_the_proportions():
    frame = np.zeros((1, 40, 100, 3), np.uint8)
    frame[:, :, 30:70] = 200
    cropped = resize_crop(frame, (20, 20))
    assert cropped.shape == (1, 20, 20, 3) and (cropped[:, 2:-2, 2:-2] == 200).all()
    wide = resize_crop(frame, (20, 50))
    assert (wide[:, :, 17:33] == 200).all() and (wide[:, :, :13] == 0).all()
    assert resize_crop(frame, (40, 100)) is frame
    assert resize_crop(frame, (123, 7)).shape == (1, 123, 7, 3)


def test_size_is_applied_while_decoding():
    data = encode(ramp(4))
    np.testing.assert_array_equal(
        decode(data, [0.0, 0.2], size=(16, 16)), resize_crop(decode(data, [0.0, 0.2]), (16, 16))
    )


def test_only_the_needed_part_is_decoded(monkeypatch):
    """Frames converted to pixels are the ones asked for, and decoding stops after the last."""
    seen = []
    real = decoding.timed
    monkeypatch.setattr(decoding, "timed", lambda *args: (seen.append(t) or (f, t) for f, t in real(*args)))
    decode(encode(ramp(22), gop=5), [1.2, 1.4])
    assert min(seen) >= 0.9 and max(seen) <= 1.6


def test_no_decoded_video_is_longer_than_the_frames_given():
    frames = Frames(frames=ramp(4), times=np.arange(4) / 10)
    assert numbers(decode(frames, [0.0, 0.31])) == [0, 3]


@pytest.mark.parametrize(
    "make", [lambda data: b"", lambda data: b"no video at all\n" * 50, lambda data: data[:700]]
)
@pytest.mark.parametrize("read", [probe, decode_all, lambda video: decode(video, [0.0])])
def test_broken_files_are_named_in_one_line(tmp_path, make, read):
    path = tmp_path / "broken.mp4"
    path.write_bytes(make(encode(ramp())))
    with pytest.raises(UserError, match=r"broken\.mp4 .*cannot be read") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_sound_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        probe(tmp_path / "none.mp4")
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(UserError, match="song holds no pictures"):
        decode(buffer.getvalue(), [0.0], name="song")


def test_a_video_that_ends_early_is_an_error_not_a_frozen_picture():
    data = encode(ramp(20), container="matroska", gop=1)
    with pytest.raises(UserError, match=r"cut (ends before second 1\.90|cannot be read)"):
        decode(data[: len(data) // 2], [0.0, 1.9], name="cut")
    with pytest.raises(UserError, match=r"whole ends before second 3\.00"):
        decode(data, [0.0, 3.0], name="whole")


def test_threads_decode_frames_of_one_slice_side_by_side(monkeypatch):
    """Then each comes out so much later."""

    def ahead(threads):
        monkeypatch.setattr(decoding, "threads", lambda pixels: threads)
        with opened(encode(ramp(20)), "video") as container:
            return next(number for number, packet in enumerate(packets_of(container)) if packet.decode())

    assert ahead(4) == ahead(1) + 3
