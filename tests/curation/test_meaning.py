"""Captions, embeddings and scores as one stage; what is left out and why; captioners that are away lose nothing."""

from dataclasses import replace

import numpy as np
import pytest

from svdjax.curation.captions import Captions, LocalCaptioner
from svdjax.curation.clip import ClipFrames
from svdjax.curation.embeddings import ImageEmbedder, TextEmbedder, clip_scores
from svdjax.curation.filtering import Rules, choose, write
from svdjax.curation.meaning import KEY, Meaning, open_meaning
from svdjax.curation.pipeline import Task
from svdjax.curation.settings import Settings, claim
from svdjax.curation.sources import find_videos
from svdjax.curation.store import read_failures, read_rows, read_took
from svdjax.data.opening import open_source
from svdjax.data.sampling import caption_of
from svdjax.errors import Unavailable, UserError
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from tests.curation.films import BIKES
from tests.weights import random_model

VISION = CLIPVisionConfig(width=32, layers=1, heads=2, mlp_dim=48, patch_size=56, image_size=112, projection_dim=24)
TEXT = CLIPTextConfig(width=32, layers=1, heads=2, mlp_dim=48, projection_dim=24)
THREE = Captions(
    image=lambda picture: "a dot",
    video=lambda frames: f"{len(frames)} dots",
    merge=lambda image, video: f"{image}, {video}",
)


def clip(caption=""):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8)
    return ClipFrames(name="c", stills=frames, moving=frames, seconds=1.0, fps=24.0, caption=caption)


@pytest.fixture(scope="module")
def towers():
    images = ImageEmbedder(tower=random_model(CLIPVision, VISION))
    return {"images": images, "texts": TextEmbedder(tower=random_model(CLIPText, TEXT))}


def test_the_stage_scores_each_caption_and_prefers_the_one_that_came_with_the_video(towers):
    row = Meaning(captions=THREE, **towers)(clip())
    captions = {"caption_image": "a dot", "caption_video": "3 dots", "caption": "a dot, 3 dots"}
    assert captions.items() <= row.items()
    assert clip_scores(towers["texts"], row["clip_embedding"], captions).items() <= row.items()
    own = Meaning(captions=THREE, **towers)(clip("by hand"))
    assert own["caption"] == "by hand" and own["caption_video"] == "3 dots"
    assert own["clip_score"] != row["clip_score"] and own["clip_score_image"] == row["clip_score_image"]


def test_what_is_not_there_is_left_out(towers):
    assert Meaning(captions=Captions())(clip()) == {}
    assert Meaning(captions=Captions())(clip("by hand")) == {"caption": "by hand"}
    assert set(Meaning(captions=THREE, images=towers["images"])(clip())) == {
        "caption_image", "caption_video", "caption", "clip_embedding",
    }  # fmt: skip
    assert set(Meaning(captions=Captions(), **towers)(clip())) == {"clip_embedding"}


def test_each_axis_that_is_left_out_has_a_line_that_names_the_option(monkeypatch, towers):
    _, notices = open_meaning(Settings())
    assert [line.split(":")[0] for line in notices] == ["clip", "captions"]
    assert "--clip-image" in notices[0] and "--endpoint" in notices[1]
    monkeypatch.setattr("svdjax.curation.meaning.open_image_embedder", lambda path, head: towers["images"])
    found, notices = open_meaning(Settings(clip_image="svd", endpoint="http://localhost:1/v1"))
    assert ["--aesthetic" in notices[0], "--clip-text" in notices[1], len(notices)] == [True, True, 2]
    assert found.texts is None and found.captions.merge is not None
    for alone in ({"aesthetic": "head.safetensors"}, {"clip_text": "sd21.safetensors"}):
        with pytest.raises(UserError, match="name the image tower, too, with --clip-image"):
            Settings(**alone)
    with pytest.raises(UserError, match="give its address, too, with --endpoint"):
        Settings(endpoint_model="m")
    wide = TextEmbedder(tower=random_model(CLIPText, replace(TEXT, projection_dim=8)))
    monkeypatch.setattr("svdjax.curation.meaning.open_text_embedder", lambda path: wide)
    with pytest.raises(UserError, match="give both towers of one CLIP"):
        open_meaning(Settings(clip_image="svd", clip_text="sd"))


def test_a_local_captioner_takes_pictures_over_from_the_server(monkeypatch):
    monkeypatch.setenv(KEY, "word")
    captions = open_meaning(Settings(image_captioner="blip", endpoint="http://localhost:1/v1"))[0].captions
    assert captions.image == LocalCaptioner(model="blip")
    assert captions.video.__self__.key == captions.merge.__self__.key == "word"
    alone = open_meaning(Settings(image_captioner="blip"))[0].captions
    assert alone == Captions(image=LocalCaptioner(model="blip"))


def test_a_captioner_that_is_away_ends_the_run_and_the_next_one_misses_nothing(tmp_path, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "bikes.mp4").write_bytes(BIKES.read_bytes())
    (video,) = find_videos([str(raw)])
    settings, answering = Settings(text=False, shortest=1.0), []

    def caption(picture):
        if len(answering) < 2:
            answering.append(True)
            raise Unavailable("no caption after 5 tries")
        return "riders"

    meaning = Meaning(captions=replace(THREE, image=caption))
    monkeypatch.setattr("svdjax.curation.stages.open_meaning", lambda settings: (meaning, []))
    from svdjax.curation.stages import open_stages

    open_stages.cache_clear()
    task = Task(out=out, settings=settings)
    for _ in range(2):
        with pytest.raises(Unavailable, match="no caption"):
            task(video)
        assert not task.is_done(video)
    task(video)
    open_stages.cache_clear()
    rows = read_rows(out)
    assert read_failures(out) == [] and len(rows) >= 4 and {row["caption_image"] for row in rows} == {"riders"}
    assert {"find cuts", "write clips", "decode clips", "motion", "hash", "meaning"} <= read_took(out).keys()
    write(out, rows, choose(rows, Rules(motion_percentile=0.0, still=0.0)), out / "shards", shards=1)
    source = open_source(str(out / "shards"))
    record = source[0]
    assert record.annotations["captions"] == {
        "image": "riders", "video": record.annotations["captions"]["video"], "merged": record.annotations["caption"]
    }  # fmt: skip
    assert "caption_image" not in record.annotations and "hash" not in record.annotations
    drawn = {caption_of(record, np.random.default_rng(seed)) for seed in range(50)}
    assert drawn == set(record.annotations["captions"].values()) and len(drawn) == 3


def test_a_run_goes_on_with_the_same_captioner_at_another_address(tmp_path):
    claim(tmp_path / "out", Settings(endpoint="http://one:1/v1", endpoint_model="m"))
    claim(tmp_path / "out", Settings(endpoint="http://other:2/v1", endpoint_model="m"))
    for other in (Settings(endpoint="http://one:1/v1", endpoint_model="n"), Settings()):
        with pytest.raises(UserError, match="was curated with other settings"):
            claim(tmp_path / "out", other)
