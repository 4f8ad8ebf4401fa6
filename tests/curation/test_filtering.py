"""Filters remove what they say, and what is left trains."""

import io

import numpy as np
import pytest
from rich.console import Console

from svdjax.curation.filtering import Filter, Rules, choose, run, table
from svdjax.curation.store import HEAVY, read_embeddings, read_rows, write_rows
from svdjax.curation.thresholds import PAPER, Axis, decide
from svdjax.data.motion import MotionBuckets
from svdjax.data.opening import open_source
from svdjax.data.pipeline import clip_batches
from svdjax.data.sampling import ClipSampling
from svdjax.errors import UserError
from tests.curation.broken import film


def rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def axis(**changes):
    return Axis(**{"name": "motion", "column": "x", "keeps": "above", **changes})


def test_a_percentile_removes_its_share_and_a_threshold_what_is_beyond_it():
    clips = rows(x=list(range(100)))
    assert decide(clips, [axis(percentile=25.0)]).removed["motion"] == list(range(25))
    assert decide(clips, [axis(percentile=25.0, keeps="below")]).removed["motion"] == list(range(75, 100))
    found = decide(clips, [axis(threshold=40.0), axis(name="less", threshold=60.0, keeps="below")])
    assert found.kept == list(range(40, 61))
    assert found.thresholds == {"motion": 40.0, "less": 60.0}


def test_equal_values_share_their_fate_and_what_is_not_measured_passes():
    assert decide(rows(x=[1.0] * 50), [axis(percentile=50.0)]).kept == list(range(50))
    found = decide([{"x": None}, {}, {"x": 1.0}, {"x": 2.0}, {"x": float("nan")}], [axis(percentile=50.0)])
    assert found.removed == {"motion": [2]} and found.kept == [0, 1, 3, 4]
    assert decide([{}, {}], [axis(percentile=50.0)]).removed == {}


def test_percentiles_are_of_all_clips_whatever_other_axes_remove():
    rng = np.random.default_rng(0)
    clips = rows(x=rng.normal(size=400), y=rng.normal(size=400))
    axes = [axis(percentile=25.0), axis(name="text", column="y", percentile=50.0)]
    one, other = decide(clips, axes), decide(clips, axes[::-1])
    assert one.kept == other.kept and one.thresholds == other.thresholds
    assert len(one.removed["motion"]) == 100 and len(one.removed["text"]) == 200
    gone = set(one.removed["motion"]) | set(one.removed["text"]) | {7}
    assert decide(clips, axes, {"duplicates": [7]}).kept == sorted(set(range(400)) - gone)


def test_bad_axes_are_refused():
    for bad in ({}, {"threshold": 1.0, "percentile": 5.0}, {"percentile": 100.0}, {"percentile": -1.0}):
        with pytest.raises(UserError, match="axis motion"):
            axis(**bad)


def test_the_defaults_are_the_papers():
    named = {rule.name: rule for rule in Rules().axes()}
    assert all(named[rule.name] == rule for rule in PAPER)
    assert [rule.percentile or rule.threshold for rule in PAPER] == [25.0, 25.0, 50.0, 0.07]


def annotated(folder, count=12):
    """A directory as `svdjax curate` leaves it, of clips with made-up annotations."""
    (folder / "clips" / "film").mkdir(parents=True)
    made = []
    for i in range(count):
        file = folder / "clips" / "film" / f"film_{i}.mp4"
        file.write_bytes(film())
        known = {"name": f"film_{i}", "video": "film", "file": f"clips/film/{file.name}", "motion_score": 1.0 + i}
        known |= {"start": 2.4 * i, "end": 2.4 * (i + 1)}
        size = {"fps": 10.0, "seconds": 2.4, "height": 96, "width": 128, "short_side": 96}
        made.append(known | size | {"text_area": 0.2 if i == 11 else 0.0, "flow_map": b"12"})
    write_rows(folder, "film", made, [])
    return made


def test_shards_hold_what_passes_and_training_reads_them(tmp_path):
    made = annotated(tmp_path / "set")
    run(Filter(directory=tmp_path / "set", out=tmp_path / "shards"))
    source = open_source(tmp_path / "shards")
    assert {source[i].annotations["name"] for i in range(len(source))} == {row["name"] for row in made[3:11]}
    assert "flow_map" not in source[0].annotations
    kept = [row["motion_score"] for row in made[3:11]]
    assert source.buckets.thresholds == MotionBuckets.fit(kept).thresholds
    batch = clip_batches(source, ClipSampling(frames=4, size=(32, 32)), batch_size=2, seed=0)[0]
    assert batch["video"].shape == (2, 4, 32, 32, 3)


