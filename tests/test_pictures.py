"""Pictures of every mode that a file can have come out as they look."""

import numpy as np
import pytest
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.pictures import as_rgb, read_picture, read_pictures


def saved(image, path, **options):
    image.save(path, **options)
    return read_picture(path)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = 200, 100, 50, 255
    pixels[0, 1] = 0, 0, 0, 128
    found = saved(Image.fromarray(pixels), tmp_path / "rgba.png")
    assert found.dtype == np.uint8 and found.shape == (2, 3, 3)
    assert found[0, 0].tolist() == [200, 100, 50] and found[1].tolist() == [[255] * 3] * 3
    np.testing.assert_allclose(found[0, 1], 127, atol=1)
    grey = Image.fromarray(np.array([[[0, 0], [80, 255]]], np.uint8), "LA")
    assert saved(grey, tmp_path / "la.png").tolist() == [[[255] * 3, [80] * 3]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white_in_every_mode_that_can_have_one(tmp_path, mode):
    image = Image.fromarray(np.array([[0, 255]], np.uint8), "L").convert(mode)
    transparent = {"RGB": (0, 0, 0)}.get(mode, 0)
    if mode == "P":
        transparent = image.getpixel((0, 0))
    found = saved(image, tmp_path / "t.png", transparency=transparent)
    assert found.tolist() == [[[255] * 3, [255] * 3]]


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    assert saved(Image.fromarray(values), tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]
    assert saved(Image.fromarray(values), tmp_path / "deep.tif")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_other_modes_keep_their_colours(tmp_path):
    red = Image.new("RGB", (8, 8), (220, 30, 40))
    for mode, suffix in (("CMYK", ".tif"), ("YCbCr", ".tif"), ("P", ".gif"), ("RGB", ".webp"), ("CMYK", ".jpg")):
        image = red.quantize(8) if mode == "P" else red.convert(mode)
        np.testing.assert_allclose(saved(image, tmp_path / f"{mode}{suffix}")[4, 4], (220, 30, 40), atol=12)
    half = Image.new("RGB", (4, 2), "white")
    half.paste((0, 0, 0), (0, 0, 2, 2))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    found = saved(half, tmp_path / "turned.png", exif=turned)
    assert found.shape == (4, 2, 3) and found[0].max() == 0 and found[3].min() == 255


@pytest.mark.parametrize("mode", ["I", "F"])
def test_what_has_no_known_range_or_conversion_is_refused(tmp_path, mode):
    path = tmp_path / "odd.tif"
    Image.new(mode, (2, 2)).save(path)
    with pytest.raises(InputError, match=r"cannot be read .*replace it or leave it out"):
        read_picture(path)
    with pytest.raises(ValueError):
        as_rgb(Image.new(mode, (2, 2)))


def test_a_file_is_known_by_its_content_and_an_absent_one_is_named(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "picture", format="GIF")
    assert read_pictures([tmp_path / "picture"], side=4).shape == (1, 4, 4, 3)
    with pytest.raises(InputError, match="no picture at .*other.png"):
        read_pictures([tmp_path / "picture", tmp_path / "other.png"])
