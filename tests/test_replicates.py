"""The replicated 2 x 2: names, design, and a table that survives being stopped."""

import csv
from collections import Counter

import pytest

from memlib.base.errors import InputError
from memlib.models.minisd.paths import settings
from memlib.results import trainings
from memlib.training.minisd import family
from memlib.training.minisd.train import variant


def test_names_say_what_is_trained():
    main, other = variant("minisd-v1"), variant("minisd-v2-dedup")
    assert (main.padding, main.duplicates, main.replicate) == ("v1", True, False) and main.settings == settings()["unet"]
    assert (other.padding, other.duplicates, other.corpus) == ("v2", False, main.corpus)
    shorter = variant("minisd-v2-dedup-s12")
    assert (shorter.padding, shorter.duplicates, shorter.corpus["seed"], shorter.replicate) == ("v2", False, 12, True)
    changed = {k for k, v in shorter.settings.items() if v != main.settings[k]}
    assert changed == {"seed", "steps"} and shorter.settings["seed"] == 12
    mitigated = variant("minisd-v1-s12-entropy-filter")
    assert (mitigated.mitigation, shorter.mitigation, mitigated.corpus) == ("entropy-filter", None, shorter.corpus)
    with pytest.raises(InputError, match="Unknown training-time mitigation 'hope'"):
        variant("minisd-v1-s12-hope")
    for name in ("minisd-v3", "minisd-v1-s", "unet", "minisd-v1-dedup-", "minisd-v1-entropy-filter", "minisd-v1-s12-"):
        with pytest.raises(InputError, match="There is no part"):
            variant(name)


def test_the_design_is_crossed():
    cells = Counter((r.padding, r.duplicated) for r in family.square())
    assert len(cells) == 4 and set(cells.values()) == {len(settings()["replicates"]["seeds"])} and min(cells.values()) >= 3
    assert len({r.name for r in family.square()}) == len(family.square())


def test_a_stopped_design_goes_on_with_what_the_table_lacks(monkeypatch, tmp_path):
    trained = []

    def stop_after_three(name, *rest):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(name)

    def found(substrate, store):
        row = {"prompt": f"{substrate}, with a comma", "group": "duplicated", "copies": 4, "memorized": 0, "mean_similarity": 0.5}
        return [row, row | {"group": "template"}]

    monkeypatch.setattr(trainings, "minisd_folder", lambda: tmp_path)
    monkeypatch.setattr(family, "runs_folder", lambda: tmp_path)
    monkeypatch.setattr(family, "train", stop_after_three)
    monkeypatch.setattr(family, "load_run", lambda name: name)
    monkeypatch.setattr(family, "PictureStore", lambda: None)
    monkeypatch.setattr(family, "reproduced", found)
    with pytest.raises(KeyboardInterrupt):
        family.run_replicates("cpu", progress=False)
    first, trained[:] = list(trained), []
    with pytest.raises(KeyboardInterrupt):
        family.run_replicates("cpu", progress=False)
    assert first + trained == [r.name for r in family.square()[:6]]
    with open(tmp_path / "replicates.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 6 and rows[0]["prompt"] == "minisd-v1-s11, with a comma"
    assert {(row["padding"], row["duplicated"]) for row in rows} == {("v1", "1"), ("v2", "1"), ("v1", "0"), ("v2", "0")}
