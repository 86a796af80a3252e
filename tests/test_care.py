"""How pages show pictures: in full, blurred or not at all; training pictures of published models never."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from memlib import care, plots
from memlib.errors import InputError

SIDE = 512


@pytest.fixture
def picture():
    """Noise with large fields of colour: what is fine must go, what is large must stay."""
    draw = np.random.default_rng(0)
    fine = draw.integers(-60, 60, (SIDE, SIDE, 1))
    large = np.kron(np.array([[40, 200], [220, 90]])[..., None], np.ones((SIDE // 2, SIDE // 2, 1)))
    return np.clip(np.broadcast_to(large + fine, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def drawn(figure):
    images = [image.get_array() for axis in figure.axes for image in axis.images]
    plt.close(figure)
    return [np.asarray(image) for image in images]


def test_minisd_is_shown_in_full_and_others_blurred(picture):
    assert care.choose("auto", "minisd") == "full" and care.shown(picture) is picture and care.training_allowed()
    assert care.choose("auto", "sd") == "blurred" and not care.training_allowed()
    small = care.shown(picture)
    assert max(small.shape) <= care.THUMBNAIL
    # Neighbouring pixels are nearly alike, although those of the picture are not; the four fields are still there.
    assert np.abs(np.diff(small.astype(int), axis=1)).mean() < 5 < np.abs(np.diff(picture.astype(int), axis=1)).mean()
    quarter = care.THUMBNAIL // 4
    fields = [small[y * quarter, x * quarter, 0] for y in (1, 3) for x in (1, 3)]
    assert np.allclose(fields, [40, 200, 220, 90], atol=30)


def test_none_says_nothing_about_the_picture(picture):
    care.choose("none", "sd")
    assert len(np.unique(care.shown(picture))) == 1


def test_the_strictest_choice_stays_and_others_are_refused(monkeypatch):
    care.choose("none", "sd")
    assert care.choose("full", "minisd") == "none" and not care.training_allowed()
    care.reset()
    monkeypatch.setenv("MEMLIB_PICTURES", "full")
    assert care.choose("auto", "sd") == "full" and not care.training_allowed()
    care.reset()
    assert care.choose("blurred", "sd") == "blurred"
    monkeypatch.setenv("MEMLIB_PICTURES", "sharp")
    with pytest.raises(InputError, match="use one of auto, full, blurred, none"):
        care.choose("auto", "sd")


def test_montages_blur_pictures_and_leave_training_rows_out(picture):
    rows = {"original": picture[None], "training picture": 255 - picture[None]}
    assert len(drawn(plots.montage(rows))) == 2
    care.choose("full", "sd")
    (only,) = drawn(plots.montage(rows))
    assert np.array_equal(only, picture)
    care.choose("blurred", "sd")
    (only,) = drawn(plots.montage(rows))
    assert np.array_equal(only, care.shown(picture))
    (sheet,) = drawn(plots.contact_sheet(np.stack([picture, picture])))
    assert sheet.shape[0] < SIDE // 2


def test_attention_maps_are_not_blurred_with_the_pictures(picture):
    maps = np.random.default_rng(1).random((1, 16, 16, 2))
    plain = drawn(plots.attention_maps(maps, picture[None], ["a"], ["x", "y"]))
    care.choose("blurred", "sd")
    careful = drawn(plots.attention_maps(maps, picture[None], ["a"], ["x", "y"]))
    assert all(np.array_equal(a, b) for a, b in zip(plain[1:], careful[1:], strict=True)) and not np.array_equal(plain[0].shape, careful[0].shape)


def test_the_interactive_figure_holds_no_training_picture(picture):
    from memlib.interactive import Story, switch_figure

    story = Story("a prompt", "memorized", 0, [0, 1], np.stack([picture, picture]), np.array([0.9, 0.1]), np.ones(1), np.ones(1), -1, training=picture)
    full = switch_figure([story])
    care.choose("blurred", "sd")
    careful = switch_figure([story])
    assert '"training":null' in careful and '"training":null' not in full and len(careful) < len(full) / 2
