"""The commands record and compare: the file between them, the verdict, and what either refuses."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from svdjax.conversion import compare, record
from svdjax.conversion.compare import Compare, Row, check_architecture, relative_error, side_by_side
from svdjax.conversion.convert import convert
from svdjax.conversion.golden import is_golden, load_golden
from svdjax.conversion.record import Record, resolve
from svdjax.conversion.recording import VERSION, Recording
from svdjax.data.decoding import decode_all
from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults, SVDConfig
from tests.parity.tiny import TinySizes, write_tiny_pipeline

SIZES = TinySizes(unet_channels=(64, 64), vae_channels=(64, 64), clip_layers=1)
HEADS = {"head_dim": SIZES.head_dim, "clip_heads": SIZES.clip_heads}
# diffusers' scheduler, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


def made_up(seed=0, *, frames=2, steps=1):
    """A recording of nothing in particular."""
    rng = np.random.default_rng(seed)
    latent, size = (frames, 2, 3, 4), (16, 24, 3)
    return Recording(
        config=SVDConfig(defaults=SamplingDefaults(frames=frames, steps=steps, height=16, width=24)),
        about={"seed": seed, "checkpoint": "somewhere"},
        image=rng.normal(size=size),
        image_noise=rng.normal(size=size),
        noise=rng.normal(size=latent),
        sigmas=np.array([700.0, 0.0]),
        chunk=2,
        scale=np.array([1.0, 3.0]),
        clip_pixels=rng.normal(size=(8, 8, 3)),
        embedding=rng.normal(size=5),
        image_latent=rng.normal(size=latent[1:]),
        vector=rng.normal(size=(frames, 6)),
        denoised=rng.normal(size=(steps, *latent)),
        latents=rng.normal(size=(steps, *latent)),
        frames=rng.uniform(-1, 1, size=(frames, *size)),
        blocks={"conv_in": np.array([0.0, 1.0, 2.0]), "up.0": np.array([0.5, 1.5, 3.0])},
    )


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(5).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, photo):
    """A checkpoint in the original format, and a float64 run of diffusers on it."""
    folder = tmp_path_factory.mktemp("recorded")
    pipeline = write_tiny_pipeline(folder / "pipeline", 7, SIZES)
    converted = convert(pipeline, folder / "converted.safetensors", to="sgm")
    checkpoint = folder / "svd.safetensors"
    save_file(load_file(converted), checkpoint)  # as a released file: without our configuration in its metadata
    out = folder / "run.npz"
    options = {"frames": 2, "height": 16, "width": 24, "steps": 2, "dtype": "float64", "guidance": (1.0, 2.5)}
    record.run(Record(checkpoint=str(checkpoint), out=out, image=photo, **options, **HEADS))
    return checkpoint, out


def test_a_recording_comes_back_as_it_was(tmp_path):
    recording = made_up()
    recording.save(tmp_path / "run.npz")
    again = Recording.load(tmp_path / "run.npz")
    for field in dataclasses.fields(Recording):
        ours, theirs = getattr(again, field.name), getattr(recording, field.name)
        if field.name == "blocks":
            assert list(ours) == list(theirs)
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        elif isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"], "nothing half-written stays"


def rewritten(path, **changes):
    """The recording of ``made_up`` with other header fields, or with arrays replaced or (None) left out."""
    made_up().save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["header"]))
    header |= {key: value for key, value in changes.items() if key in header}
    arrays |= {key: value for key, value in changes.items() if key not in header}
    arrays["header"] = np.array(json.dumps(header))
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_unusable_recordings_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(UserError, match="no such recording"):
        Recording.load(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a recording"):
        Recording.load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(UserError, match="not a recording"):
        Recording.load(path)
    with pytest.raises(UserError, match="not a recording"):
        Recording.load(rewritten(path, format="other"))
    with pytest.raises(UserError, match=f"version 99, this svdjax reads version {VERSION}"):
        Recording.load(rewritten(path, version=99))
    with pytest.raises(UserError, match="1 missing: noise"):
        Recording.load(rewritten(path, noise=None))
    made_up().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        Recording.load(path)


def test_a_recording_cannot_replace_a_folder_or_live_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        made_up().save(tmp_path / "file" / "run.npz")


@pytest.mark.slow
def test_record_then_compare_without_torch(recorded, tmp_path):
    """float64 on both sides, the original key names and epsilons, and no PyTorch in sight."""
    checkpoint, out = recorded
    script = """
import sys
from svdjax.cli import main

class Absent:
    # Makes Python believe that PyTorch and what builds on it are not installed.

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""
    arguments = ["compare", checkpoint, out, "--dtype", "float64", "--out", tmp_path]
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for part in ("CLIP embedding", "image latent", "UNet mid", "VAE decoder", "step 2 latents", "frames"):
        assert part in result.stdout
    assert "above the tolerance" not in result.stdout
    assert "tolerance 1e-09" in result.stdout
    video = decode_all(tmp_path / "run-compare.mp4")
    assert video.frames.shape == (2, 16, 3 * 24, 3), "reference, ours, difference"


def test_a_recording_holds_the_settings_of_the_run(recorded):
    recording = Recording.load(recorded[1])
    defaults = recording.config.defaults
    assert (defaults.frames, defaults.height, defaults.width, defaults.steps) == (2, 16, 24, 2)
    assert recording.config.unet.norm_eps == "sgm"
    assert recording.about["seed"] == 23
    assert "diffusers" in recording.about["libraries"]
    assert recording.frames.shape == (2, 16, 24, 3)
    assert list(recording.blocks) == ["conv_in", "down.0", "down.1", "mid", "up.0", "up.1", "conv_out"]
    np.testing.assert_allclose(recording.scale, [1.0, 2.5])
    assert recording.sigmas[0] == pytest.approx(700)
    assert recording.sigmas[-1] == 0


