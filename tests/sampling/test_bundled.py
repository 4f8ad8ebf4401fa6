"""What comes with the package: a checkpoint for what is asked, and pictures and clips where none is named."""

from pathlib import Path

import numpy as np
import pytest

from svdjax.cli import main
from svdjax.conversion.lora import write_lora
from svdjax.conversion.native import save_native
from svdjax.conversion.source import open_checkpoint
from svdjax.data.decoding import decode_all, probe
from svdjax.data.pictures import open_picture
from svdjax.data.sprites import World, draw_clip
from svdjax.data.video import read_metadata
from svdjax.errors import UserError
from svdjax.models.lora import LoRA, LoRAConfig, lora_shapes
from svdjax.models.svd import SVD
from svdjax.sampling import bundled, loras
from svdjax.sampling.bundled import CHECKPOINTS, bundled_checkpoint
from svdjax.sampling.inputs import READERS
from svdjax.sampling.options import ASSETS, DEMO_CHECKPOINT, Sample
from svdjax.sampling.pipeline import Pipeline
from tests.conversion.tiny import tiny_checkpoint
from tests.training.tiny import KNOWN_FRAMES
from tests.weights import random_model


def command(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in argv])
    return exit_.value.code


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Stand-ins for all checkpoints."""
    there = {name: tmp_path / path.name for name, path in CHECKPOINTS.items()}
    for path in there.values():
        path.touch()
    monkeypatch.setattr(bundled, "CHECKPOINTS", there)
    return tmp_path


def lora_of(base, path):
    checkpoint = tiny_checkpoint("svd", 0)
    shapes = lora_shapes(checkpoint.params, LoRAConfig(rank=2))
    params = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
    write_lora(path, LoRA(params=params, alpha=2.0, base=base), checkpoint.config.unet)
    return path


def test_every_bundled_checkpoint_does_what_it_is_taken_for():
    assert DEMO_CHECKPOINT.exists()
    for name, path in CHECKPOINTS.items():
        assert path.parent == ASSETS and name in READERS
        if path.exists():
            assert open_checkpoint(path).config.task in READERS[name].models


def test_everything_that_the_readme_promises_is_there_and_small():
    names = {
        *("demo", "demo_camera", "demo_known_frames", "demo_multi_view", "demo_text_to_video"),
        *("lora_pan_right", "lora_static", "lora_zoom_in"),
    }
    sizes = {path.stem: path.stat().st_size for path in ASSETS.glob("*.safetensors")}
    # 40 MB for what the tasks add to the demo of image to video.
    assert sizes.keys() == names and sum(sizes.values()) - sizes["demo"] <= 40e6


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "demo"),
        ({"photos": (Path("a.png"),)}, "demo"),
        ({"prompt": ""}, "demo_text_to_video"),
        ({"prompts": Path("many.txt")}, "demo_text_to_video"),
        ({"task": "text_to_video", "prompt": "waves"}, "demo_text_to_video"),
        ({"task": "multi_view"}, "demo_multi_view"),
        ({"task": "frame_interpolation"}, "demo_known_frames"),
        ({"task": "first_last"}, "demo_known_frames"),
        ({"task": "video_prediction"}, "demo_known_frames"),
    ],
)
def test_what_is_asked_for_decides_on_the_checkpoint(files, asked, name):
    assert bundled_checkpoint(Sample(**asked)) == files / f"{name}.safetensors"


@pytest.mark.parametrize("task", ["multi_view", "text_to_image", "frame_interpolatoin"])
def test_where_none_is_bundled_the_message_says_which_are(files, task, capsys):
    (files / "demo_multi_view.safetensors").unlink()
    assert command("sample", "--task", task, "--prompt", "waves", "--out", files) == 2
    (line,) = capsys.readouterr().err.splitlines()
    others = "image_to_video, text_to_video, frame_interpolation, first_last, video_prediction, known_frames"
    assert line == f"error: no checkpoint is bundled for {task}, only for {others}: give --checkpoint"


def test_a_lora_brings_its_base_along(tmp_path):
    ours, theirs = lora_of("demo.safetensors", tmp_path / "a"), lora_of("svd", tmp_path / "b")
    assert bundled_checkpoint(Sample(lora=(f"{ours}:0.5",), task="nothing")) == DEMO_CHECKPOINT
    short = lora_of("demo", tmp_path / "c")
    assert bundled_checkpoint(Sample(lora=(str(theirs), str(short)), task="nothing")) == DEMO_CHECKPOINT
    with pytest.raises(UserError, match="no checkpoint is bundled for nothing"):
        bundled_checkpoint(Sample(lora=(str(theirs), str(tmp_path / "missing")), task="nothing"))


def test_a_bundled_lora_needs_no_folder(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(loras, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    bundled_one = lora_of("", tmp_path / "assets" / "pan.safetensors")
    assert loras.parse_lora("pan.safetensors:0.5") == (bundled_one, 0.5)
    Path("pan.safetensors").touch()
    assert loras.parse_lora("pan.safetensors") == (Path("pan.safetensors"), 1.0), "a file that is there comes first"


def test_bundled_pictures_and_clips_are_of_the_built_in_world():
    clip = draw_clip(World(frames=9), 7, 12)
    photo, later = (np.asarray(open_picture(path)) for path in READERS["first_last"].photos)
    np.testing.assert_array_equal([photo, later], clip.frames[[0, 4]])
    assert READERS["image_to_video"].photos == READERS["first_last"].photos[:1]
    solid = draw_clip(World(orbit_share=1.0), 7, 7)
    np.testing.assert_array_equal(np.asarray(open_picture(READERS["multi_view"].photos[0])), solid.frames[0])
    whole, sparse = READERS["video_prediction"].photos[0], READERS["frame_interpolation"].photos[0]
    for path, frames, fps in ((whole, clip.frames[:8], 7.0), (sparse, clip.frames[::4], 1.75)):
        shown = decode_all(path).frames
        assert probe(path).fps == pytest.approx(fps) and shown.shape == frames.shape
        apart = np.abs(shown[:, None].astype(float) - frames).mean(axis=(2, 3, 4))
        np.testing.assert_array_equal(apart.argmin(axis=1), range(len(frames)))
        assert apart.diagonal().max() < 4, "mp4 keeps half of the colour"


def test_the_command_takes_both_and_says_so_in_the_file(files, monkeypatch, capsys):
    checkpoint = files / "demo_known_frames.safetensors"
    save_native(random_model(SVD, KNOWN_FRAMES), checkpoint)
    monkeypatch.setattr(Pipeline, "videos", lambda self, request: iter(np.zeros((2, 5, 16, 16, 3), np.uint8)))
    assert command("sample", "--task", "frame_interpolation", "--out", files) == 0
    (path,) = capsys.readouterr().out.split()
    assert len(decode_all(Path(path)).frames) == 9 and probe(Path(path)).fps == pytest.approx(7.0)
    metadata = read_metadata(Path(path))
    assert metadata["checkpoint"] == str(checkpoint) and metadata["clip"] == "demo_clip_sparse.mp4"
