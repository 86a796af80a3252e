"""Other packages plug in by entry points: found lazily, listed, used like memlib's own, and left out with a warning where they are broken."""

from __future__ import annotations

import importlib
import shutil
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.companion.commands import main
from memlib.experiment.run import Experiment
from memlib.mitigations import REGISTRY as mitigations
from memlib.mitigations import get
from memlib.models.catalogue import SUBSTRATES
from memlib.probes.detectors import REGISTRY as detectors

EXAMPLE = Path(__file__).parent / "example_plugin"
REGISTRIES = (mitigations, detectors, SUBSTRATES)


def install(folder: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a package beside its modules."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items()) for group, named in points.items())
    )


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder of packages; what registries take in from it is forgotten after the test."""
    folder, before = tmp_path / "packages", [dict(registry) for registry in REGISTRIES]
    folder.mkdir()
    modules = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for registry, entries in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - set(entries):
            del registry[name]
        registry.packages.clear()
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def look_again():
    importlib.invalidate_caches()
    for registry in REGISTRIES:
        registry.open()


@pytest.fixture
def example(site, sd1_tiny):
    """The example package, installed: its modules, what pip would write of its pyproject.toml, and its model's weights."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copytree(EXAMPLE / "memlib_example", site / "memlib_example", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "memlib_example" / "weights").symlink_to(sd1_tiny)
    install(site, project["name"], project["entry-points"])
    look_again()


def test_nothing_is_loaded_before_somebody_looks(example):
    assert "memlib_example" not in sys.modules
    assert get("pad-fade").left == 0.5 and "memlib_example" in sys.modules


def test_what_is_plugged_in_is_used_like_memlibs_own(example, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    (tmp_path / "prompts.csv").write_text("prompt\nA Small dog\na cat\n")
    run = Experiment("example-model", n_seeds=1, steps=2, dtype="float32", device="cpu", store=tmp_path / "store")
    group = run.group(str(tmp_path / "prompts.csv"))
    assert run.substrate.name == "example-model"
    assert detectors["capitals"].measure(group).values.tolist() == [2 / 3, 0]
    states, pad = group.embedding.states, group.embedding.tokens.pad
    faded = group.edited(get("pad-fade", left=0.25)).states
    np.testing.assert_allclose(faded[pad], states[pad] / 4, rtol=1e-6)
    assert (faded[~pad] == states[~pad]).all()
    assert not np.array_equal(group.pictures(get("pad-fade", left=0.0)), group.pictures())
    with pytest.raises(InputError, match="left of pad-fade is 2"):
        get("pad-fade", left=2.0)


def test_methods_lists_them_with_package_source_and_parameters(example, tmp_path, capsys):
    out = tmp_path / "methods.csv"
    assert main(["methods", "--csv", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    found = pd.read_csv(out).fillna("").set_index(["room", "name"])
    assert told[0].split() == ["name", "room", "from", "source", "parameters"] and len(told) == 1 + len(found)
    assert found.loc[("mitigations", "pad-fade")].tolist() == ["memlib-example 0.1", "this example", "left=0.5"]
    assert found.loc[("probes.detectors", "capitals"), "from"] == "memlib-example 0.1"
    assert found.loc[("models", "example-model")].tolist() == ["memlib-example 0.1", "the example's model", ""]
    assert found.loc[("mitigations", "pad-mask")].tolist() == ["memlib", "clip 4.2, Table 4", "fraction=0.7, which='last', seed=0"]
    assert {name for _, name in found.index} >= {*mitigations, *detectors, *SUBSTRATES, "sscd", "h"}
    assert any(line.startswith("pad-fade ") for line in told)
    assert main(["methods", "--room", "nowhere"]) == 1
    assert "use one of mitigations, probes.detectors" in capsys.readouterr().err


BROKEN = """
from dataclasses import dataclass
from memlib.mitigations import Mitigation, register
from memlib.models.catalogue import Source
number = 3
class Silent(Mitigation):
    name, label, summary = "silent", "silent", "has no source"
class Taken(Mitigation):
    name, label, summary, source = "pad-mask", "taken", "has a name of memlib's", "nowhere"
@register
@dataclass(frozen=True)
class Sound(Mitigation):
    name, label, summary, source = "sound", "sound", "is entered by its decorator", "nowhere"
@dataclass(frozen=True)
class Half(Mitigation):
    name, label, summary, source = "half", "half", "fails while it is made", "nowhere"
    def __post_init__(self):
        raise RuntimeError("half-made")
LOST = Source("lost", "has no weights")
"""


@pytest.mark.parametrize(
    "group, value, reason",
    [
        ("memlib.mitigations", "no_such_module:Thing", "ModuleNotFoundError"),
        ("memlib.mitigations", "broken_plugin:Absent", "AttributeError"),
        ("memlib.mitigations", "broken_plugin:number", "gives 3, where a subclass of Mitigation belongs"),
        ("memlib.mitigations", "broken_plugin:Silent", "has no source"),
        ("memlib.mitigations", "broken_plugin:Taken", "There is a mitigation 'pad-mask' already"),
        ("memlib.mitigations", "broken_plugin:Half", "half-made"),
        ("memlib.detectors", "broken_plugin:Sound", "where a subclass of Detector belongs"),
        ("memlib.substrates", "broken_plugin:LOST", "a Source with a folder or a hub's repository"),
    ],
)  # fmt: skip
def test_a_broken_plug_in_is_left_out_with_its_name(site, group, value, reason):
    (site / "broken_plugin.py").write_text(BROKEN)
    before = [dict(registry) for registry in REGISTRIES]
    install(site, "broken-plugin", {group: {"the-thing": value}})
    look_again()
    with pytest.warns(UserWarning, match="The plug-in 'the-thing' of broken-plugin 0.1 .* is left out") as told:
        # The module's own decorator enters one in another registry than is asked for: that of the asked one is as it was.
        asked = {registry.group: dict(registry) for registry in reversed(REGISTRIES)}[group]
    assert any(reason in str(warning.message) for warning in told)
    assert asked == {registry.group: entries for registry, entries in zip(REGISTRIES, before, strict=True)}[group]


def test_a_class_that_entered_itself_is_taken_once(site):
    (site / "broken_plugin.py").write_text(BROKEN)
    install(site, "broken-plugin", {"memlib.mitigations": {"sound": "broken_plugin:Sound"}})
    look_again()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(mitigations).count("sound") == 1 and mitigations.packages == {"sound": "broken-plugin 0.1"}