@pytest.mark.parametrize(("error", "code"), [(1e-5, 0), (2e-3, 1), (float("inf"), 1)])
def test_the_exit_code_follows_the_tolerance(tmp_path, monkeypatch, capsys, error, code):
    recording = made_up()
    recording.save(tmp_path / "run.npz")
    rows = [Row("good", 0.0), Row("doubtful", error)]
    monkeypatch.setattr(compare, "_measure", lambda *args: (rows, recording.frames))
    args = Compare(checkpoint="x", recording=tmp_path / "run.npz", out=tmp_path / "out")
    assert compare.run(args) == code
    printed = capsys.readouterr().out
    assert "largest" in printed
    assert ("above the tolerance" in printed) == bool(code)
    assert compare.run(dataclasses.replace(args, tolerance=1.0)) == int(error == float("inf"))


def test_compare_refuses(recorded, tmp_path):
    checkpoint, out = recorded
    good = Compare(checkpoint=str(checkpoint), recording=out, out=tmp_path)
    with pytest.raises(UserError, match="no such recording"):
        compare.run(dataclasses.replace(good, recording=tmp_path / "none.npz"))
    with pytest.raises(UserError, match="--tolerance -1"):
        compare.run(dataclasses.replace(good, tolerance=-1.0))
    with pytest.raises(UserError, match="no such file"):
        compare.run(dataclasses.replace(good, checkpoint=str(tmp_path / "none")))
    with pytest.raises(UserError, match="head_dim 16, but the recording is of a model with 32"):
        compare.run(dataclasses.replace(good, head_dim=16))
    made_up().save(tmp_path / "other.npz")
    with_config = str(checkpoint.with_name("converted.safetensors"))
    for other in (dataclasses.replace(good, **HEADS), dataclasses.replace(good, checkpoint=with_config)):
        with pytest.raises(UserError, match="but the recording is of a model with"):
            compare.run(dataclasses.replace(other, recording=tmp_path / "other.npz"))


def test_architectures_may_differ_in_epsilon_alone():
    config = SVDConfig.svd()
    other = dataclasses.replace(config, unet=dataclasses.replace(config.unet, norm_eps="diffusers"))
    check_architecture(config, other, "x")
    with pytest.raises(UserError, match="for multi_view, but the recording is of a model for image_to_video"):
        check_architecture(SVDConfig.sv3d_u(), config, "x")


def test_the_video_cannot_be_written_into_a_file(tmp_path, monkeypatch):
    recording = made_up()
    recording.save(tmp_path / "run.npz")
    monkeypatch.setattr(compare, "_measure", lambda *args: ([Row("part", 0.0)], recording.frames))
    with pytest.raises(UserError, match="cannot"):
        compare.run(Compare(checkpoint="x", recording=tmp_path / "run.npz", out=tmp_path / "run.npz"))


def test_relative_error_and_its_worst_cases():
    assert relative_error([1.0, 2.5], [1.0, 2.0]) == 0.25
    assert relative_error([0.0], [0.0]) == 0.0
    assert relative_error([np.nan], [1.0]) == float("inf")
    assert relative_error([1.0], [[1.0]]) == float("inf")


def test_the_difference_is_amplified_until_it_can_be_seen():
    theirs = np.zeros((1, 2, 2, 3))
    video, gain = side_by_side(theirs, theirs + 3e-5)
    assert gain == pytest.approx(1e4)
    assert video.shape == (1, 2, 6, 3)
    assert video[0, 0, 4, 0] == round(0.3 * 127.5)
    assert side_by_side(theirs, theirs)[0][0, 0, 4, 0] == 0, "no difference is black"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"frames": 0}, "--frames 0"),
        ({"chunk": 0}, "--chunk 0"),
        ({"height": 60}, "--height 60: must be a multiple of 8"),
        ({"width": 0}, "--width 0"),
        ({"guidance": (2.0, 1.0)}, "--guidance"),
        ({"noise_aug": float("nan")}, "finite"),
    ],
)
def test_record_refuses_settings_that_diffusers_cannot_run(change, message):
    args = dataclasses.replace(Record(checkpoint="x", out=Path("y.npz")), **change)
    with pytest.raises(UserError, match=message):
        resolve(args, SVDConfig.svd())


def test_record_refuses_models_that_diffusers_has_no_pipeline_for():
    with pytest.raises(UserError, match="multi_view"):
        resolve(Record(checkpoint="x", out=Path("y.npz")), SVDConfig.sv3d_u())


def test_record_names_the_extra_when_torch_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch is not installed.*svdjax\[torch\]"):
        record.run(Record(checkpoint="x", out=tmp_path / "y.npz"))


def test_record_refuses_bad_pictures_and_outputs(recorded, photo, tmp_path):
    checkpoint = str(recorded[0])
    args = Record(checkpoint=checkpoint, out=tmp_path / "y.npz", height=16, width=24, image=photo, **HEADS)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png: not a picture"):
        record.run(dataclasses.replace(args, image=tmp_path / "text.png"))
    with pytest.raises(UserError, match="cannot be written"):
        record.run(dataclasses.replace(args, out=tmp_path / "text.png" / "y.npz"))
    with pytest.raises(UserError, match="is a folder"):
        record.run(dataclasses.replace(args, out=tmp_path))


def test_incomplete_reference_cases_are_refused(tmp_path):
    assert not is_golden(tmp_path)
    (tmp_path / "case.json").write_text('{"task": "i2v"}')
    assert is_golden(tmp_path)
    with pytest.raises(UserError, match="not a complete reference case"):
        load_golden(tmp_path)
