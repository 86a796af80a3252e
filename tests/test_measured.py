"""Measured tables are kept, read back, and not replaced by smaller ones."""

from dataclasses import replace

import pytest

from memlib.base.errors import InputError
from memlib.judging.claims import claim, not_testable
from memlib.results.measured import Measured, keep, load

TABLE = Measured("sd14", 500, [{"method": "none", "similarity": "1.00"}], not_testable(claim("C8"), "sd14", "A reason."), "commit: abc")


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    return tmp_path


def test_a_table_comes_back_and_a_smaller_run_does_not_replace_it():
    assert load("lists") == []
    keep("lists", TABLE)
    assert keep("lists", replace(TABLE, pictures=4)) is None
    assert load("lists") == [TABLE] and load("other") == []
    keep("lists", replace(TABLE, pictures=900, provenance="commit: def"))
    keep("lists", replace(TABLE, substrate="sd21"))
    assert [(found.substrate, found.pictures) for found in load("lists")] == [("sd14", 900), ("sd21", 500)]
    assert load("lists")[0].table.to_dict("records") == TABLE.rows


def test_a_broken_file_is_named(data):
    keep("lists", TABLE)
    [path] = (data / "measured").iterdir()
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="lists-sd14.json cannot be read"):
        load("lists")
