"""How pages show pictures: in full, blurred or not at all; training pictures of published models never."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from memlib.base.errors import InputError
from memlib.companion.book import explorer
from memlib.experiment import picture_policy as care
from memlib.results import figures as plots

SIDE = 512
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
# What draws a picture past memlib.experiment.picture_policy: matplotlib's, Pillow's and IPython's ways, and HTML made by hand.
DRAWING = {"imshow", "figimage", "matshow", "pcolormesh", "imsave", "OffsetImage", "BboxImage", "fromarray", "b64encode", "display_png", "display_jpeg",
           "display_html", "display_svg", "Image", "HTML", "SVG", "Video"}  # fmt: skip
# The functions of memlib that show pictures; what each does to them is tested below.
CAREFUL = {"montage", "contact_sheet", "attention_maps", "switch_figure"}
# Modules that draw arrays: pictures through care.shown, and a heat map.
DRAWING_MODULES = {f"results/figures/{name}.py" for name in ("pictures", "distributions", "interactive")}


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
    assert care.choose("auto", True) == "full" and care.shown(picture) is picture and care.training_allowed()
    assert care.choose("auto", False) == "blurred" and not care.training_allowed()
    small = care.shown(picture)
    assert max(small.shape) <= care.THUMBNAIL
    # Neighbouring pixels are nearly alike, although those of the picture are not; the four fields are still there.
    assert np.abs(np.diff(small.astype(int), axis=1)).mean() < 5 < np.abs(np.diff(picture.astype(int), axis=1)).mean()
    quarter = care.THUMBNAIL // 4
    fields = [small[y * quarter, x * quarter, 0] for y in (1, 3) for x in (1, 3)]
    assert np.allclose(fields, [40, 200, 220, 90], atol=30)


def test_none_says_nothing_about_the_picture(picture):
    care.choose("none", False)
    assert len(np.unique(care.shown(picture))) == 1


def test_the_strictest_choice_stays_and_others_are_refused(monkeypatch):
    care.choose("none", False)
    assert care.choose("full", True) == "none" and not care.training_allowed()
    care.reset()
    monkeypatch.setenv("MEMLIB_PICTURES", "full")
    assert care.choose("auto", False) == "full" and not care.training_allowed()
    care.reset()
    assert care.choose("blurred", False) == "blurred"
    monkeypatch.setenv("MEMLIB_PICTURES", "sharp")
    with pytest.raises(InputError, match="use one of auto, full, blurred, none"):
        care.choose("auto", False)


def test_montages_blur_pictures_and_leave_training_rows_out(picture):
    rows = {"original": picture[None], "training picture": 255 - picture[None]}
    assert len(drawn(plots.montage(rows))) == 2
    care.choose("full", False)
    (only,) = drawn(plots.montage(rows))
    assert np.array_equal(only, picture)
    care.choose("blurred", False)
    (only,) = drawn(plots.montage(rows))
    assert np.array_equal(only, care.shown(picture))
    (sheet,) = drawn(plots.contact_sheet(np.stack([picture, picture])))
    assert sheet.shape[0] < SIDE // 2


def test_attention_maps_are_not_blurred_with_the_pictures(picture):
    maps = np.random.default_rng(1).random((1, 16, 16, 2))
    plain = drawn(plots.attention_maps(maps, picture[None], ["a"], ["x", "y"]))
    care.choose("blurred", False)
    careful = drawn(plots.attention_maps(maps, picture[None], ["a"], ["x", "y"]))
    assert all(np.array_equal(a, b) for a, b in zip(plain[1:], careful[1:], strict=True)) and not np.array_equal(plain[0].shape, careful[0].shape)


def test_the_interactive_figure_holds_no_training_picture(picture):
    from memlib.results.figures.interactive import Story, switch_figure

    story = Story("a prompt", "memorized", 0, [0, 1], np.stack([picture, picture]), np.array([0.9, 0.1]), np.ones(1), np.ones(1), -1, training=picture)
    full = switch_figure([story])
    care.choose("blurred", False)
    careful = switch_figure([story])
    assert '"training":null' in careful and '"training":null' not in full and len(careful) < len(full) / 2


def test_a_training_picture_is_known_by_its_pixels_whatever_it_is_called(picture):
    training = care.withhold(np.stack([picture, 255 - picture]))
    assert np.array_equal(care.shown(training[0]), picture)  # MiniSD's own
    strips = {"own prompt": np.stack([training[1], picture[:, ::-1]])}
    for choice in ("full", "blurred"):
        care.reset()
        care.withhold(training)
        care.choose(choice, False)
        grey, other = drawn(plots.montage(strips, ["training", "trigger 1"]))
        assert len(np.unique(grey)) == 1 and grey.shape == other.shape and len(np.unique(other)) > 10
        (sheet,) = drawn(plots.contact_sheet(np.stack([training[0], picture[:, ::-1]]), 2))
        half = sheet.shape[1] // 2
        assert len(np.unique(sheet[:, : half - 4])) <= 2 < len(np.unique(sheet[:, half:]))


def test_training_pictures_from_files_are_withheld_as_they_are_read(tmp_path, sd1_tiny, picture, monkeypatch):
    from memlib.experiment.run import Experiment

    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "prompts.csv").write_text(f"prompt,training_picture\na cat,{tmp_path / 'a.png'}\n")
    group = Experiment(str(sd1_tiny), steps=2, device="cpu", dtype="float32", store=tmp_path / "store").group(str(tmp_path / "prompts.csv"))
    assert np.array_equal(group.training[0][0], picture) and care.is_withheld(group.training[0][0])


def drawn_past_care(source: str) -> list[str]:
    """Names in a notebook's code by which pictures could reach its page unblurred."""
    tree, found = ast.parse(source), []
    allowed = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_careful_html(node)}
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if name in DRAWING and id(node) not in allowed:
            found.append(f"{name} in line {node.lineno}")
        if isinstance(node, ast.Attribute) and name in {"choose", "reset", "_state", "_training"} and getattr(node.value, "id", "") == "care":
            found.append(f"care.{name} in line {node.lineno}")
        if isinstance(node, ast.keyword) and node.arg == "pictures" and isinstance(node.value, ast.Constant) and node.value.value == "full":
            found.append(f"pictures={node.value.value!r} in line {node.value.lineno}")
    return found


