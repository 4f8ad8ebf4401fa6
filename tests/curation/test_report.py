"""The page about a curated set: what it says of rows whose fate is known, and that it needs no other file."""

import re
import sys

import numpy as np
import pytest

from svdjax.curation.report import MOST_DROPPED, MOST_KEPT, MOST_VIDEOS, Account, report
from svdjax.curation.thresholds import Axis, decide, effects
from svdjax.errors import MissingPackage
from tests.data.clips import encode, ramp
from tests.training.test_report import Page

AXES = [
    Axis(name="motion", column="motion_score", keeps="above", percentile=25.0),
    Axis(name="still", column="motion_score", keeps="above", threshold=0.5),
    Axis(name="text", column="text_area", keeps="below", threshold=0.07),
    Axis(name="aesthetic", column="aesthetic", keeps="above", percentile=25.0),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two videos of twenty clips each; the second clip's file is gone."""
    directory = tmp_path_factory.mktemp("set") / "a <set>"
    (directory / "clips").mkdir(parents=True)
    data = encode(ramp(height=36, width=64), fps=10)
    for number in set(range(40)) - {1}:
        (directory / f"clips/{number}.mp4").write_bytes(data)
    return directory


def rows():
    return [
        {
            "name": f"clip-{n}", "video": "first <v>" if n < 20 else "second", "file": f"clips/{n}.mp4",
            "start": 3.0 * (n % 20), "end": 3.0 * (n % 20) + 2.5, "seconds": 0.8, "motion_score": float(n),
            "text_area": 0.5 if n % 10 == 9 else 0.01 * (n % 5), "aesthetic": None, "camera": "pan_left",
            "caption": f"<caption {n}>",
        }
        for n in range(40)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(directory):
    filtered = decide(rows(), AXES, {"duplicate": [5, 30]})
    account = Account(
        failures={"bad <one>.mp4": "cannot be read"},
        notes={"second": ["ends early", "2 damaged frames"]},
        took={"motion": 8.0, "text": 32.0},
    )
    report(directory, rows(), filtered, AXES, directory / "report.html", account)
    return Page((directory / "report.html").read_text())


def cells(page, first):
    """The cells of a table's row that begins with this text."""
    start = [i for i, text in enumerate(page.texts) if text == first]
    return [page.texts[i : i + 5] for i in start]


def test_effects_count_what_each_axis_removes_alone_and_with_others():
    filtered = decide(rows(), AXES, {"duplicate": [5, 30]})
    found = {effect.name: effect for effect in effects(rows(), filtered)}
    motion, text = set(range(10)), {9, 19, 29, 39}
    assert (found["motion"].removes, found["motion"].alone) == (10, len(motion - text - {0, 5}))
    assert (found["still"].removes, found["still"].alone) == (1, 0)
    assert (found["text"].removes, found["text"].alone, found["text"].threshold) == (4, 3, "0.07")
    assert (found["duplicate"].removes, found["duplicate"].alone, found["duplicate"].threshold) == (2, 1, "")
    gone = motion | text | {5, 30}
    assert found["all together"].removes == len(gone) and found["kept"].removes == 40 - len(gone)
    assert found["kept"].share == f"{1 - len(gone) / 40:.1%}" and "aesthetic" not in found


def test_the_page_is_well_formed_and_needs_no_other_file(page):
    assert page.open == []
    assert page.references and all(r.startswith(("#", "data:image/webp;base64,")) for r in page.references)
    assert {r[1:] for r in page.references if r[0] == "#"} <= set(page.ids)


def test_counts_axes_cameras_throughput_and_problems_are_there(page):
    text = " ".join(page.texts)
    assert "40 clips (0:32 min) of 2 videos; 1 videos could not be used. 26 clips (0:21 min) are kept." in text
    assert ["motion", "10", "10", "7", "25.0%"] in cells(page, "motion")
    assert ["pan_left", "40", "26"] in [found[:3] for found in cells(page, "pan_left")]
    assert ["motion", "8.0", "20.0%", "5.00"] in [found[:4] for found in cells(page, "motion")]
    assert ["all", "40.0", "100.0%", "1.00"] in [found[:4] for found in cells(page, "all")]
    assert {"bad <one>.mp4", "cannot be read", "ends early; 2 damaged frames"} <= set(page.texts)


def test_histograms_have_a_line_for_each_threshold(page):
    assert {"motion: 10", "still: 0.5", "text: 0.07"} <= set(page.texts)
    assert "motion_score" in page.texts and "text_area" in page.texts and "aesthetic" not in page.texts


def test_examples_are_spread_over_what_is_kept_and_the_clearest_of_what_is_not(page, directory):
    html = (directory / "report.html").read_text()
    shown = [part.count("<figcaption>") for part in re.split("<h[23]>", html.split("<h2>Kept</h2>")[1])]
    assert shown[0] == MOST_KEPT
    captions = [text for text in page.texts if text.startswith("clip-")]
    assert captions[0] == "clip-10 · 0.8 s · <caption 10>"
    removed = captions[MOST_KEPT : MOST_KEPT + MOST_DROPPED]
    assert removed[0] == "clip-0 · 0.8 s · motion_score 0 · <caption 0>" and "clip-9 " in removed[-1]
    assert any("clip-39 · 0.8 s · text_area 0.5" in text for text in captions)


def test_the_cuts_of_each_video_are_drawn_to_scale(directory):
    html = (directory / "report.html").read_text()
    bars = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)" height="14" fill="(#\w+)"><title>(.*?)</title>', html)
    assert len(bars) == 40
    x, width, _, title = bars[1]
    assert float(x) == pytest.approx(1000 * 3 / 59.5, abs=0.01) and title == "clip-1: 3.00 to 5.50 s"
    assert float(width) == pytest.approx(1000 * 2.5 / 59.5 - 0.8, abs=0.01)
    assert len({colour for *_, colour, _ in bars}) == 2


def test_a_clip_whose_file_is_gone_is_named_without_a_picture(directory, tmp_path):
    few = rows()[:3]
    report(directory, few, decide(few, AXES[2:]), AXES[2:], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.tags.count("img") == 2 and "clip-1 · 0.8 s · <caption 1>" in page.texts


def test_of_many_videos_those_with_most_clips_are_drawn(tmp_path):
    many = [rows()[0] | {"video": f"v{n}"} for n in range(MOST_VIDEOS + 5)] + [rows()[0] | {"video": "v64"}]
    report(tmp_path, many, decide(many, []), [], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"The {MOST_VIDEOS} of {MOST_VIDEOS + 5} videos" in text and "v64 " in text
    assert text.count("<svg viewBox") == MOST_VIDEOS


def test_without_matplotlib_the_extra_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"svdjax\[report\]"):
        report(tmp_path, rows(), decide(rows(), AXES), AXES, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists() and not np.any(list(tmp_path.iterdir()))


@pytest.mark.parametrize("count", [1, 7, 30, 40, 101])
@pytest.mark.parametrize("keeps", ["above", "below"])
def test_a_percentile_removes_its_share_rounded_down(count, keeps):
    values = np.random.default_rng(count).permutation(count)
    axis = Axis(name="a", column="x", keeps=keeps, percentile=25.0)
    removed = decide([{"x": float(x)} for x in values], [axis]).removed["a"]
    worst = sorted(range(count), key=lambda i: values[i], reverse=keeps == "below")[: count // 4]
    assert removed == sorted(worst)
