"""What texts a figure takes: prompts hold dollars, and what stands between two is no formula."""

import io

import numpy as np
import pytest

from memlib.judging.estimates import Estimate
from memlib.results import figures

PROMPT = r"a $\undefinedmacro{ $5 and $10 sale"
E1 = Estimate(0.5, 0.4, 0.6, 10, 2)
PICTURES = np.zeros((2, 8, 8, 3), np.uint8)


def test_a_logarithmic_axis_has_numbers_and_no_formulas():
    figure = figures.bands({"a": {"b": {0: E1, 1: Estimate(0.05, 0.04, 0.06, 10, 2), 2: Estimate(50, 40, 60, 10, 2)}}}, "x", "y", yscale="log")
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0.1", "1", "10"} <= set(labels) and not any("$" in label for label in labels)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.montage({PROMPT: PICTURES}, [PROMPT, "b"], PROMPT),
        lambda: figures.contact_sheet(PICTURES, 2, PROMPT),
        lambda: figures.attention_maps(np.random.default_rng(0).random((2, 3, 4, 4)), PICTURES, [PROMPT, "b"], ["x", PROMPT, "z"], PROMPT),
        lambda: figures.marked_traces({PROMPT: [(PROMPT, np.arange(5.0), 2)]}, PROMPT),
        lambda: figures.ecdf({PROMPT: np.arange(9)}, PROMPT, 4, PROMPT),
        lambda: figures.dose_response({PROMPT: {1: E1, 2: E1, 4: E1}}, PROMPT, PROMPT),
        lambda: figures.bands({PROMPT: {PROMPT: {0: E1, 1: E1}}}, PROMPT, PROMPT),
        lambda: figures.roc_curves({PROMPT: {PROMPT: (np.array([0, 1.0]), np.array([0, 1.0]))}}),
        lambda: figures.forest({PROMPT: {PROMPT: E1, "b": E1}}, PROMPT),
        lambda: figures.grouped_bars({PROMPT: {PROMPT: E1, "b": E1}}, PROMPT),
    ],
)
def test_a_prompt_with_dollars_is_drawn_as_it_is(draw):
    figure = draw()
    figure.savefig(io.BytesIO(), format="svg")  # a formula that cannot be read stops here
    found = [text for text in figure.findobj(lambda part: hasattr(part, "get_parse_math")) if "$" in text.get_text()]
    assert found and not any(text.get_parse_math() for text in found)
    assert not any("\\$" in text.get_text() for text in found)


def test_differences_have_zero_in_the_middle_of_their_colours_and_amounts_do_not():
    signed = figures.heat_maps({"a": np.array([[-0.1, 0.4]])}, ["row"], "x", "bar").axes[0].images[0]
    assert signed.get_clim() == (-0.4, 0.4) and signed.get_cmap().name == "RdBu_r"
    amounts = figures.heat_maps({"a": np.array([[0.1, 0.4]])}, ["row"], "x", "bar").axes[0].images[0]
    assert amounts.get_clim() == (0.1, 0.4) and amounts.get_cmap().name == "viridis"


def test_a_line_without_steps_says_so_and_keeps_its_place():
    axis = figures.step_dots({"one": {"a": np.array([[-1, -1]])}, "two": {"a": np.array([[3, 4]])}}, 10, "step", "nothing here").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
    assert [(text.get_text(), text.get_position()[1]) for text in axis.texts] == [("nothing here", 0)]


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("label", ["a", "a long label of a row of pictures"])
def test_no_two_pictures_of_a_sheet_overlap(label, count):
    figure = figures.montage({label: np.zeros((count, 8, 8, 3), np.uint8), "b": np.zeros((count, 8, 8, 3), np.uint8)}, [PROMPT] * count)
    figure.canvas.draw()
    places = [axis.get_position() for axis in figure.axes]
    height = figure.get_figheight() / figure.get_figwidth()
    for i, one in enumerate(places):
        assert one.width == pytest.approx(one.height * height, rel=0.02)  # whole: as wide as high
        assert not any(one.x0 < two.x1 - 1e-6 and two.x0 < one.x1 - 1e-6 and one.y0 < two.y1 - 1e-6 and two.y0 < one.y1 - 1e-6 for two in places[i + 1 :])
