"""The multi-view benchmark on a data set of orbits, by all of its metrics, with random weights."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import multi_view
from svdjax.conversion.lpips import lpips_table
from svdjax.conversion.mapping import to_theirs
from svdjax.conversion.native import write_native_file
from svdjax.curation.embeddings import open_image_embedder
from svdjax.data.records import write_sprites
from svdjax.data.sprites import World, draw_clips
from svdjax.errors import UserError
from svdjax.evaluation.multi_view import clip_similarity, lpips
from svdjax.evaluation.reconstruction import psnr, ssim
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.models.params import flat_params
from svdjax.sampling.bundled import CHECKPOINTS
from tests.tasks.test_multi_view import config_of
from tests.weights import random_checkpoint, random_model

WORLD = World(orbit_share=1.0, frames=3, height=16, width=16)
COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Orbits, a model that is given the first view, one that is given the last, and LPIPS."""
    folder = tmp_path_factory.mktemp("multi_view")
    write_sprites(WORLD, folder / "orbits", seed=5, count=COUNT, shards=1)
    for kind in ("svd_mv", "sv3d_p"):
        config = config_of(kind)
        unet = dataclasses.replace(config.unet, vector_dim=sum(width for _, width in config.scalars))
        defaults = dataclasses.replace(config.defaults, height=16, width=16, steps=2)
        config = dataclasses.replace(config, unet=unet, defaults=defaults)
        write_native_file(random_checkpoint(config, 0), folder / f"{kind}.safetensors")
    flat = {path: np.asarray(value) for path, value in flat_params(perceptual()).items()}
    theirs = to_theirs(lpips_table(LPIPSConfig()), flat, what="LPIPS")
    save_file({key: np.ascontiguousarray(value) for key, value in theirs.items()}, folder / "lpips.safetensors")
    return folder


def perceptual():
    return random_model(LPIPS, LPIPSConfig())


def printed(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["multi_view", *map(str, argv)])
    multi_view.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("kind", "given"), [("svd_mv", 0), ("sv3d_p", -1)])
def test_all_metrics_are_of_the_views_that_were_not_given(folder, monkeypatch, capsys, kind, given):
    model = folder / f"{kind}.safetensors"
    options = ("--orbits", folder / "orbits", "--lpips", folder / "lpips.safetensors", "--clip", model)
    found = printed(monkeypatch, capsys, model, *options)
    true = np.stack([clip.frames for clip in draw_clips(WORLD, 5, COUNT)])
    pair = np.repeat(true[:, [given]], 3, axis=1), true
    others = [view for view in range(3) if view != given % 3]
    wanted = {
        "psnr": psnr(*pair),
        "ssim": ssim(*pair),
        "lpips": lpips(*pair, perceptual()),
        "clip_s": clip_similarity(*pair, open_image_embedder(model).embed),
    }
    assert found["picture"] == pytest.approx({n: v[:, others].mean() for n, v in wanted.items()}, abs=0.006)
    assert (found["samples"], found["orbits"]) == (COUNT, str(folder / "orbits"))
    for name in ("model", "autoencoder"):
        assert list(found[name]) == list(wanted) and np.isfinite(list(found[name].values())).all()
        assert found[name]["lpips"] > 0 and found[name]["clip_s"] < 1


def test_what_was_not_asked_for_is_not_measured(folder, monkeypatch, capsys):
    found = printed(
        monkeypatch, capsys, folder / "svd_mv.safetensors", "--orbits", folder / "orbits", "--samples", 2
    )
    assert found["samples"] == 2 and list(found["model"]) == ["psnr", "ssim"]


def test_other_models_and_data_are_refused(folder, tmp_path):
    for task in ("known_frames", "text_to_video"):
        with pytest.raises(UserError, match=rf"{task}\.safetensors: is no model of views but of {task}"):
            multi_view.measure(CHECKPOINTS[task])
    model = folder / "svd_mv.safetensors"
    write_sprites(dataclasses.replace(WORLD, frames=4), tmp_path / "longer", seed=0, count=1)
    with pytest.raises(UserError, match="has 4 views, the model makes 3"):
        multi_view.measure(model, orbits=tmp_path / "longer")
    write_sprites(dataclasses.replace(WORLD, orbit_share=0.0), tmp_path / "sprites", seed=0, count=1)
    with pytest.raises(UserError, match="is no orbit: its annotations lack azimuths or elevation"):
        multi_view.measure(model, orbits=tmp_path / "sprites")
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        multi_view.measure(model, orbits=tmp_path)
    with pytest.raises(UserError, match="--samples 0: must be at least 1"):
        multi_view.Options(samples=0)