def test_embeddings_are_read_as_one_array_and_the_rows_do_not_hold_what_is_heavy(tmp_path):
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 3, 5)).astype(np.float32)
    write_rows(tmp_path, "a", [], [])
    heavy = [{"flow_map": b"12", "flow_map_shape": [1, 1, 1], "clip_embedding": x.tolist()} for x in (one, other)]
    write_rows(tmp_path, "b", [{"name": "0"} | heavy[0], {"name": "1"}], [])
    write_rows(tmp_path, "c", [{"name": "2"}], [])
    write_rows(tmp_path, "d", [{"name": "3"} | heavy[1], {"name": "4"} | heavy[0]], [])
    rows = read_rows(tmp_path)
    write_rows(tmp_path, "aa", [{"name": "9"} | heavy[0]], [])  # by another machine, in the meantime
    embeddings = read_embeddings(tmp_path, rows)
    assert [row["name"] for row in rows] == list("01234") and not set(HEAVY) & rows[0].keys()
    gone = np.full((3, 5), np.nan)
    np.testing.assert_array_equal(embeddings, [one, gone, gone, other, one])
    assert choose(rows, Rules(), embeddings).removed["duplicate"] == [0]
    write_rows(tmp_path, "b", [], [])
    write_rows(tmp_path, "d", [], [])
    assert read_embeddings(tmp_path, rows) is None


def test_one_motion_of_the_camera_can_be_chosen_and_the_unknown_is_no_motion(tmp_path):
    made = annotated(tmp_path / "set")
    cameras = ["pan left", "pan right", "zoom in", None] * 3
    known = [row | ({"camera": camera} if camera else {}) for row, camera in zip(made, cameras, strict=True)]
    write_rows(tmp_path / "set", "film", known, [])
    rules = Rules(camera=("pan left", "pan right"), motion_percentile=0.0)
    run(Filter(directory=tmp_path / "set", out=tmp_path / "shards", rules=rules))
    source = open_source(tmp_path / "shards")
    assert {source[i].annotations["camera"] for i in range(len(source))} == {"pan left", "pan right"}
    assert choose(known, rules).removed["camera"] == [2, 3, 6, 7, 10, 11] and len(source) == 6
    assert "camera" not in choose(known, Rules()).removed


def test_the_table_counts_alone_and_together(tmp_path):
    made = annotated(tmp_path / "set")
    printed = io.StringIO()
    Console(file=printed, width=100).print(table(made, choose(made, Rules())))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.getvalue().splitlines()]
    found = {line[0]: line[1:] for line in cells if line}
    assert found["motion"] == ["4", "3", "3", "25.0%"]
    assert found["text"] == ["0.07", "1", "1", "8.3%"]
    assert found["still"] == ["0.1", "0", "0", "0.0%"]
    assert found["all together"] == ["", "4", "", "33.3%"]
    assert found["kept"] == ["", "8", "", "66.7%"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no annotations"):
        run(Filter(directory=tmp_path))
    annotated(tmp_path / "set", 3)
    (tmp_path / "file").touch()
    for out in ("set", "file"):
        with pytest.raises(UserError, match="not empty, or no directory"):
            run(Filter(directory=tmp_path / "set", out=tmp_path / out))
    with pytest.raises(UserError, match="--shards 0: must be at least 1"):
        Filter(directory=tmp_path / "set", out=tmp_path / "s", shards=0)
    with pytest.raises(UserError, match="no shards are written without --out"):
        Filter(directory=tmp_path / "set", shards=2)
    with pytest.raises(UserError, match="no clip passes"):
        run(Filter(directory=tmp_path / "set", out=tmp_path / "s", rules=Rules(still=1e9)))
    (tmp_path / "set" / "clips" / "film" / "film_2.mp4").unlink()
    with pytest.raises(UserError, match=r"film_2\.mp4 is gone"):
        run(Filter(directory=tmp_path / "set", out=tmp_path / "s"))
    assert not (tmp_path / "s").exists()
