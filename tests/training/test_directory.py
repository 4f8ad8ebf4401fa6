"""A run's directory belongs to one configuration, whatever stages it has, and process 0 alone writes there."""

import dataclasses
import json
from unittest import mock

import pytest

from svdjax.data.motion import MotionBuckets
from svdjax.errors import UserError
from svdjax.training import processes
from svdjax.training.directory import claim, keep_motion_map
from tests.training.tiny import tiny_run

STAGES = ("vae", "decoder", "unet")


def only(root, *stages, **changes):
    """A run of these stages alone."""
    absent = {stage: None for stage in STAGES if stage not in stages}
    return dataclasses.replace(tiny_run(root), **absent, **changes)


@pytest.fixture
def other_process(monkeypatch):
    """This is not process 0, and has no patience."""
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr(processes, "_SIGHT_S", 0)


@pytest.mark.parametrize(
    ("mine", "trace"),
    [
        (("unet",), "unet"),
        (("vae", "decoder"), "vae"),
        (("decoder",), "decoder"),
        (("unet",), "model.safetensors"),
        (("unet",), "lora.safetensors"),
    ],
)
def test_a_run_of_other_stages_is_not_taken_over(tmp_path, mine, trace):
    others = [only(tmp_path, stage) for stage in STAGES if (stage,) != mine]
    first = only(tmp_path, *mine)
    claim(first)
    text = (first.out / "config.json").read_text()
    (first.out / trace).mkdir()
    for other in others:
        with pytest.raises(UserError, match=r"run holds a run of another configuration \("):
            claim(other)
    assert (first.out / "config.json").read_text() == text
    claim(first)


def test_before_anything_is_trained_another_configuration_may_take_the_directory(tmp_path):
    claim(only(tmp_path, "unet"))
    claim(only(tmp_path, "decoder", seed=5))
    assert json.loads((tmp_path / "run/config.json").read_text())["seed"] == 5


def test_another_process_compares_the_configuration_and_writes_nothing(tmp_path, other_process, monkeypatch):
    config, other = only(tmp_path, "unet"), only(tmp_path, "unet", seed=5)
    with pytest.raises(UserError, match=r"run/config\.json: process 0 does not see it: .* no directory that all"):
        claim(config)
    assert not config.out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "is_main", lambda: True)
        claim(config)
    text = (config.out / "config.json").read_text()
    claim(dataclasses.replace(config, export_dtype="float32"))
    with pytest.raises(UserError, match=r"another configuration \(seed 0 -> 5\)"):
        claim(other)
    assert (config.out / "config.json").read_text() == text


def test_another_process_compares_the_map_of_motion_buckets_and_writes_nothing(
    tmp_path, other_process, monkeypatch
):
    config, path = only(tmp_path, "unet"), tmp_path / "run/motion_buckets.json"
    one, two = mock.MagicMock(motion_measure="flow"), mock.MagicMock(motion_measure="flow")
    one.buckets, two.buckets = (MotionBuckets(thresholds=(x,) * 254) for x in (1.0, 2.0))
    with pytest.raises(UserError, match=r"motion_buckets\.json: process 0 does not see it"):
        keep_motion_map(config, one)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "is_main", lambda: True)
        claim(config)
        keep_motion_map(config, one)
    text = path.read_text()
    keep_motion_map(config, one)
    with pytest.raises(UserError, match="another map of motion buckets"):
        keep_motion_map(config, two)
    assert path.read_text() == text
