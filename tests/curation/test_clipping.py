"""Clips lie inside their scenes, begin at key frames where that costs little, and hold the frames planned."""

import dataclasses
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from svdjax.curation.clipping import MOST_LOST, Span, plan, write_clip
from svdjax.curation.cuts import Cut
from svdjax.curation.scan import Scan, scan
from svdjax.data.decoding import decode_all, probe
from svdjax.errors import UserError
from tests.curation.films import BIKE_CUTS, BIKES
from tests.data.clips import encode, numbers, ramp

COLOURS = [(220, 40, 30), (40, 160, 60), (30, 60, 220), (230, 210, 40), (128, 128, 128), (250, 250, 250)]


def scanned(frames=100, keys=(0, 25, 50, 75), cuts=(), packets=None, **changes):
    """A video of 10 frames a second that only exists on paper."""
    stamps = np.arange(frames) * 100
    kept = {"height": 64, "width": 64, "fps": 10.0, "codec": "h264", "notes": []} | changes
    packets = stamps if packets is None else np.array(packets) * 100
    found = [Cut(cut, cut) for cut in cuts]
    return Scan(stamps=stamps, time_base=Fraction(1, 1000), packets=packets, keys=list(keys), cuts=found, **kept)


def test_a_start_moves_forward_to_a_key_frame_and_never_across_a_cut():
    assert plan(scanned(cuts=(48,)), shortest=1.0, longest=60.0) == [
        Span(first=0, stop=48, copy=True),
        Span(first=50, stop=100, copy=True),
    ]


def test_what_a_move_would_cost_too_much_is_encoded():
    before, after = plan(scanned(cuts=(40,)), shortest=1.0, longest=60.0)
    assert before == Span(first=0, stop=40, copy=True)
    assert after == Span(first=40, stop=100, copy=False) and MOST_LOST < 10 / 60
    assert not any(span.copy for span in plan(scanned(codec="ffv1"), shortest=1.0, longest=60.0))
    assert plan(scanned(keys=(0,), cuts=(50,)), shortest=1.0, longest=60.0)[1] == Span(
        first=50, stop=100, copy=False
    )


def test_a_copy_ends_before_a_frame_that_needs_a_later_one():
    # I0 P3 B1 B2 P6 B4 B5 ...: frames 4 and 5 need frame 6, which is of the next scene.
    packets = [0, *(n for start in range(1, 60, 3) for n in (start + 2, start, start + 1))]
    (first, _) = plan(scanned(61, keys=(0,), packets=packets, cuts=(45,)), shortest=1.0, longest=60.0)
    assert first == Span(first=0, stop=43, copy=True)


def test_long_scenes_are_cut_into_parts_at_key_frames_and_short_ones_left_out():
    spans = plan(scanned(300, keys=range(0, 300, 7)), shortest=1.0, longest=11.0)
    assert [span.first for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert all(span.copy and 50 <= span.stop - span.first <= 110 for span in spans) and len(spans) == 3
    parts = plan(scanned(300, keys=(0,)), shortest=1.0, longest=11.0)
    assert [(span.first, span.copy) for span in parts] == [(0, True), (100, False), (200, False)]
    assert plan(scanned(cuts=(8, 95)), shortest=1.0, longest=60.0) == [Span(first=8, stop=95, copy=False)]


def test_frames_of_a_dissolve_are_in_no_clip():
    found = dataclasses.replace(scanned(), cuts=[Cut(44, 56)])
    assert plan(found, shortest=1.0, longest=60.0) == [
        Span(first=0, stop=44, copy=True),
        Span(first=56, stop=100, copy=False),
    ]


def test_a_hard_cut_inside_a_damaged_stretch_opens_no_scene_in_it():
    for cuts in ([Cut(30, 80), Cut(40, 40)], [Cut(30, 60), Cut(30, 30), Cut(50, 80)]):
        found = dataclasses.replace(scanned(keys=(0, 80)), cuts=cuts)
        assert plan(found, shortest=1.0, longest=60.0) == [
            Span(first=0, stop=30, copy=True),
            Span(first=80, stop=100, copy=True),
        ]


def test_only_scenes_below_the_shortest_are_lost_and_none_to_a_move():
    (span,) = plan(scanned(21, keys=(2,)), shortest=2.0, longest=60.0)
    assert span == Span(first=0, stop=21, copy=False)
    assert plan(scanned(19, keys=(0,)), shortest=2.0, longest=60.0) == []


@pytest.mark.parametrize("copy", [True, False])
def test_a_clip_holds_the_frames_planned(tmp_path, copy):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(ramp(20), gop=4, options={"x264-params": "scenecut=0:bframes=2"}))
    found = scan(path, "film")
    assert found.keys == [0, 4, 8, 12, 16]
    write_clip(path, found, Span(first=8, stop=16, copy=copy), tmp_path / "clip.mp4", "film")
    clip = decode_all(tmp_path / "clip.mp4")
    assert numbers(clip.frames) == list(range(8, 16))
    np.testing.assert_allclose(clip.times, np.arange(8) / 10, atol=1e-3)