def _is_careful_html(call: ast.Call) -> bool:
    inner = call.args[0] if len(call.args) == 1 else None
    return getattr(call.func, "id", "") == "HTML" and isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "switch_figure"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_pictures_through_care_alone(notebook):
    assert drawn_past_care(notebook.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "axis.imshow(known.pictures()[0, 0])",
        "from IPython import display\ndisplay.Image(data)",
        "display(Image.fromarray(picture))",
        "HTML(f'<img src={uri}>')",
        "HTML(switch_figure(stories) + extra)",
        "care.choose('full', True)",
        "Experiment(substrate, pictures='full')",
    ],
)
def test_pictures_past_care_are_noticed(source):
    assert drawn_past_care(source)
    assert drawn_past_care("HTML(switch_figure(stories, threshold))\nplots.montage(rows)\nplt.subplots()") == []


def test_no_other_module_draws_pictures():
    found = set()
    for path in (ROOT / "memlib").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Attribute) and call.attr in {"imshow", "figimage", "matshow", "OffsetImage", "b64encode"} for call in calls):
            found.add(path.relative_to(ROOT / "memlib").as_posix())
    # Scores are packed with b64encode in the store and not shown; pictures of an executed page are written smaller, not drawn; the explorer is for
    # substrates alone whose pictures are free; a report sends each through care.shown.
    assert found - {"base/store/entries.py", "companion/book/pictures.py", "companion/book/explorer.py", "companion/report/page.py"} <= DRAWING_MODULES
    takers = {name for name in plots.__all__ if callable(plot := getattr(plots, name)) and "pictures" in inspect.signature(plot).parameters}
    assert takers and takers <= CAREFUL, "a new figure of pictures: send them through care.shown and test it here"


def test_the_explorer_is_refused_where_pictures_are_not_free(sd1_tiny, tmp_path):
    with pytest.raises(InputError, match="not free to show"):
        explorer.write(tmp_path, str(sd1_tiny))
    assert not list(tmp_path.iterdir())
