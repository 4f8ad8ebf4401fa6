"""The demo tasks' benchmark: effects of the bundled checkpoints, verdicts that can fail, and training once."""

import dataclasses
import json
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import camera_lora, films, frame_interpolation, runs, tasks, video_prediction
from svdjax.data.decoding import decode_all
from svdjax.data.sampling import ClipSampling
from svdjax.data.sprites import World, draw_clips
from svdjax.data.video import encode_lossless
from svdjax.errors import MissingPackage, UserError
from svdjax.sampling.images import from_uint8
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import Stopped
from svdjax.training.temporal_decoder_stage import TemporalDecoderStage
from tests.training.tiny import tiny_run


def shares(colour, shape, direction):
    return {"colour": colour, "shape": shape, "direction": direction}


def psnrs(**values):
    return {"after_vae": {name: [40.0, value] for name, value in values.items()}}


def motions(*pairs, samples=64):
    names = camera_lora.MOTIONS
    shares = {name: {"with": w, "without": wo} for name, (w, wo) in zip(names, pairs, strict=True)}
    return {"samples": samples, "motions": shares}


def jerks(**values):
    return {"ways": {name: {"jerk": value} for name, value in values.items()}}


def views(model, picture):
    return {
        name: {"psnr": value, "ssim": 0.5}
        for name, value in {"model": model, "picture": picture, "autoencoder": 30.0}.items()
    }


def decoders(*, plain=(26.0, 2.9, 0.7), adversarial=(25.0, 3.5, 0.75)):
    figures = ((25.5, 3.0, 0.7), (26.0, 2.9, 0.7), (24.5, 3.6, 0.8), plain, adversarial)
    named = zip(tasks.temporal_decoder.NAMES, figures, strict=True)
    return {name: dict(zip(("psnr", "flicker", "detail"), each, strict=True)) for name, each in named}