def test_a_clip_of_a_container_that_seeks_too_far_holds_the_frames_planned(tmp_path):
    path = tmp_path / "film.mpg"
    still = {"sc_threshold": "1000000000"}
    path.write_bytes(
        encode(np.repeat(ramp(22), 5, axis=0), codec="mpeg2video", container="mpeg", fps=25, gop=40, options=still)
    )
    write_clip(path, scan(path, "film"), Span(first=75, stop=85, copy=False), tmp_path / "clip.mp4", "film")
    assert numbers(decode_all(tmp_path / "clip.mp4").frames) == [15] * 5 + [16] * 5


@pytest.mark.parametrize("copy", [True, False])
def test_a_clip_is_shown_as_wide_as_its_film(tmp_path, copy):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(ramp(20), aspect=Fraction(2)))
    found = scan(path, "film")
    write_clip(path, found, Span(first=0, stop=10, copy=copy), tmp_path / "clip.mp4", "film")
    shown = probe(tmp_path / "clip.mp4")
    assert (found.height, found.width) == (shown.height, shown.width) == (32, 96)


def test_a_copy_has_the_very_pictures_of_the_film(tmp_path):
    found = scan(BIKES, "bikes")
    spans = plan(found, shortest=1.0, longest=60.0)
    assert [(span.first, span.copy) for span in spans] == [(n, True) for n in (0, *BIKE_CUTS[:-1])]
    write_clip(BIKES, found, spans[2], tmp_path / "clip.mp4", "bikes")
    whole = decode_all(BIKES)
    np.testing.assert_array_equal(decode_all(tmp_path / "clip.mp4").frames, whole.frames[76:137])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    found = scan(BIKES, "bikes")
    with pytest.raises(UserError, match="cannot be written"):
        write_clip(BIKES, found, Span(first=0, stop=30, copy=True), tmp_path / "file" / "clip.mp4", "bikes")


def coloured(*, codec="libx264", pixels="yuv420p", range_=ColorRange.MPEG, shape=Fraction(1)):
    """A second of bars of `COLOURS`: BT.709, and tagged so, or RGB; and pixels of some shape."""
    bars = np.repeat(np.array(COLOURS, np.uint8), 32, axis=0)[None].repeat(64, 0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        stream = file.add_stream(codec, rate=10, options={"crf": "10"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *bars.shape[:2], pixels
        context = stream.codec_context
        context.sample_aspect_ratio = shape
        rgb = av.VideoFrame.from_ndarray(bars, format="rgb24")
        if pixels == "bgr0":
            picture = rgb.reformat(format=pixels)
        else:
            context.colorspace, context.color_range = Colorspace.ITU709, range_
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            picture = rgb.reformat(format=pixels, dst_colorspace=Colorspace.ITU709, dst_color_range=range_)
        for number in range(10):
            picture.pts, picture.time_base = number, Fraction(1, 10)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", [{}, {"range_": ColorRange.JPEG}, {"codec": "ffv1", "pixels": "bgr0"}], ids=["709", "full", "rgb"]
)
def test_a_clip_that_is_encoded_anew_has_the_colours_of_the_film(tmp_path, kind):
    path = tmp_path / "film.mkv"
    path.write_bytes(coloured(**kind))
    write_clip(path, scan(path, "film"), Span(first=2, stop=8, copy=False), tmp_path / "clip.mp4", "film")
    for file in (path, tmp_path / "clip.mp4"):
        middles = decode_all(file).frames[0, 32, 16::32].astype(int)
        np.testing.assert_allclose(middles, COLOURS, atol=6)


@pytest.mark.parametrize("copy", [True, False])
def test_a_clip_has_pixels_of_the_shape_of_the_films(tmp_path, copy):
    path = tmp_path / "film.mkv"
    path.write_bytes(coloured(shape=Fraction(16, 11)))
    write_clip(path, scan(path, "film"), Span(first=0, stop=10, copy=copy), tmp_path / "clip.mp4", "film")
    with av.open(tmp_path / "clip.mp4") as clip:
        assert clip.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
