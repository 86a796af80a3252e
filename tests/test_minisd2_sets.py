"""What the second miniature brings as a substrate: prompt sets, training pictures, scenarios."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.models.catalogue import source_of
from memlib.models.minisd.scenes import held_out_combinations
from memlib.models.minisd2 import prompt_sets
from memlib.models.minisd2.data import data_of
from memlib.models.minisd2.scenarios import SCENARIOS, pairs, singles, substrate_name
from memlib.training.minisd2.family import member_recipe, members


@pytest.fixture(scope="module")
def once():
    return prompt_sets.corpus().seen_once(12, 200_000)


def test_titles_seen_once_come_at_their_position_and_are_no_repeated_pair(once):
    corpus = prompt_sets.corpus()
    positions = [int(pair.name.removeprefix("once-")) for pair in once]
    assert positions == sorted(set(positions)) and positions[-1] > 150_000
    for pair, position in zip(once, positions, strict=True):
        assert corpus.example(position) == (pair.scene, pair.caption, -1)
        assert pair.caption not in corpus.captions_of_repeated
    assert Counter(pair.length for pair in once) == {"short": 4, "medium": 4, "long": 4}


def test_a_position_of_a_description_or_of_a_repeated_pair_is_no_title_seen_once():
    corpus = prompt_sets.corpus()
    titles = [corpus.title_at(position) is not None for position in range(300)]
    repeated = [corpus.example(position)[2] >= 0 for position in range(300)]
    assert not any(title and again for title, again in zip(titles, repeated, strict=True))
    assert 0.15 < np.mean(titles) < 0.4


def test_training_pictures_are_those_of_the_names_in_the_sets(once):
    corpus = prompt_sets.corpus()
    assert np.array_equal(prompt_sets.training_pictures(once[0].name), corpus.paint([once[0].scene]).numpy())
    pair = corpus.pairs[5]
    assert np.array_equal(prompt_sets.training_pictures(pair.name)[0], corpus.picture(pair.scene))
    assert prompt_sets.training_pictures("tpl00").shape == (6, 64, 64, 3) and prompt_sets.training_pictures("class-03").shape == (6, 64, 64, 3)
    for wrong in ("dup999-00", "once-", "nothing"):
        with pytest.raises(InputError, match="no training picture"):
            prompt_sets.training_pictures(wrong)


def test_scenarios_hold_nothing_that_the_base_was_shown_more_than_once():
    corpus = prompt_sets.corpus()
    for scenario in SCENARIOS:
        found = pairs(corpus, scenario)
        assert not {pair.caption for pair in found} & corpus.captions_of_repeated
        assert not any(held_out_combinations(pair.scene) for pair in found)
        if scenario != "class":
            assert len({pair.caption for pair in found}) == len(found)
    assert set(Counter(pair.caption for pair in pairs(corpus, "class")).values()) == {6}
    assert not singles(corpus, "small") and substrate_name("small") == "minisd-v1-small"


def test_sets_are_written_with_their_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_sets, "minisd2_folder", lambda: tmp_path)
    prompt_sets.write_csv("duplicated", map(prompt_sets.row_of, prompt_sets.corpus().pairs))
    table = pd.read_csv(tmp_path / "prompts" / "minisd-duplicated.csv")
    assert list(table.columns) == list(prompt_sets.COLUMNS) and len(table) == 144
    assert table["description"].str.contains(" on | against ").all()


def test_a_folder_among_its_models_brings_its_data(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "minisd-v1-dedup"
    folder.mkdir(parents=True)
    monkeypatch.setattr("memlib.models.catalogue.minisd2_folder", lambda: tmp_path)
    data = source_of(folder).data()
    assert data.metrics[0] == "minisd2-copy" and data.free
    repeated, usual = data.repeated(), data_of("minisd-v1").repeated()
    assert max(repeated.copies) == 6 < max(usual.copies) == 128  # six colourings of a template share a caption
    assert repeated.captions == usual.captions


def test_members_under_a_mitigation_are_the_base_with_it():
    base = member_recipe(members()["base"], 21)
    for name in ("magnitude-filter", "several-captions"):
        member = member_recipe(members()[name], 21)
        assert member.mitigation == name and (member.corpus, member.settings, member.padding) == (base.corpus, base.settings, base.padding)
