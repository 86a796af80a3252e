"""Where triggers lie: distances, lines and overlaps with values known beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from memlib.errors import InputError
from memlib.pruning import WeightSet
from memlib.triggers import between, distances, most_active, overlaps, spread


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
    monkeypatch.setattr("memlib.embeddings.encode_prompts", lambda substrate, prompt: prompt)
    monkeypatch.setattr("memlib.attack.runs.joined", lambda parts: parts)
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
