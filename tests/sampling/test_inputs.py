"""What each task is asked by on the command line: prompts, their files, and options that mean nothing to a task."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from svdjax.cli import main
from svdjax.conversion.native import save_native
from svdjax.data.video import read_metadata
from svdjax.diffusion import discrete_sigmas
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.params import abstract
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.tokenizer import tokenize
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.sampling.command import cut_prompt
from svdjax.sampling.inputs import READERS, reader_of
from svdjax.sampling.inputs.prompts import name_of, read
from svdjax.sampling.options import Sample
from svdjax.sampling.pipeline import Pipeline, Settings, own_schedule, schedule_of
from svdjax.tasks import TASKS
from svdjax.training.samples import write_grid
from tests.weights import random_model

DEFAULTS = SamplingDefaults(
    frames=2, height=8, width=16, steps=2, guidance=(3.0, 3.0), guidance_shape="constant", sigma_max=80.0
)
VIDEO = SVDConfig(
    unet=UNetConfig(
        in_channels=4,
        channels=(32,),
        num_res_blocks=1,
        attention=(True,),
        head_dim=32,
        context_dim=16,
        vector_dim=16,
        norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4),
    image_encoder=None,
    text_encoder=CLIPTextConfig(width=16, layers=2, heads=2, mlp_dim=16, context_length=12, projection_dim=None),
    task="text_to_video",
    scalars=(("fps", 8), ("motion_bucket", 8)),
    defaults=DEFAULTS,
)
PICTURE = dataclasses.replace(
    VIDEO,
    unet=dataclasses.replace(VIDEO.unet, temporal=False, vector_dim=0),
    vae=dataclasses.replace(VIDEO.vae, temporal_decoder=False),
    task="text_to_image",
    scalars=(),
    preconditioning="discrete_v",
    defaults=dataclasses.replace(DEFAULTS, frames=1),
)
PROMPTS = ["a red square moves left", "waves"]


def command(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in argv])
    return exit_.value.code


@pytest.fixture(scope="module")
def video_model():
    return random_model(SVD, VIDEO)


@pytest.fixture(scope="module")
def picture_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "tiny.safetensors"
    save_native(random_model(SVD, PICTURE), path)
    return path


def test_every_task_of_a_model_can_be_asked_for():
    assert {name for reader in READERS.values() for name in reader.models} == set(TASKS)
    fields = {field.name for field in dataclasses.fields(Sample)}
    assert all(set(reader.options) <= fields for reader in READERS.values())


@pytest.mark.parametrize(
    "given, task, says",
    [
        ({"task": "image_to_vido"}, "image_to_video", "--task image_to_vido: cannot be sampled; choose from"),
        ({}, "frame_dropping", "--task frame_dropping: cannot be sampled"),
        ({"azimuths": (0.0, 90.0)}, "image_to_video", "--azimuths: means nothing to image_to_video"),
        ({"task": "text_to_video"}, "image_to_video", "a checkpoint for image_to_video, not for text_to_video"),
        ({"prompt": "a hill"}, "image_to_video", "--prompt: means nothing to image_to_video, which reads photos"),
        (
            {"photos": (Path("a.png"),)},
            "text_to_video",
            "photos: means nothing to text_to_video, which reads --prompt",
        ),
        ({"noise_aug": 0.1}, "text_to_video", "--noise-aug: means nothing"),
        ({"temporal_prompt": ""}, "text_to_image", "--temporal-prompt: means nothing"),
    ],
)
def test_what_means_nothing_to_a_task_is_refused(given, task, says):
    with pytest.raises(UserError, match=says):
        reader_of(Sample(**given), task)


def test_prompts_are_read_from_the_command_line_or_from_a_file(tmp_path):
    one = read(Sample(prompt="A red square!", negative_prompt=""), DEFAULTS)
    assert one.inputs == {"prompts": ["A red square!"], "negative_prompt": ""}
    assert one.names == ["a-red-square"] and one.notes == [{"prompt": "A red square!", "negative_prompt": ""}]
    path = tmp_path / "prompts.txt"
    path.write_text("waves \n\n  a dog runs\n", "utf-8")
    many = read(Sample(prompts=path, temporal_prompt="panning"), DEFAULTS)
    assert many.inputs == {"prompts": ["waves", "a dog runs"], "temporal_prompt": "panning"}
    assert many.names == ["waves", "a-dog-runs"]
    some = many.some(np.array([1, 1]))
    assert some == {"prompts": ["a dog runs"] * 2, "temporal_prompt": "panning"}


def test_without_one_source_of_prompts_there_is_one_line(tmp_path):
    for given in ({}, {"prompt": "a", "prompts": tmp_path / "b"}):
        with pytest.raises(UserError, match="give one of them"):
            read(Sample(**given), DEFAULTS)
    with pytest.raises(UserError, match="cannot be read as text"):
        read(Sample(prompts=tmp_path / "none"), DEFAULTS)
    (tmp_path / "empty").write_text(" \n\n")
    with pytest.raises(UserError, match="no line with a text"):
        read(Sample(prompts=tmp_path / "empty"), DEFAULTS)


def test_any_prompt_makes_a_short_file_name():
    assert name_of("../../etc: Passwd?") == "etc-passwd"
    assert name_of("¡¿?!") == "no-words"
    assert len(name_of("word " * 100)) <= 60


def test_a_prompt_that_is_too_long_is_said_to_be_cut():
    assert cut_prompt("a dog runs", VIDEO) == ""
    long = "one two three four five six seven eight nine ten eleven"
    assert cut_prompt(long, VIDEO) == f'the model reads the first 10 of 11 tokens of "{long}"'


@pytest.mark.slow
def test_prompts_change_their_own_videos(video_model):
    pipeline = Pipeline(video_model, Settings(defaults=DEFAULTS, per_device=2))
    plain = pipeline(prompts=PROMPTS)
    assert plain.shape == (2, 2, 8, 16, 3)
    other = pipeline(prompts=[PROMPTS[0], "a hill"])
    np.testing.assert_array_equal(other[0], plain[0])
    assert not np.array_equal(other[1], plain[1])
    moved = pipeline(prompts=PROMPTS, temporal_prompt="zooming in", negative_prompt="")
    assert all(not np.array_equal(a, b) for a, b in zip(moved, plain, strict=True))


def test_a_grid_of_a_text_model_asks_for_the_captions_of_its_clips(tmp_path):
    asked = []

    def videos(self, request):
        asked.append((request, self.settings.per_device))
        return iter(np.zeros((len(request.tokens), 2, 16, 8, 3), np.uint8))

    clips = {"video": np.zeros((2, 3, 16, 8, 3), np.uint8), "caption": PROMPTS}
    with mock.patch.object(Pipeline, "videos", videos):
        written = write_grid(abstract(SVD, VIDEO), clips, tmp_path / "grid", motion_buckets=(1.0, 64.0, 255.0))
    request, per_device = asked[0]
    np.testing.assert_array_equal(request.tokens, np.repeat(tokenize(PROMPTS, context_length=12), 3, axis=0))
    np.testing.assert_array_equal(request.motion_bucket, [1, 64, 255, 1, 64, 255])
    assert per_device == 16
    with Image.open(written[0]) as grid:
        assert grid.size == (4 * 8, 2 * 16)


def test_a_grid_of_large_videos_is_made_one_by_one(tmp_path):
    """Of SVD-XT's a device holds one, not the 20 of a grid."""
    asked = []

    def videos(self, request):
        asked.append(self.settings.per_device)
        return iter(np.zeros((2, 2, 16, 8, 3), np.uint8))

    clips = {"video": np.zeros((2, 2, 16, 8, 3), np.uint8), "caption": PROMPTS}
    with mock.patch.object(Pipeline, "videos", videos), mock.patch("svdjax.training.samples.MOST_PIXELS", 300):
        write_grid(abstract(SVD, VIDEO), clips, tmp_path / "grid", motion_buckets=(1.0,))
    assert asked == [1]


