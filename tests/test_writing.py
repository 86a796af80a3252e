"""A file that is written anew is there as it was, or as it will be, and never in between."""

from __future__ import annotations

import pytest

from memlib.base.writing import replacing


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "made" / "table.json"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with replacing(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second" and [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_after_an_exception_the_file_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("first")
    with pytest.raises(ValueError, match="half way"), replacing(path) as temporary:
        temporary.write_text("sec")
        raise ValueError("half way")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "table.json"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one", "the last to end stays"
