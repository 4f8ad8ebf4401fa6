"""Multi-view on the command line: objects cut out and centred, poses, and the picture as SV3D's last view."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdjax.cli import main
from svdjax.conversion.native import save_native
from svdjax.errors import UserError
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.sampling.images import read_image, read_object, to_uint8
from svdjax.sampling.inputs.views import read
from svdjax.sampling.options import Sample
from tests.weights import random_model

TINY = SVDConfig(
    unet=UNetConfig(
        channels=(32,),
        num_res_blocks=1,
        attention=(False,),
        head_dim=32,
        context_dim=8,
        vector_dim=20,
        norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4, temporal_decoder=False),
    image_encoder=CLIPVisionConfig(
        width=16, layers=1, heads=1, mlp_dim=16, patch_size=16, image_size=32, projection_dim=8
    ),
    task="multi_view",
    scalars=(("noise_aug", 4), ("polar", 8), ("azimuth", 8)),
    defaults=SamplingDefaults(
        frames=3, height=16, width=16, steps=1, guidance=(1.0, 2.5), guidance_shape="triangle", noise_aug=1e-5
    ),
)


@pytest.fixture
def cutout(tmp_path):
    """A red block of 20 x 10 pixels, off the middle of a transparent picture."""
    pixels = np.zeros((50, 60, 4), np.uint8)
    pixels[..., :3] = 77  # what hides under transparency
    pixels[5:15, 30:50] = (255, 0, 0, 255)
    path = tmp_path / "block.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_cut_out_object_is_centred_on_white_and_fills_its_share(cutout):
    """Width decides in a square: half of 80 columns, so a quarter of 80 rows."""
    image = to_uint8(read_object(cutout, 80, 80, ratio=0.5))
    red = image[..., 1] < 128
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (30, 49, 20, 59)
    assert (image[~red][:, 0] > 250).all() and image[0, 0].tolist() == [255, 255, 255]
    assert image[40, 40].tolist() == [255, 0, 0]


def test_in_a_low_frame_the_height_decides(cutout):
    image = to_uint8(read_object(cutout, 20, 100, ratio=0.5))
    red = image[..., 1] < 128
    assert (red.any(1).sum(), red.any(0).sum()) == (10, 20)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pictures_in_which_nothing_is_transparent_are_taken_as_they_are(tmp_path, mode):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    np.testing.assert_array_equal(read_object(path, 16, 16), read_image(path, 16, 16))


def test_a_wholly_transparent_picture_is_refused(tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="all of it is transparent"):
        read_object(tmp_path / "nothing.png", 16, 16)


def test_one_elevation_is_of_all_views_and_several_of_one_each(cutout):
    given = read(Sample(photos=(cutout, cutout), elevation=(20.0,)), TINY.defaults)
    np.testing.assert_array_equal(given.inputs["elevation"], [20, 20])
    assert "azimuths" not in given.inputs and given.notes[0] == {"photo": "block.png", "elevation": "20"}
    args = Sample(photos=(cutout, cutout), elevation=(0.0, 10.0, 20.0), azimuths=(90.0, 180.0, 360.0))
    given = read(args, TINY.defaults)
    np.testing.assert_array_equal(given.inputs["elevation"], [[0, 10, 20]] * 2)
    np.testing.assert_array_equal(given.inputs["azimuths"], [[90, 180, 360]] * 2)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"elevation": (91.0,)}, "--elevation 91: must be from -90"),
        ({"azimuths": (float("nan"),)}, "--azimuths nan: must be degrees"),
        ({"image_frame_ratio": 0.0}, "--image-frame-ratio 0.0: must be above 0"),
    ],
)
def test_mistakes_are_named(cutout, given, says):
    with pytest.raises(UserError, match=says):
        read(dataclasses.replace(Sample(photos=(cutout,)), **given), TINY.defaults)


def test_the_command_ends_an_orbit_of_sv3d_with_the_picture(cutout, tmp_path, capsys):
    checkpoint = tmp_path / "sv3d_p.safetensors"
    save_native(random_model(SVD, TINY), checkpoint)
    argv = ["sample", "--task", "multi_view", cutout, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as done:
        main([str(arg) for arg in [*argv, "--elevation", 10, "--format", "png"]])
    assert done.value.code == 0
    folder = Path(capsys.readouterr().out.split()[-1])
    views = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    picture = to_uint8(read_object(cutout, 16, 16))
    np.testing.assert_array_equal(views[2], picture)
    assert len(views) == 3 and all(np.abs(view.astype(int) - picture).max() > 20 for view in views[:2])
