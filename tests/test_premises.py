"""Premises: the file's schema, when a figure is met, and figures of hand-made cases."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from memlib.base.errors import InputError, NotMeasured
from memlib.companion.commands import main
from memlib.judging.estimates import Estimate
from memlib.models.minisd.scenes import Background, Scene, Thing, paint_background
from memlib.models.minisd2.data import World, world_of, write_world
from memlib.models.minisd2.drawn import concept_ranks, nearest_grounds, nearest_things
from memlib.models.minisd2.paths import read_yaml
from memlib.models.minisd2.scenes import concepts
from memlib.probes import premise_figures
from memlib.probes.premises import Figure, figures, measure


def test_every_figure_has_words_a_bar_and_something_that_measures_it():
    known = figures()
    assert set(known) == set(premise_figures.FIGURES)
    assert all(figure.says and (figure.at_least is not None or figure.at_most is not None) for figure in known.values())
    # The text encoder's bars are not negotiable.
    assert known["caption-first"].at_least == 0.50
    assert (known["title-distance"].at_least, known["title-distance"].at_most) == (0.8, 1.25)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"psnr": {"says": "x"}}, "bar"),
        ({"psnr": {"at_least": 1}}, "says"),
        ({"psnr": {"says": "x", "least": 1}}, "least"),
        ({"beauty": {"says": "x", "at_least": 1}}, "nothing measures"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_what_is_wrong(tmp_path, change, words):
    path = tmp_path / "premises.yml"
    path.write_text(yaml.safe_dump({"one": {"says": "y", "figures": change}}))
    with pytest.raises(InputError, match=words):
        figures(path)


def test_a_bar_is_met_by_whole_intervals_and_missed_by_whole_intervals():
    floor, band = Figure("a", "p", "", at_least=0.5), Figure("b", "p", "", at_least=0.8, at_most=1.25)
    assert floor.state(Estimate(0.6, 0.52, 0.7, 10, 1)) == "met"
    assert floor.state(Estimate(0.52, 0.45, 0.6, 10, 1)) == "open"
    assert floor.state(Estimate(0.4, 0.3, 0.49, 10, 1)) == "missed"
    assert band.state(Estimate(1.0, 0.9, 1.2, 10, 1)) == "met" and band.state(Estimate(1.3, 1.26, 1.4, 10, 1)) == "missed"
    assert floor.state(Estimate(60, float("nan"), float("nan"), 10, 1)) == "met"


def test_a_substrate_without_a_world_says_what_is_missing():
    substrate = SimpleNamespace(name="sd14", device="cpu", data=SimpleNamespace(held_out=None))
    case = premise_figures.Case(substrate, store=object())
    findings = measure(case, ["one-thing-first", "psnr"])
    assert [finding.state for finding in findings] == ["not measured"] * 2
    assert "sd14" in findings[0].reason
    with pytest.raises(InputError, match="beauty"):
        measure(case, ["beauty"])
    with pytest.raises(NotMeasured):
        _ = case.world


def test_a_model_brings_the_world_that_it_was_trained_on(tmp_path):
    assert world_of(tmp_path / "elsewhere") is None
    write_world(tmp_path, read_yaml("training")["corpus"] | {"duplicates": False})
    assert isinstance(world_of(tmp_path), World)
    assert world_of(tmp_path).corpus.share_of_duplicates < 0.01


def _pixels(pictures):
    """A stand-in for a descriptor: the pixels, centred, as unit vectors."""
    flat = np.asarray(pictures).reshape(*np.shape(pictures)[:-3], -1).astype(float)
    flat = flat - flat.mean(-1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


def test_the_concept_that_was_drawn_is_found_first_and_another_is_not():
    world = World()
    names = {concept.name: index for index, concept in concepts().items()}
    scene = Scene(
        (Thing(names["lemon"], "left", 16, 32, 32), Thing(names["rocket"], "right", 46, 30, 28)), Background("plain", "white"), "twemoji", "side by side"
    )
    picture = world.pictures([scene])
    assert concept_ranks(_pixels, world.corpus.painter, picture, scene, 1)[0] == 0
    other = Scene((scene.things[0], Thing(names["anchor"], "right", 46, 30, 28)), scene.background, "twemoji", "side by side")
    assert concept_ranks(_pixels, world.corpus.painter, picture, other, 1)[0] > 5


def test_backgrounds_are_recognized_and_noise_is_none():
    grounds = [Background("plain", "teal"), Background("stripes", "red", "white"), Background("gradient", "blue", "yellow")]
    found, shares = nearest_grounds(np.stack([paint_background(ground) for ground in grounds]))
    assert found == grounds and (shares == 1).all()
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    assert nearest_grounds(noise)[1][0] < 0.5


def test_a_real_thing_is_nearer_with_its_own_concept_than_without():
    world = World()
    held = world.held_out(3, several=False, seed=2)
    pictures = world.pictures([scene for scene, _ in held])
    own = nearest_things(_pixels, world.corpus.painter, pictures)
    others = nearest_things(_pixels, world.corpus.painter, pictures, [{scene.main.concept} for scene, _ in held])
    assert (own >= others).all() and own.mean() > others.mean() + 0.02


def test_distances_are_means_over_all_others():
    states = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert premise_figures._distances(states) == pytest.approx([6.5, 5.0, 6.5])


def test_the_command_prints_a_line_for_every_figure(monkeypatch, capsys):
    bare = SimpleNamespace(name="x", device="cpu", data=SimpleNamespace(held_out=None))
    monkeypatch.setattr("memlib.models.substrate.load", lambda *given: bare)
    monkeypatch.setattr(premise_figures, "PictureStore", lambda: object())
    assert main(["premises", "x", "--figure", "psnr", "--figure", "background"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
