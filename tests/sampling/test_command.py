"""``svdjax sample`` as a user meets it: files, settings inside, one seed one video, and mistakes named."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from svdjax.cli import guard, main
from svdjax.conversion.native import save_native
from svdjax.data.video import read_metadata
from svdjax.errors import UserError
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.sampling.command import check_asked, ending_of, output_paths
from svdjax.sampling.options import Sample, resolve
from svdjax.sampling.pipeline import Pipeline, Settings, guidance_of
from tests.weights import random_model

DEFAULTS = SamplingDefaults(frames=2, height=16, width=24, steps=2, guidance=(1.0, 2.0), sigma_max=80.0)
TINY = SVDConfig(
    unet=UNetConfig(
        channels=(32, 32),
        num_res_blocks=1,
        attention=(False, True),
        head_dim=32,
        context_dim=24,
        vector_dim=24,
        norm_groups=4,  # 32 would hide what the scalars add to each channel
    ),
    vae=VAEConfig(channels=(32, 32), num_res_blocks=1, norm_groups=4),
    image_encoder=CLIPVisionConfig(
        width=32, layers=1, heads=2, mlp_dim=64, patch_size=28, image_size=56, projection_dim=24
    ),
    scalars=(("fps", 8), ("motion_bucket", 8), ("noise_aug", 8)),
    defaults=DEFAULTS,
)


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, TINY)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_native(model, path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def command(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in argv])
    return exit_.value.code


def pictures(count):
    return np.random.default_rng(1).uniform(-1, 1, (count, 16, 24, 3)).astype(np.float32)


@pytest.mark.slow
def test_a_video_does_not_depend_on_its_neighbours_or_on_the_devices(model):
    """The first two of eleven on eight devices are those of a pair on two devices."""
    images, calls = pictures(11), []
    settings = Settings(defaults=DEFAULTS, seed=5, sampler="euler_ancestral")
    pipeline = Pipeline(model, settings, on_step=calls.append)
    many = pipeline(images=images)
    assert len(calls) == pipeline.step_calls(11)
    pair = Pipeline(model, settings)(images=images[:2])
    assert many.shape == (11, 2, 16, 24, 3)
    np.testing.assert_array_equal(many[:2], pair)
    # The ninth video runs in the second group, on the first device.
    assert not np.array_equal(many[8], many[0])


def test_programs_are_kept_for_other_seeds_and_numbers_of_steps(model, tmp_path):
    """A second start finds all of them, whatever it asks for of these. (JAX keeps none that calls the host.)"""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in zip(options, (str(tmp_path), 0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        kept = []
        for seed, steps in ((1, 2), (2, 3)):
            defaults = dataclasses.replace(DEFAULTS, steps=steps)
            calls = []
            Pipeline(model, Settings(defaults=defaults, seed=seed), on_step=calls.append)(images=pictures(1))
            assert calls == list(range(1, steps + 1))
            kept.append({path.name for path in tmp_path.glob("jit_run-*-cache")})
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert kept[0] == kept[1] and len(kept[0]) == 4


@pytest.mark.slow
def test_several_videos_on_a_device_and_a_motion_bucket_for_each(model):
    images = pictures(3)
    alone = Pipeline(model, Settings(defaults=DEFAULTS))(images=images)
    buckets = np.float32([DEFAULTS.motion_bucket, DEFAULTS.motion_bucket, 255])
    pipeline = Pipeline(model, Settings(defaults=DEFAULTS, per_device=2))
    request = dataclasses.replace(pipeline.request(images=images), motion_bucket=buckets)
    together = np.stack(list(pipeline.videos(request)))
    difference = np.abs(together.astype(int) - alone)
    assert difference[:2].max() <= 1  # rounding differs with the number of videos in a batch
    assert difference[2].max() > 1


@pytest.mark.slow
def test_the_command_writes_videos_with_their_settings(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    argv = ("sample", photo, "--checkpoint", checkpoint, "--out", out, "--num-videos", 2, "--height", 18)
    assert command(*argv, "--seed", 3, "--format", "png") == 0
    printed = capsys.readouterr()
    folders = [Path(line) for line in printed.out.split()]
    assert folders == [out / "photo-0", out / "photo-1"]
    frames = sorted(folders[0].iterdir())
    assert len(frames) == 2
    with Image.open(frames[0]) as first:
        assert first.size == (24, 18), "padded for the networks, cropped back"
    assert "no multiple of 4" in printed.err
    metadata = read_metadata(frames[0])
    assert metadata["seed"] == 3 and metadata["height"] == 18 and metadata["checkpoint"] == str(checkpoint)
    assert json.loads(json.dumps(metadata)) == metadata
    assert "2 video(s) on 8 x cpu: condition" in printed.err


def test_options_lie_over_the_checkpoints_defaults():
    settings = resolve(Sample(steps=7, guidance=(2.0, 2.0)), DEFAULTS)
    assert (settings.defaults.steps, settings.defaults.frames, settings.defaults.guidance) == (7, 2, (2.0, 2.0))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"frames": 0}, "--frames 0"),
        ({"steps": 0}, "--steps 0"),
        ({"height": -8}, "--height -8"),
        ({"width": 0}, "--width 0"),
        ({"chunk": 0}, "--chunk 0"),
        ({"num_videos": 0}, "--num-videos 0"),
        ({"fps": 0.0}, "--fps 0"),
        ({"motion_bucket": 256.0}, "--motion-bucket 256"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"seed": -1}, "--seed -1"),
        ({"noise_aug": float("nan")}, "--noise-aug nan"),
        ({"guidance": (1.0, float("inf"))}, "--guidance"),
    ],
)
def test_values_out_of_range_are_named(options, named):
    with pytest.raises(UserError, match=named):
        resolve(Sample(**options), DEFAULTS)


@pytest.mark.parametrize(
    "argv, says",
    [
        (("nothing.png",), "no such picture"),
        ((__file__,), "not a picture"),
        (("--checkpoint", "nowhere/at/all.safetensors"), "not a local path"),
        (("--frames", "0"), "must be at least 1"),
        (("--context", "9"), "--context 9: must be from 1 to 8"),
        (("--overlap", "3"), "--overlap: a single window shares no frames"),
        (("--out", "/dev/null/videos"), "cannot write"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(checkpoint, photo, capsys, argv, says):
    argv = argv if argv[0].endswith(("png", "py")) else (photo, *argv)
    argv = argv if "--checkpoint" in argv else (*argv, "--checkpoint", checkpoint)
    assert command("sample", *argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0]


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (SVDConfig.sd21(), {"frames": 14}, "--frames 14: any makes single pictures"),
        (SVDConfig.sd21(), {"frames": 1, "steps": 1000}, "1000"),
        (SVDConfig.sd21(), {"frames": 1, "negative_prompt": "no", "guidance": (1.0, 1.0)}, "no effect without"),
        (SVDConfig.sv3d_p(), {"motion_bucket": 9.0}, "--motion-bucket: means nothing to any"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_its_weights_are_read(config, options, says):
    args = Sample(checkpoint="any", **options)
    with pytest.raises(UserError, match=says):
        check_asked(args, config, resolve(args, config.defaults))


def test_too_little_memory_is_one_line(capsys):
    def full():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmuch more")

    assert guard(full) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: too little memory on the device") and line.endswith("allocate 9 bytes.)")
    with pytest.raises(RuntimeError, match="something else"):
        guard(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_unknown_commands_are_answered_with_a_suggestion(capsys):
    assert command("smaple") == 2
    assert "did you mean sample?" in capsys.readouterr().err
    assert command("--help") == 0
    assert "convert" in capsys.readouterr().out


def test_photos_of_one_name_do_not_overwrite_each_other():
    paths = output_paths(["cat", "cat", "dog"], Sample(num_videos=2, out=Path("o")), ".mp4")
    assert len(set(paths)) == 6 and paths[4:] == [Path("o/dog-0.mp4"), Path("o/dog-1.mp4")]


def test_videos_that_would_overwrite_something_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"cat-0\.mp4: two videos would have this name"):
        output_paths(["cat", "cat", "cat-0"], Sample(), ".mp4")
    clip = tmp_path / "clip.mp4"
    with pytest.raises(UserError, match=r"clip\.mp4: would take the place of what it is made of"):
        output_paths(["clip"], Sample(photos=(clip,), out=tmp_path / "sub" / ".."), ".mp4")
    assert output_paths(["clip"], Sample(photos=(clip,), out=tmp_path), ".gif") == [tmp_path / "clip.gif"]
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match=r"cat holds other files \(diary.txt\)"):
        output_paths(["cat"], Sample(out=tmp_path), "")
    with pytest.raises(UserError, match="diary is a file, where a folder is to be"):
        (tmp_path / "diary").write_text("mine")
        output_paths(["diary"], Sample(out=tmp_path), "")


@pytest.mark.parametrize(
    "format, frames, ending",
    [
        (None, 2, ".mp4"),
        ("png", 2, ""),
        ("gif", 2, ".gif"),
        (None, 1, ".png"),
        ("png", 1, ".png"),
        ("mp4", 1, ".mp4"),
    ],
)
def test_a_single_frame_is_a_picture_unless_asked_otherwise(format, frames, ending):
    assert ending_of(Sample(format=format), frames) == ending


@pytest.mark.slow
def test_each_video_is_written_when_it_is_finished(checkpoint, photo, tmp_path, monkeypatch):
    """Also those of photos with dots in their names, as folders."""
    photos = [photo.with_name(f"a.{number}.png") for number in range(9)]
    for path in photos:
        path.write_bytes(photo.read_bytes())
    argv = ("sample", *photos, "--checkpoint", checkpoint, "--out", tmp_path, "--format", "png")
    group, done = Pipeline._group, []

    def second_group_fails(self, *args):
        if done:
            raise UserError("the power is gone")
        done.append(1)
        return group(self, *args)

    monkeypatch.setattr(Pipeline, "_group", second_group_fails)
    assert command(*argv) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{number}" for number in range(8)]


def test_the_bar_counts_the_steps_that_all_devices_go_together(model):
    pipeline = Pipeline(model, Settings(defaults=DEFAULTS, per_device=2))
    # Eight devices with two videos each go a step together; DEFAULTS have two steps.
    assert [pipeline.step_calls(count) for count in (1, 9, 16, 17)] == [2, 2, 2, 4]


def test_the_released_models_want_multiples_of_64():
    assert SVDConfig.svd().size_multiple == 64


def test_guidance_that_is_the_same_for_all_frames_takes_no_second_scale():
    constant = dataclasses.replace(DEFAULTS, guidance=(3.0, 3.0), guidance_shape="constant")
    assert resolve(Sample(guidance=(2.0, 2.0)), constant).defaults.guidance == (2.0, 2.0)
    with pytest.raises(
        UserError, match=r"--guidance 3\.0 7\.0: this model's is the same for all frames: give 7\.0 7\.0"
    ):
        resolve(Sample(guidance=(3.0, 7.0)), constant)


def test_guidance_follows_the_defaults():
    scales = guidance_of(SVDConfig.svd_xt().defaults).scales(25)
    np.testing.assert_allclose(scales[[0, 1, 24]], [1.5, 1.5625, 3.0])
    np.testing.assert_allclose(guidance_of(SVDConfig.sv3d_u().defaults).scales(21)[10], 2.5)