KNOWN_FRAMES = ("frame_interpolation", "video_prediction")
OTHERS = {"shuffled": shares(0.1, 0.2, 0.25), "autoencoder": shares(1.0, 0.9, 1.0)}
# Figures in which the effect is there, and others in which it is not.
VERDICTS = {
    "text_to_video": (
        {"prompt": shares(0.2, 0.3, 0.3), **OTHERS},
        [{"prompt": shares(*agree), **OTHERS} for agree in ((0.1, 0.3, 0.3), (0.2, 0.2, 0.3), (0.2, 0.3, 0.25))],
    ),
    "camera_lora": (
        motions((0.9, 0.1), (0.9, 0.8), (0.95, 0.0)),
        [
            motions((0.9, 0.1), (0.9, 0.9), (0.9, 0.1)),
            motions((0.9, 0.1), (0.8, 0.0), (0.9, 0.1)),
            motions((0.9, 0.1), (0.4, 0.0), (0.9, 0.1), samples=8),
        ],
    ),
    "video_prediction": (
        {"psnr": {"model": [22.0, 20.0], "repetition": [23.0, 18.0], "flow": [25.0, 24.0], "vae": [30.0, 30.0]}},
        [{"psnr": {"model": [22.0, 20.0], "repetition": [23.0, 19.0], "flow": [9.0, 9.0], "vae": [30.0, 30.0]}}],
    ),
    "frame_interpolation": (
        psnrs(model=25, blending=26, repetition=20, vae=30),
        [psnrs(model=24, blending=20, repetition=24, vae=30)],
    ),
    "multi_view": (views(15.0, 14.0), [views(14.0, 14.0)]),
    "temporal_decoder": (
        decoders(),
        [
            decoders(plain=(25.4, 2.9, 0.7)),
            decoders(adversarial=(25.0, 3.5, 0.65)),
            decoders(adversarial=(25.0, 3.5, 1.1)),
            decoders(adversarial=(22.5, 3.5, 0.75)),
        ],
    ),
    "longer_videos": (jerks(picture=1.2, first=1.1, last=1.3), [jerks(picture=1.2, first=1.2, last=1.0)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_effect_of_a_bundled_checkpoint_is_there(name):
    if why := tasks.missing(name):
        pytest.skip(why)
    figures = tasks.quick(name)
    assert figures["as_expected"], json.dumps(figures, indent=1)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_verdict_can_be_both(name):
    good, bad = VERDICTS[name]
    task = tasks.TASKS[name]
    assert task.as_expected(good) and not any(map(task.as_expected, bad))


def test_the_table_has_figures_baselines_and_reasons():
    judged = {name: tasks.judged(tasks.TASKS[name], good) for name, (good, _) in VERDICTS.items()}
    lines = tasks.table({**judged, "multi_view": "not bundled: a.safetensors"}).splitlines()
    assert len(lines) == 2 + len(tasks.TASKS) and all(line.count("|") == 5 for line in lines)
    assert lines[2] == (
        "| text to video | agree with the prompt: colour 0.200, shape 0.300, direction 0.300 | with other prompts: "
        "colour 0.100, shape 0.200, direction 0.250; at most: colour 1.000, shape 0.900, direction 1.000 | yes |"
    )
    assert "| multi view | not bundled: a.safetensors |  |  |" in lines
    assert lines[-1] == "| longer videos | jerk at the seams: first 1.100, last 1.300 | picture 1.200 | yes |"


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Three tasks: one as expected, one not, one not bundled; what was asked of them."""
    asked = []

    def task(name, file, good):
        def measure(*files, **few):
            asked.append((name, files, few))
            return {"good": good}

        def train(folder, *, seed, steps):
            return (folder / f"{seed}-{steps}",)

        return SimpleNamespace(
            BUNDLED=(file,),
            QUICK={"samples": 2},
            measure=measure,
            train=train,
            as_expected=lambda figures: figures["good"],
            row=lambda figures: (str(figures["good"]), "nothing"),
        )

    made = {"works": task("works", DEMO_CHECKPOINT, True), "fails": task("fails", DEMO_CHECKPOINT, False)}
    monkeypatch.setattr(tasks, "TASKS", {**made, "later": task("later", tmp_path / "later.safetensors", False)})
    return asked


def printed(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["tasks", *map(str, argv)])
    code = tasks.main()
    text, _, table = capsys.readouterr().out.partition("\n\n")
    return code, json.loads(text), table


def test_quick_fails_if_an_effect_is_not_there_and_only_then(stand_ins, monkeypatch, capsys):
    code, found, table = printed(monkeypatch, capsys, "--quick")
    assert code == 1 and "| fails | False | nothing | **no** |" in table
    assert found["later"] == "not bundled: later.safetensors" and found["works"]["as_expected"]
    assert stand_ins == [(name, (DEMO_CHECKPOINT,), {"samples": 2}) for name in ("works", "fails")]
    code, found, _ = printed(monkeypatch, capsys, "--quick", "--only", "works", "later")
    assert code == 0 and list(found) == ["works", "later"]


def test_quick_takes_no_option_of_training(stand_ins, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        printed(monkeypatch, capsys, "--quick", "--steps", 5)
    assert stop.value.code == 2 and "trains nothing: leave --out" in capsys.readouterr().err and not stand_ins


def test_without_quick_all_is_trained_in_folders_of_its_own(stand_ins, monkeypatch, capsys, tmp_path):
    code, found, _ = printed(monkeypatch, capsys, "--out", tmp_path, "--seed", 3, "--only", "later", "fails")
    assert code == 0 and found["later"] == {"training_seed": 3, "good": False, "as_expected": False}
    assert stand_ins == [(name, (tmp_path / name / "3-None",), {}) for name in ("later", "fails")]


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    config, trained = tiny_run(tmp_path), []

    def run(config):
        trained.append(config.seed)
        (config.out / "unet").mkdir()
        if len(trained) == 1:
            return Stopped("unet", 1)
        (config.out / "model.safetensors").touch()

    monkeypatch.setattr(runs, "run", run)
    with pytest.raises(KeyboardInterrupt):
        runs.trained(config)
    (config.out / "unet").rmdir()
    assert runs.trained(config) == runs.trained(config) == config.out / "model.safetensors"
    assert len(trained) == 2
    with pytest.raises(UserError, match="holds a run of another configuration"):
        runs.trained(dataclasses.replace(config, seed=1))


def test_runs_are_the_committed_configurations_in_a_folder(tmp_path):
    config = runs.demo_run("demo_multi_view", tmp_path, seed=4)
    own = runs.load_config([str(runs.CONFIGS / "demo_multi_view.py")], default=runs.CONFIGS)
    assert (config.seed, config.out.parent, config.data.train.parent) == (4, tmp_path, tmp_path)
    assert (config.decoder, config.unet, config.model) == (own.decoder, own.unet, own.model)
    short = runs.demo_run("demo_multi_view", tmp_path, steps=7)
    assert (short.decoder.steps, short.unet.steps, short.vae) == (7, 7, None)


def test_what_moves_on_steadily_is_foretold_by_its_flow():
    pans = World(sprites=(1, 1), cameras=(0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0), still_share=0.0)
    video = from_uint8(np.stack([clip.frames for clip in draw_clips(pans, 2, 6) if clip.truth.motion > 1]))
    apart = {
        name: ((made - video[:, video_prediction.KNOWN :]) ** 2).mean(axis=(0, 2, 3, 4))
        for name, made in video_prediction.continued(video).items()
    }
    assert (apart["flow"] < 0.7 * apart["repetition"]).all(), apart


def test_the_text_model_is_trained_from_the_benchmark_s_own_image_model(tmp_path, monkeypatch):
    seen = []
    module = tasks.TASKS["text_to_video"]
    monkeypatch.setattr(module, "trained", lambda config: seen.append(config) or config.out)
    (video,) = module.train(tmp_path, seed=1, steps=2)
    first, second = seen
    assert video == second.out and second.init_from == str(first.out)
    assert {config.seed for config in seen} == {1} and {config.unet.steps for config in seen} == {2}
    assert len({config.data.train for config in seen}) == 2


def test_two_benchmarks_measure_one_model_of_known_frames(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "trained", lambda config: seen.append(config) or config.out)
    made = {tasks.TASKS[name].train(tmp_path / name, seed=1, steps=2) for name in KNOWN_FRAMES}
    first, second = seen[:2]
    assert made == {(second.out,)} and second.init_from == str(first.out) and seen[2:] == [first, second]
    assert first.data.train != second.data.train and {config.unet.steps for config in seen} == {2}


def test_films_are_cut_apart_without_loss_and_none_of_a_film_is_in_both_parts(tmp_path):
    folder = films.cut_apart(tmp_path)
    size = ClipSampling().size
    for film in films.films():
        parts = [decode_all(folder / part / f"{film.stem}.mov").frames for part in ("train", "held")]
        np.testing.assert_array_equal(np.concatenate(parts), decode_all(film, size=size).frames)
        assert len(parts[0]) == 2 * sum(map(len, parts)) // 3
    (folder / "held" / "notes.json").write_text("{}")
    (folder / "held" / "bikes.mov").rename(folder / "held" / "BIKES.MOV")
    (folder / "held" / "deep").mkdir()
    (folder / "held" / "carphone_pristine.mov").rename(folder / "held" / "deep" / "a.mov")
    shown = np.stack(list(films.windows(folder / "held")))
    assert shown.shape == (20, films.WINDOW, *size, 3)
    np.testing.assert_array_equal(
        shown[10:15].reshape(-1, *size, 3), decode_all(folder / "held/bigbuckbunny.mov").frames[:40]
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("train/*.mov")}
    assert films.cut_apart(folder) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("train/*.mov")}


def test_each_decoder_is_what_its_name_says(tmp_path, monkeypatch):
    module = tasks.TASKS["temporal_decoder"]
    seen = []
    monkeypatch.setattr(module, "trained", lambda config: seen.append(config) or config.out)
    monkeypatch.setattr(module, "windows", lambda folder: iter([folder]))
    films_of, *made = module.train(tmp_path, tmp_path / "films", seed=1, steps=2)
    assert films_of == tmp_path / "films" and made == [config.out for config in seen] and len(set(made)) == 5
    before, *others = seen
    assert before.vae is not None and before.decoder is None and not before.model.vae.temporal_decoder
    for name, config in zip(module.NAMES[1:], others, strict=True):
        assert config.vae is None and config.init_from == str(before.out / "model.safetensors")
        assert config.model.vae.temporal_decoder == name.startswith("temporal")
        assert isinstance(config.decoder, TemporalDecoderStage) == name.endswith("discriminator")
    shared = [{key: getattr(config.decoder, key) for key in vars(others[0].decoder)} for config in others]
    assert all(each == shared[0] for each in shared) and shared[0]["steps"] == 2
    assert {(config.seed, config.data.train, config.data.sprites) for config in seen} == {
        (1, tmp_path / "films" / "train", 0)
    }


def test_films_that_are_too_short_or_missing_are_refused_before_training(tmp_path, monkeypatch):
    module = tasks.TASKS["temporal_decoder"]
    monkeypatch.setattr(module, "trained", lambda config: pytest.fail("trained"))
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.mov").write_bytes(encode_lossless(np.zeros((7, 64, 64, 3), np.uint8), 7.0))
    with pytest.raises(UserError, match="held holds no video of 8 frames"):
        module.train(tmp_path / "out", tmp_path)
    monkeypatch.setattr(films, "distribution", distribution_of_nothing)
    monkeypatch.setattr(sys, "argv", ["tasks", "--out", str(tmp_path / "out")])
    with pytest.raises(MissingPackage, match="scikit-video is not installed"):
        tasks.main()


def distribution_of_nothing(name):
    raise PackageNotFoundError(name)


def test_each_camera_lora_sees_its_own_motion_and_starts_from_the_base(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(camera_lora, "trained", lambda config: seen.append(config) or config.out)
    base, *loras = camera_lora.train(tmp_path, seed=1, steps=2)
    first, *others = seen
    shown = dict(zip(camera_lora.CAMERAS, first.data.world.cameras, strict=True))
    assert base == first.out and min(shown[motion] for motion in camera_lora.MOTIONS) > 0
    assert max(shown, key=shown.get) not in camera_lora.MOTIONS  # or there would be nothing to change
    assert loras == [config.out for config in others] and len(set(loras)) == 3
    for motion, config in zip(camera_lora.MOTIONS, others, strict=True):
        assert str(base) == config.init_from and config.unet.steps == 2
        cameras = dict(zip(camera_lora.CAMERAS, config.data.world.cameras, strict=True))
        assert {camera for camera, weight in cameras.items() if weight} == {motion}
        assert dataclasses.replace(config.data.world, cameras=first.data.world.cameras) == first.data.world
    assert len({config.data.train for config in seen}) == 4


def test_gaps_between_any_known_frames_are_filled_in_from_their_ends():
    ramp = np.arange(8.0)[None, :, None, None, None]
    found = frame_interpolation.interpolations(ramp, np.array([0, 1, 5, 7]))
    assert found["blending"].ravel().tolist() == ramp.ravel().tolist()
    assert found["repetition"].ravel().tolist() == [0, 1, 1, 1, 5, 5, 5, 7]