def test_the_command_paints_pictures_with_their_prompts_inside(picture_checkpoint, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    argv = ("sample", "--checkpoint", picture_checkpoint, "--prompts", prompts, "--out", tmp_path / "out")
    assert command(*argv, "--per-device", 2) == 0
    paths = capsys.readouterr().out.split()
    assert paths == [str(tmp_path / "out" / f"{name_of(prompt)}.png") for prompt in PROMPTS]
    for path, prompt in zip(paths, PROMPTS, strict=True):
        with Image.open(path) as picture:
            assert picture.size == (16, 8)
        metadata = read_metadata(tmp_path / "out" / path)
        assert metadata["prompt"] == prompt and metadata["schedule"] == "leading"
        assert json.loads(json.dumps(metadata)) == metadata


def test_mistakes_end_with_code_2_and_one_line(picture_checkpoint, capsys):
    assert command("sample", "--checkpoint", picture_checkpoint) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "--prompt" in lines[0]


def test_a_model_of_discrete_levels_steps_through_them():
    assert (own_schedule(PICTURE), own_schedule(VIDEO)) == ("leading", "karras")
    levels = discrete_sigmas()
    np.testing.assert_allclose(schedule_of("leading", DEFAULTS)(4), [*levels[[751, 501, 251, 1]], 0], rtol=1e-6)
    np.testing.assert_allclose(schedule_of("trailing", DEFAULTS)(4), [*levels[[999, 749, 499, 249]], 0], rtol=1e-6)
