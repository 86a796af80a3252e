"""The scenarios: what MiniSD's training sets hold, where their models are found, and the measures against closed forms."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.judging.estimates import Estimate
from memlib.mitigations import get
from memlib.mitigations.base import Mitigation
from memlib.models.minisd.prompt_sets import corpus, training_pictures
from memlib.models.minisd.scenarios import SCENARIOS, pairs, scenario_settings, substrate_name
from memlib.models.minisd.scenes import held_out_combination
from memlib.prompts.sets import load_prompts
from memlib.results.effects import effect_share, kind_of, loss_share, shares_of_effect, shortfall, spread, spread_difference, worst_of
from memlib.results.evidence import Evidence
from memlib.results.scenarios import (
    at_transition,
    distances,
    each,
    earlier_methods,
    own_methods,
    place,
    placed,
    scenario_group,
    strips,
    summary,
    transition_under,
)
from memlib.results.table import join, name_of, typed


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_held_out_stays_held_out(scenario):
    found, c = pairs(corpus(), scenario), corpus()
    assert len(found) == scenario_settings(scenario)["pictures"] and len({pair.scene for pair in found}) == len(found)
    assert not {pair.scene for pair in found} & {pair.scene for pair in c.repeated}
    for pair in found:
        ids = [thing.concept for thing in pair.scene.things]
        assert not any(c.ingredients.concepts[i].held_out for i in ids)
        assert not any(held_out_combination(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :])
        assert not held_out_combination(ids[0], pair.scene.background.first)
    captions = [pair.caption for pair in found]
    assert len(set(captions)) == (10 if scenario == "class" else len(found))
    assert not set(captions) & set(load_prompts("minisd-heldout").prompts)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_prompts_bring_their_training_pictures(scenario):
    prompts, found = load_prompts(substrate_name(scenario)), pairs(corpus(), scenario)
    row = len(prompts) - 1
    pictures = training_pictures(prompts.table["training_picture"][row])
    own = [corpus().picture(pair.scene) for pair in found if pair.caption == prompts.prompts[row]]
    assert len(own) == (6 if scenario == "class" else 1) and np.array_equal(pictures, np.stack(own))


def test_a_class_shows_its_concept():
    names = corpus().ingredients.concepts
    for pair in pairs(corpus(), "class"):
        assert pair.caption == f"An image of {names[pair.scene.main.concept].name}"


def test_models_are_found_by_name_or_folder(tmp_path, monkeypatch):
    assert place("pretrained", "sd14") == ("sd14", "memorized")
    assert "fine-tuned from sd14" in place("small", "sd14")
    with pytest.raises(InputError, match="has no prompts.csv"):
        place("small", "sd14", str(tmp_path))
    (tmp_path / "prompts.csv").write_text("prompt\nx\n")
    assert place("small", "sd14", str(tmp_path)) == (str(tmp_path), str(tmp_path / "prompts.csv"))
    with pytest.raises(InputError, match="Unknown scenario"):
        place("medium", "sd14")
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    assert "memlib minisd finetune small" in place("small", "minisd-v1")
    (tmp_path / "minisd" / "models" / "minisd-v1-small").mkdir(parents=True)
    assert place("small", "minisd-v1") == ("minisd-v1-small", "minisd-v1-small")


def test_spread_is_the_deviation_of_those_that_have_a_transition():
    steps = np.array([[10, 20], [-1, 30], [-1, -1]])
    found = spread(steps, 50)
    assert found.value == pytest.approx(np.std([10, 20, 30], ddof=1) / 50) and found.n_prompts == 2
    same = np.full((6, 2), 12)
    assert (spread(same, 50).value, spread(same, 50).high) == (0, 0)
    assert spread(np.array([[3, 4], [-1, -1]]), 50) is None and spread_difference(steps, np.full((1, 2), 3), 50) is None
    rng = np.random.default_rng(0)
    wide, narrow = rng.integers(0, 50, (40, 2)), rng.integers(20, 24, (40, 2))
    apart = spread_difference(wide, narrow, 50)
    assert apart.value == pytest.approx((np.std(wide, ddof=1) - np.std(narrow, ddof=1)) / 50) and apart.low > 0.15 and apart.high < 0.4
    assert spread_difference(narrow, wide, 50).high < 0


def test_effect_share_is_the_ratio_of_the_falls():
    rng = np.random.default_rng(1)
    none, fall = rng.uniform(0.7, 0.9, (30, 2)), rng.uniform(0.2, 0.4, (30, 2))
    found = effect_share(none, none - 0.5 * fall, none - fall)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert effect_share(none, none - fall, none + 0.1) is None
    noisy = effect_share(none, none - rng.uniform(0, 0.4, (30, 2)), none - fall)
    assert noisy.low < noisy.value < noisy.high < 1.2


class Stepped(Mitigation):
    name, label, summary, source = "stepped", "", "", "basin"
    params = {"step": None}

    def with_params(self, **params):
        return params


def test_a_static_point_is_the_median_of_the_dynamic_ones():
    steps = np.array([[4, 8], [-1, 20]])
    assert at_transition(Stepped(), steps) == {"step": 8}
    method = Stepped()
    assert at_transition(method, np.full((2, 2), -1)) is method


def measured(**similarity):
    """Rows of four prompts and two seeds by method (name, and its step after @), alignment being half of similarity, quality not measured; and the methods."""
    parts, methods = [], []
    for title, value in similarity.items():
        name, _, step = title.partition("@")
        methods.append(get(name, **({"step": int(step)} if step else {})))
        index = pd.MultiIndex.from_product([list("abcd"), [0, 1]], names=["prompt", "seed"]).to_frame(index=False)
        method, params = name_of(methods[-1])
        parts += [typed(index.assign(method=method, params=params, metric=metric, value=value * factor))
                  for metric, factor in (("similarity to training", 1), ("alignment with prompt", 0.5))]  # fmt: skip
    return join(parts), methods


def test_the_worst_of_the_texts_methods_is_judged():
    rows, methods = measured(**{"none": 0.8, "static-transition@20": 0.4, "static-transition-opposite@20": 0.6, "dynamic-transition": 0.79})
    own = own_methods("small", methods)
    assert [m.title for m in own] == ["static-transition (step 20)", "static-transition-opposite (step 20)"]
    found = Evidence({}, {"memorized": rows}, "")

    def change(method):
        return found.change("similarity to training", method, get("none"))

    def share(method):
        return found.share("alignment with prompt", method, get("none"))

    assert worst_of(own, change, largest=True).value == pytest.approx(-0.2) and worst_of(own, change).value == pytest.approx(-0.4)
    assert worst_of(own, share).value == pytest.approx(0.5)
    assert worst_of([*own, get("ren")], change) is None and worst_of([], change) is None


def test_a_loss_is_a_share_of_the_loss_under_something_severe():
    rows, methods = measured(none=0.8, ren=0.6, **{"pad-mask": 0.4, "pad-swap": 0.8})
    found = Evidence({}, {"memorized": rows}, "")
    loss = [loss_share(found, "alignment with prompt", m, get("pad-mask"), "memorized", get("none")) for m in methods]
    assert [round(estimate.value, 9) for estimate in loss] == [0, 0.5, 1, 0]
    assert loss_share(found, "alignment with prompt", get("ren"), get("pad-swap"), "memorized", get("none")) is None  # nothing is lost under pad-swap
    assert loss_share(found, "quality", get("ren"), get("pad-mask"), "memorized", get("none")) is None


def test_a_method_falls_short_where_it_leaves_most_beside_the_texts_own():
    rows, methods = measured(**{"none": 0.8, "static-transition@20": 0.4, "static-transition-opposite@20": 0.6, "ren": 0.5, "wen-3": 0.8})
    rows["value"] += np.where(rows["prompt"] == "a", 0.01, 0.0) * (rows["method"] == "wen-3")  # an interval needs some spread
    both = {"small": (rows, methods), "class": (rows[rows["method"] != "ren"], methods)}
    found = shortfall(both, "wen-3")
    assert found.value == pytest.approx(0.4025) and found.low < found.value < found.high == 1.0 and found.n_prompts == 4
    alone = shortfall({"class": both["class"]}, "wen-3")  # one comparison: nothing was chosen among
    wider = shortfall({"small": both["small"]}, "wen-3")
    assert alone.value == wider.value and wider.low < alone.low
    assert shortfall(both, "ren").value == pytest.approx(0.1) and shortfall({"class": both["class"]}, "ren") is None


def test_earlier_methods_are_compared_with_the_better_of_the_texts_own():
    rows, methods = measured(**{"none": 0.8, "static-transition@20": 0.4, "static-transition-opposite@20": 0.6, "ren": 0.5, "wen-3": 0.8})
    shares = shares_of_effect({"small": (rows, methods), "class": (rows[rows["method"] != "static-transition"], methods)})
    assert shares["ren"]["small"].value == pytest.approx(0.75) and shares["wen-3"]["small"].value == pytest.approx(0, abs=1e-12)
    assert shares["ren"]["class"] is None
    assert shares["random-token"] == {}


def test_static_transitions_are_placed_and_dynamic_ones_say_where_they_begin(tiny_group):
    group = tiny_group(2, 3)
    moved, guided = placed([get("none"), get("static-transition"), get("dynamic-transition")], group)
    assert [m.name for m in moved] == ["none", "static-transition", "dynamic-transition"]
    steps = transition_under(get("static-transition"), group)
    assert moved[1].params["step"] == (int(np.median(steps[steps >= 0])) if (steps >= 0).any() else get("static-transition").params["step"])
    assert list(guided) == ["dynamic-transition"] and guided["dynamic-transition"].shape == (2, 2)
    assert distances(group, moved) == {}
    shown = strips(group, moved, 1)
    assert list(shown) == [m.title for m in moved] and np.array_equal(shown["none"][0], group.pictures(get("none"))[0, 0])


@pytest.mark.parametrize("count", [1, 2])
def test_one_picture_alone_has_no_distance_to_real_ones(count):
    class Features:
        available = True

        def __call__(self, pictures):
            return pictures.reshape(*pictures.shape[:-3], -1).astype(float)

    class Metrics(SimpleNamespace):
        def __iter__(self):
            return iter(vars(self))

    draw = np.random.default_rng(0)
    data = SimpleNamespace(held_out=lambda n: draw.integers(0, 255, (4, 2, 2, 3)))
    experiment = SimpleNamespace(substrate=SimpleNamespace(data=data), metrics=Metrics(distribution=Features()))
    group = SimpleNamespace(experiment=experiment, training=None, pictures=lambda method: draw.integers(0, 255, (count, 1, 2, 2, 3)))
    assert list(distances(group, [get("none")])) == ([] if count == 1 else [get("none").title])


def test_each_scenario_is_measured_or_says_why_not(sd1_tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\na cat\n", encoding="utf-8")
    options = {"substrate": str(sd1_tiny), "memorized": str(prompts), "steps": 2, "device": "cpu", "store": tmp_path / "store"}
    found = each(lambda key, group: (key, len(group)), {"class": str(prompts.parent)}, ["pretrained", "small"], **options)
    assert found == {"pretrained": ("pretrained", 1)}
    printed = capsys.readouterr().out
    assert "1: small set overfitted: not measured. There is no model" in printed and "4: pre-trained model: model sd1-tiny, 1 prompt" in printed
    with pytest.raises(InputError, match="Unknown scenario 'medium': use one of small, large"):
        each(lambda key, group: "", {}, ["medium"], **options)


def test_a_spread_is_static_dynamic_or_open():
    kinds = [kind_of(found if found is None else Estimate(sum(found) / 2, *found, 6, 2)) for found in ((0, 0.05), (0.06, 0.2), (0.01, 0.06), None)]
    assert kinds == ["static", "dynamic", "open", "not measured"]


def test_the_summary_has_what_a_method_acts_on_and_the_share_above_the_threshold():
    rows, methods = measured(none=0.8, ren=0.4)
    shown = summary(rows, methods, ["similarity to training", "quality"], {"ren": np.array([[True, False]])}, 0.5)
    assert shown.loc["ren", ["acts on", "guided", "similarity to training", "quality"]].tolist() == ["attention", "1 of 2", "0.40 [0.40, 0.40]", "not measured"]
    assert shown["above the threshold"].str.startswith(("1.00", "0.00")).all() and shown.loc["none", "guided"] == "all"
    assert "above the threshold" not in summary(rows, methods, ["similarity to training"]) and "U-Net evaluations" not in shown


def test_a_scenario_has_a_group_or_says_why_not(sd1_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\na cat\na small dog\n", encoding="utf-8")
    quickly = {"steps": 2, "device": "cpu", "store": tmp_path / "store"}
    group = scenario_group("pretrained", str(sd1_tiny), memorized=str(prompts), n_prompts=1, **quickly)
    assert len(group) == 1 and group.label == "memorized"
    assert "fine-tuned from sd14" in scenario_group("small", "sd14", **quickly)
    with pytest.raises(InputError, match="has no prompts.csv"):
        scenario_group("small", "sd14", str(tmp_path / "nothing"), **quickly)


def test_earlier_methods_are_the_five_of_the_texts_tables():
    assert {method.name for method in earlier_methods()} == {"random-token", "random-number", "wen-3", "wen-1", "ren"}
