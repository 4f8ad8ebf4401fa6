"""The axes that need no weights measure what is known: motion, camera, bars and text."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import spearmanr

from svdjax.curation.clip import ClipFrames, look
from svdjax.curation.letterbox import bars, letterbox
from svdjax.curation.motion import MAP_SIDE, motion
from svdjax.curation.text import TextArea
from svdjax.data.motion import motion_score
from svdjax.data.sprites import World, draw_clips
from tests.curation.films import BIKES, PHONE, RABBIT, shots


def clip_of(stills=None, moving=None, **changes):
    one = np.zeros((3, 64, 64, 3), np.uint8)
    kept = {"name": "clip", "seconds": 2.0, "fps": 10.0} | changes
    return ClipFrames(stills=one if stills is None else stills, moving=one if moving is None else moving, **kept)


@pytest.mark.parametrize("path", [BIKES, RABBIT, PHONE])
def test_a_look_at_a_clip_takes_a_few_small_frames(path):
    clip = look(path, "clip")
    assert len(clip.stills) == 3 and min(clip.stills.shape[1:3]) <= 720
    assert len(clip.moving) == int(clip.seconds * 2 - 1 / clip.fps + 1e-3) + 1 and clip.step == 0.5
    assert min(clip.moving.shape[1:3]) <= 128
    assert motion(clip)["motion_score"] == pytest.approx(motion_score(path), rel=1e-5)


def test_the_score_ranks_clips_by_their_true_motion():
    world = World(height=96, width=96, frames=5)
    clips = list(draw_clips(world, 11, 60))
    scores = [motion(clip_of(moving=clip.frames))["motion_score"] for clip in clips]
    assert spearmanr(scores, [clip.truth.motion for clip in clips]).statistic >= 0.95


def test_the_flow_map_is_small_and_keeps_the_mean():
    clip = look(BIKES, "bikes")
    row = motion(clip)
    stored = np.frombuffer(row["flow_map"], np.float16).reshape(row["flow_map_shape"])
    assert stored.shape[0] == len(clip.moving) - 1 and min(stored.shape[1:]) == MAP_SIDE
    assert stored.mean(dtype=float) == pytest.approx(row["motion_score"], rel=0.02)
    still = motion(clip_of(moving=np.repeat(clip.moving[:1], 4, axis=0)))
    assert still["motion_score"] < 0.01 and still["camera"] == "static"
    assert motion(clip_of(moving=clip.moving[:1])) | {"flow_map": b""} == {
        "motion_score": 0.0,
        "flow_map": b"",
        "flow_map_shape": [0, *stored.shape[1:]],
        "camera": "static",
    }


def test_the_camera_is_named():
    wide = shots(height=128, width=384)[5][0]
    right = np.stack([wide[:, x : x + 200] for x in range(0, 40, 8)])
    assert motion(clip_of(moving=right))["camera"] == "pan right"
    assert motion(clip_of(moving=right[::-1]))["camera"] == "pan left"
    near = [
        np.asarray(Image.fromarray(wide[m : 128 - m, 2 * m : 256 - 2 * m]).resize((256, 128))) for m in (0, 4, 8)
    ]
    assert motion(clip_of(moving=np.stack(near)))["camera"] == "zoom in"


def test_black_bars_are_measured():
    picture = np.full((3, 90, 160, 3), 120, np.uint8)
    assert bars(picture) == 0.0
    picture[:, :9], picture[:, -9:] = 16, 10
    assert bars(picture) == pytest.approx(18 / 90)
    picture[:, :, :16] = 0
    assert letterbox(clip_of(stills=picture))["letterbox"] == pytest.approx(1 - 72 / 90 * 144 / 160)
    picture[0, :9, 16:] = 90  # no bar, for one frame is bright there
    assert bars(picture) == pytest.approx(1 - 81 / 90 * 144 / 160)
    assert bars(np.zeros_like(picture)) == 1.0


def captioned(picture, size, text, place=(0.06, 0.2)):
    """A picture with a caption, and the share of it inside the caption's box."""
    image = Image.fromarray(picture)
    x, y = place[0] * image.width, place[1] * image.height
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    box = draw.textbbox((x, y), text, font=font, stroke_width=2)
    draw.text((x, y), text, font=font, fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(image), (box[2] - box[0]) * (box[3] - box[1]) / picture[..., 0].size


def test_text_is_measured_within_15_percent():
    detector = TextArea()
    pictures = [part[0] for part in shots(height=360, width=640)]
    cases = [
        captioned(pictures[i], size, text)
        for i, size in ((1, 24), (3, 36), (5, 48), (7, 30))
        for text in ("breaking news tonight", "the quick brown fox")
    ]
    ratios = [detector.area(picture) / true for picture, true in cases]
    assert np.abs(np.array(ratios) - 1).mean() <= 0.15, ratios
    assert [detector.area(pictures[i]) for i in (1, 3, 5, 7)] == pytest.approx([0.0] * 4, abs=0.01)


def test_a_box_as_tall_as_the_picture_is_no_text():
    class Sky:
        def __call__(self, picture, **options):
            self.boxes = np.array(
                [[[0, 0], [60, 0], [60, 40], [0, 40]], [[0, 0], [30, 0], [30, 8], [0, 8]]], np.float32
            )
            return self

    detector = TextArea()
    detector.__dict__["_engine"] = Sky()
    area = detector.area(np.zeros((48, 64, 3), np.uint8))
    assert area == pytest.approx(30 * 8 / (48 * 64), rel=0.2)


def test_text_counts_in_all_three_stills():
    plain = shots(height=360, width=640)[5][0]
    written, true = captioned(plain, 60, "A WALL OF TEXT")
    found = TextArea()(clip_of(stills=np.stack([plain, written, written])))
    assert found["text_area"] == pytest.approx(2 / 3 * true, rel=0.2)
    tiny = clip_of(stills=np.zeros((3, 1, 1, 3), np.uint8))
    assert TextArea()(tiny)["text_area"] == 0.0
