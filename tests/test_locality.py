"""How local what pruning finds is, on a model of two layers and on sets made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from memlib.mitigations.weights import WeightSet
from memlib.probes import locality


@pytest.fixture
def substrate():
    unet = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(2, 5)})
    with torch.no_grad():
        for weight in unet.parameters():
            weight.fill_(1.0)
        unet["b"].weight[0, 0] = 0.0
    return SimpleNamespace(unet=unet)


def test_what_is_removed_is_zero_inside_and_comes_back(substrate):
    found = locality.removed(substrate, WeightSet({"a": [0, 5], "b": [3]}))
    assert (found.weights, found.zeros_before, found.zeros_inside, found.given_back) == (3, 1, 4, True)
    assert "3 weights" in str(found) and "4 zeros inside" in str(found) and "after it: True" in str(found)


def test_neurons_are_counted_as_rows_and_weights_one_by_one(substrate, monkeypatch):
    sets = {"nemo": [WeightSet.of_neurons(substrate, {"a": [0, 2], "b": [1]}), WeightSet({})], "wanda": [WeightSet({"a": [1, 2, 3]}), WeightSet({"b": [4]})]}
    monkeypatch.setattr(locality, "found_for", lambda group, name: sets[name])
    group = SimpleNamespace(experiment=SimpleNamespace(substrate=substrate))
    assert locality.sizes(group, "nemo").tolist() == [3, 0] and locality.sizes(group, "wanda").tolist() == [3, 1]


def test_agreement_of_triggers(substrate, monkeypatch):
    def made(*places):
        return WeightSet({"a": list(places)})

    # Two triggers of each of two pictures; found again, each set is the same.
    sets = [[made(0, 1), made(1, 2)], [made(8, 9), made(8, 9)]]
    monkeypatch.setattr(locality, "sets_of", lambda substrate, triggers, kind, first_seed=0: sets)
    found = locality.agreement(substrate, [], "wanda")
    assert list(found) == list(locality.COMPARED)
    assert found[locality.SAME].tolist() == pytest.approx([1 / 3, 1])
    assert found[locality.REPEAT].tolist() == [1, 1] and found[locality.OTHERS].tolist() == [0, 0]
    # Two of twelve weights drawn twice: by chance they share none, one or two with probabilities 45, 20 and 1 of 66.
    assert found[locality.CHANCE].mean() == pytest.approx((20 / 3 + 1) / 66, abs=0.02)


def test_where_nothing_is_found_there_is_nothing_to_compare(substrate, monkeypatch):
    monkeypatch.setattr(locality, "sets_of", lambda substrate, triggers, kind, first_seed=0: [[WeightSet({})] * 2] * 2)
    assert all(np.isnan(values).all() for values in locality.agreement(substrate, [], "nemo").values())


def test_a_unit_is_an_input_a_neuron_or_a_weight(substrate):
    assert {kind: unit(substrate.unet["a"]) for kind, unit in locality.UNITS.items()} == {"activations": (4, 1), "nemo": (3, 4), "wanda": (12, 1)}
    assert np.prod(locality.UNITS["nemo"](substrate.unet["b"])) == 10
