"""Reading photos: orientation, transparency, bit depth, fitting, and files that are no pictures."""

import numpy as np
import pytest
from PIL import Image

from svdjax.errors import UserError
from svdjax.sampling.images import from_uint8, read_image, to_uint8


def corner_picture(size=(40, 20)):
    """Black, with a red block in the top left corner."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = (255, 0, 0)
    return Image.fromarray(pixels)


def test_exif_rotation_is_undone(tmp_path):
    # Orientation 6: the camera was turned, so the stored picture must be rotated clockwise to stand upright.
    stored = corner_picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    image = read_image(tmp_path / "turned.jpg", 40, 20)
    red = image[..., 0] > 0.5
    assert red[:20, 10:].mean() > 0.9, "the block belongs in the top right corner"
    assert red[20:].mean() < 0.05


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = (0, 0, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    image = to_uint8(read_image(tmp_path / "alpha.png", 16, 16))
    assert image[12, 8].tolist() == [255, 255, 255]
    assert image[3, 8].tolist() == [0, 0, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png", 64, 64)
    np.testing.assert_allclose(image[..., 1], ramp / 65535 * 2 - 1, atol=0.01)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    corner_picture().convert(mode).save(tmp_path / "picture.tif")
    assert read_image(tmp_path / "picture.tif", 20, 40).shape == (20, 40, 3)


def test_crop_fills_and_letterbox_keeps_everything(tmp_path):
    Image.new("RGB", (80, 20), "white").save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 40, 40, "crop").min() == 1
    boxed = read_image(tmp_path / "wide.png", 40, 40, "letterbox")
    np.testing.assert_array_equal(boxed[:15], -1)
    np.testing.assert_array_equal(boxed[15:25], 1)
    np.testing.assert_array_equal(boxed[25:], -1)


def test_pixels_round_trip():
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(pixels)), pixels)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(UserError, match=r"photo\.png: not a picture"):
        read_image(tmp_path / "photo.png", 8, 8)


def test_a_truncated_photo_is_named(tmp_path):
    corner_picture((400, 300)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.jpg: not a picture"):
        read_image(tmp_path / "half.jpg", 8, 8)


def test_missing_photo_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such picture"):
        read_image(tmp_path / "none.png", 8, 8)
    with pytest.raises(UserError, match="not a picture"):
        read_image(tmp_path, 8, 8)
