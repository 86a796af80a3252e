"""Where triggers lie: distances, lines and overlaps with values known beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.mitigations.weights import WeightSet, overlap
from memlib.probes.triggers import between, by_chance, distances, most_active, overlaps, spread


def test_distances_are_euclidean_over_all_states():
    states = np.zeros((3, 77, 2))
    states[1, 0, 0], states[2, 5, 1] = 3, 4
    assert distances(states).tolist() == pytest.approx([3, 4, 5]) and len(distances(states[:1])) == 0


def test_spread_of_triggers_beside_their_starts():
    ordinary = np.zeros((2, 77, 1))
    ordinary[1, 0] = 2  # the unit
    starts = np.zeros((3, 3, 77, 1))
    starts[0, :, 0, 0] = [0, 4, 8]
    states = starts.copy()
    states[0, :, 0, 0] = [1, 5, 100]
    done = np.array([[True, True, False], [True, False, False], [False, False, False]])
    found = spread(states, starts, done, ordinary)
    assert found.triggers[0] == pytest.approx(2) and found.starts[0] == pytest.approx(2) and found.moved[0] == pytest.approx(0.5)
    assert np.isnan(found.triggers[1:]).all() and found.counts.tolist() == [2, 1, 0]
    with pytest.raises(InputError, match="at least two of them"):
        spread(states, starts, done, ordinary[:1])


def test_lines_between_triggers(monkeypatch):
    monkeypatch.setattr("memlib.probes.triggers.encode_prompts", lambda substrate, prompt: prompt)
    monkeypatch.setattr("memlib.probes.triggers.joined", lambda parts: parts)
    states = np.zeros((2, 3, 77, 1), np.float32)
    states[1, 2] = 1
    done = np.array([[True, False, False], [True, False, True]])
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    attacked = SimpleNamespace(states=states, succeeded=done, targets=SimpleNamespace(prompts=("a", "b"), pictures=pictures))
    attack = SimpleNamespace(experiment=SimpleNamespace(substrate=None), similarities=lambda s, e, p: s[:, :1, 0].numpy())
    found = between(attack, attacked)
    assert found.shape == (1, 5, 1) and found.ravel().tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    attacked.succeeded = np.zeros_like(done)
    assert between(attack, attacked) is None


def test_the_most_active_inputs():
    norms = {"a": np.array([[1.0, 0, 3, 0, 0, 0, 0, 0, 0, 0], [1.0, 0, 3, 2, 0, 0, 0, 0, 0, 0]]), "b": np.array([[0.1, 0.2]])}
    chosen = most_active(norms, 0.2).chosen
    assert chosen["a"].tolist() == [2, 3] and chosen["b"].tolist() == [1]


def test_overlaps_beside_repetition_and_other_pictures():
    def made(*places):
        return WeightSet({"a": list(places)})

    sets = [[made(0, 1), made(1, 2)], [made(5), made(5)]]
    again = [[made(0, 1), made(1, 2, 3, 4)], [made(5, 6), made()]]
    found = overlaps(sets, again)
    assert found.same.tolist() == pytest.approx([1 / 3, 1]) and found.others.tolist() == [0, 0]
    assert found.repeat.tolist() == pytest.approx([(1 + 0.5) / 2, (0.5 + 0) / 2])
    nothing = overlaps([[made(), made()], [made(1), made(1)]], [[made(), made()], [made(1), made(1)]])
    assert np.isnan(nothing.same[0]) and nothing.same[1] == 1
    for bad in ([sets[0]], [[made(0)], sets[1]]):
        with pytest.raises(InputError, match="two triggers each"):
            overlaps(bad, bad)


def test_overlap_by_chance_is_that_of_sets_drawn_at_random():
    rng, sizes, counts = np.random.default_rng(0), {"a": 200, "b": 50}, {"a": 40, "b": 30}

    def drawn():
        return WeightSet({name: rng.choice(size, counts[name], replace=False) for name, size in sizes.items()})

    def rows():  # whole rows of ten weights, four of the twenty of layer a
        return WeightSet({"a": (10 * rng.choice(20, 4, replace=False)[:, None] + np.arange(10)).ravel()})

    for make, units in ((drawn, {"a": (200, 1), "b": (50, 1)}), (rows, {"a": (20, 10)})):
        sets = [[make(), make()], [make(), make()]]
        simulated = np.mean([overlap(make(), make()) for _ in range(2000)])
        assert by_chance(sets, units, 4000) == pytest.approx([simulated] * 2, abs=0.012)
    one, another = WeightSet({"a": [3]}), WeightSet({"a": [4]})
    assert by_chance([[one, another]], {"a": (10, 1)}, 20_000) == pytest.approx([0.1], abs=0.01)
    assert by_chance([[one, WeightSet({"b": [4]})]], {"a": (10, 1), "b": (9, 1)}) == 0
    assert np.isnan(by_chance([[WeightSet({}), WeightSet({})]], {})[0])
