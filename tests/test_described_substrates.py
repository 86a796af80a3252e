"""A substrate of one's own: one YAML file is enough for prompts, training pictures, controls, held-out pictures and metrics."""

import numpy as np
import pytest
import yaml
from PIL import Image

from memlib.base.errors import InputError
from memlib.experiment import Experiment
from memlib.experiment import picture_policy as care
from memlib.models.catalogue import SUBSTRATES, locate, source_of


def flat(shade):
    return Image.new("RGB", (512, 512), (shade, shade, shade))


@pytest.fixture
def described(tmp_path, sd1_tiny):
    """Writes the description of a fine-tune whose training set is known, with `changes`, and returns its path."""
    for folder in ("known", "held"):
        (tmp_path / folder).mkdir()
    for shade in (10, 20, 30):
        flat(shade).save(tmp_path / "known" / f"{shade}.png")
    for shade in (1, 2):
        flat(shade).save(tmp_path / "held" / f"{shade}.png")
    (tmp_path / "memorized.csv").write_text("prompt,training_picture,copies\na,10.png | 20.png,9\nb,30.png,1\n")
    (tmp_path / "others.csv").write_text("prompt\nc\nd\n")
    (tmp_path / "pipeline").symlink_to(sd1_tiny)
    content = {
        "name": "fine-tune", "folder": "pipeline", "prompts": {"memorized": "memorized.csv", "not memorized": "others.csv"},
        "seen_once": {"prompts": "memorized.csv", "where": {"copies": 1}}, "training_pictures": "known", "held_out": "held",
        "metrics": ["sscd", "clip-l14"], "free": True,
    }  # fmt: skip

    def write(**changes):
        path = tmp_path / "fine-tune.yml"
        path.write_text(yaml.safe_dump({name: value for name, value in (content | changes).items() if value is not None}))
        return path

    return write


def test_a_substrate_described_by_a_file_brings_all_its_data(described, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    run = Experiment(str(described()), n_seeds=1, steps=2, device="cpu", dtype="float32", store=tmp_path / "store")
    assert run.substrate.name == "fine-tune" and list(run.metrics) == ["copy", "alignment"] and care.training_allowed()
    known, other = run.group("memorized"), run.group("not memorized")
    assert known.prompts.prompts == ("a", "b") and other.prompts.prompts == ("c", "d")
    assert [list(pictures[:, 0, 0, 0]) for pictures in known.training] == [[10, 20], [30]]
    assert run.control().prompts.prompts == ("b",)
    assert list(run.substrate.data.held_out(1)[:, 0, 0, 0]) == [1] and len(run.substrate.data.held_out(None)) == 2
    assert known.pictures().shape == (2, 1, 64, 64, 3)


def test_what_a_file_leaves_out_stays_unknown(described):
    path = described(name=None, prompts=None, seen_once=None, training_pictures=None, held_out=None, metrics=None, free=None)
    source = source_of(path)
    assert source.name == "fine-tune" and source.data().sets == SUBSTRATES["sd14"].data().sets and not source.data().free
    assert source.data().held_out is None and source.data().seen_once is None
    assert locate(path)[0] == path.parent / "pipeline"


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"folder": None}, "at least `folder`"),
        ({"colour": "red"}, "'colour' that is unknown"),
        ({"metrics": "sscd"}, "'metrics' that is unknown or of another kind"),
        ({"folder": "nowhere"}, "no model_index.json"),
        ({"metrics": ["sscd", "taste"]}, "Unknown metric 'taste'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_sentence(described, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Experiment(str(described(**changes)), n_seeds=1, steps=2, device="cpu", dtype="float32")


def test_an_unknown_column_of_what_was_seen_once_is_named(described):
    run = Experiment(str(described(seen_once={"where": {"times": 1}})), n_seeds=1, steps=2, device="cpu", dtype="float32")
    with pytest.raises(InputError, match="no column 'times'"):
        run.control()


def test_pictures_that_are_not_free_are_withheld(described):
    run = Experiment(str(described(free=False)), n_seeds=1, steps=2, device="cpu", dtype="float32")
    picture = run.group("memorized").training[0][0]
    assert not care.training_allowed() and care.is_withheld(picture) and (care.shown(picture) != picture[:1, :1]).all()
    assert np.unique(care.shown(picture)).tolist() == [care.GREY]
