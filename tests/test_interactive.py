"""The interactive figure: what it holds, that prompts stay text, and that it works by keyboard in headless Chromium."""

from __future__ import annotations

import json

import numpy as np
import pytest
from browser import look_at, opened, window
from bs4 import BeautifulSoup

from memlib.base.errors import InputError
from memlib.results.figures.interactive import Story, switch_figure

NASTY = "</script><script>document.title = 'taken over'</script> \"A\" & 'B' <b>"
SWITCHES = [0, 4, 8, 12, 20]


def story(prompt="A <Title>", group="memorized", seed=0, size=32, **changes) -> Story:
    """Plain pictures whose grey rises with the switch-on step."""
    pictures = np.stack([np.full((size, size, 3), 40 * i + 10 * seed, np.uint8) for i in range(len(SWITCHES))])
    similarity = np.linspace(0.95, 0.1, len(SWITCHES))
    fields = {"similarity": similarity, "trace": np.linspace(9, 1, 20) + seed, "times": np.linspace(951, 1, 20), "predicted": 10}
    return Story(prompt, group, seed, SWITCHES, pictures, **{**fields, **changes})


def page(fragment: str) -> str:
    return f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>x</title></head><body><h1>x</h1>{fragment}</body></html>"


def test_the_fragment_is_self_contained_and_labelled():
    soup = BeautifulSoup(switch_figure([story(), story(seed=1)], 0.7), "html.parser")
    assert {tag["src"].partition(",")[0] for tag in soup.find_all("img")} == {"data:image/webp;base64"}
    assert not soup.find_all("link") and not [tag for tag in soup.find_all("script") if tag.get("src")]
    assert all(tag.get("alt") for tag in soup.find_all("img"))
    for control in soup.find_all(["select", "input"]):
        assert soup.find("label", attrs={"for": control["id"]}).get_text()
    data = json.loads(soup.select_one("script.data").get_text())
    (shown,) = data["prompts"]
    assert [s["seed"] for s in shown["stories"]] == [0, 1] and shown["stories"][0]["predicted"] == 10
    assert shown["stories"][0]["similarity"][0] == 0.95 and data["threshold"] == 0.7
    assert soup.find("noscript").find("img")["src"].startswith("data:image/webp")


def test_prompts_are_text_wherever_they_stand():
    soup = BeautifulSoup(switch_figure([story(NASTY)]), "html.parser")
    assert len(soup.find_all("script")) == 2 and not soup.find_all("b")
    assert soup.select_one("select.prompt option").get_text() == f"{NASTY} (memorized)"
    assert json.loads(soup.select_one("script.data").get_text())["prompts"][0]["prompt"] == NASTY


def test_large_pictures_are_shrunk_to_the_limit_and_too_many_refused():
    draw = np.random.default_rng(0)
    large = story(size=256)
    noisy = Story(**{**large.__dict__, "pictures": draw.integers(0, 256, large.pictures.shape, np.uint8)})
    assert len(switch_figure([noisy], limit=60_000)) <= 60_000
    with pytest.raises(InputError, match="show fewer prompts, seeds or steps"):
        switch_figure([noisy], limit=5_000)


@pytest.mark.parametrize(
    "stories, words",
    [
        ([], "nothing to show"),
        ([story(), story("other", seed=1)], "same seeds"),
        ([story(similarity=np.zeros(3))], "give one for each"),
    ],
)
def test_what_does_not_fit_is_refused(stories, words):
    with pytest.raises(InputError, match=words):
        switch_figure(stories)


# in the browser


STATE = """() => { const q = (s) => document.querySelector('.memlib-switch ' + s); return q('.picture').decode().then(() => ({
  picture: q('.picture').src, width: q('.picture').naturalWidth, alt: q('.picture').alt, said: q('.said').textContent,
  x: Number(q('.on-trace').getAttribute('cx')), y: Number(q('.on-trace').getAttribute('cy')), copy: Number(q('.on-copy').getAttribute('cy')),
  value: q('.step').getAttribute('aria-valuetext'), step: document.querySelector('.memlib-switch').dataset.step,
  predicted: !!q('.predicted'), training: !q('.from-training').hidden, focus: document.activeElement.className})); }"""


@pytest.mark.browser
def test_an_arrow_key_changes_the_picture_and_moves_the_markers(tmp_path):
    path = tmp_path / "figure.html"
    first = [story(training=np.zeros((32, 32, 3), np.uint8)), story(seed=1)]
    other = [story("Another", "not memorized", predicted=-1, similarity=None), story("Another", "not memorized", 1)]
    path.write_text(page(switch_figure([*first, *other], 0.7)))

    with window(width=1000) as tab:
        look = opened(tab, path)
        first = tab.evaluate(STATE)
        tab.focus(".memlib-switch .step")
        tab.keyboard.press("ArrowRight")
        second = tab.evaluate(STATE)
        tab.keyboard.press("End")
        last = tab.evaluate(STATE)
        tab.select_option(".prompt", "1")
        changed = tab.evaluate(STATE)
    assert not look.errors and not look.outside
    assert (first["step"], second["step"], last["step"]) == ("0", "4", "20")
    assert first["width"] == second["width"] == 32 and first["picture"] != second["picture"] != last["picture"]
    assert first["x"] < second["x"] < last["x"] and first["y"] < second["y"] and first["copy"] < second["copy"] < last["copy"]
    assert second["focus"] == "step" and "step 4 of 20" in second["alt"] and "0.74: a copy" in second["said"]
    assert "never" in last["alt"] and "not a copy" in last["said"] and last["value"] == last["said"]
    assert first["predicted"] and first["training"]
    assert not changed["predicted"] and not changed["training"] and "no transition" in changed["said"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_is_quiet_in_light_and_dark(tmp_path, width):
    path = tmp_path / "figure.html"
    path.write_text(page(switch_figure([story(NASTY + "long " * 40), story(NASTY + "long " * 40, seed=1)], 0.7)))
    for scheme in ("light", "dark"):
        (look,) = look_at([path], scheme, width)
        assert look.complaints() == [] and "taken over" not in look.title
