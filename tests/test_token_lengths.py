"""Token lengths of hand-made lists, counted by hand: "word" and "cat" are one token each in CLIP's vocabulary."""

import hashlib

import numpy as np
import pytest
import yaml

from memlib.base.errors import InputError
from memlib.companion.commands import main
from memlib.prompts.lengths import POOLED, lengths, padding_left, read_statistics, statistics, summarise, token_counts
from memlib.prompts.published import load_sources

LISTS = {
    "webster-mv86": ["cat", "word " * 37],
    "webster345": ["cat ", "word " * 37, "word cat"],
    "webster500": ["cat", "word " * 37, "word cat", "word " * 80],
    "sd2-webster219": ["word word", "word cat"],
    "plain": ["word " * 39, "word " * 40, "cat &amp; cat " + "word " * 35],
}


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A cache folder with tiny lists under the published ones' names, one more that is not there, and no network."""
    cache, sets = tmp_path / "cache", {}
    cache.mkdir()
    for name, prompts in LISTS.items():
        kind = {"webster500": "candidates", "plain": "not memorized"}.get(name, "memorized")
        body = "caption\tlabel\n" + "".join(f"{p.strip()}\t{'MV' if i == 0 else 'TV'}\n" for i, p in enumerate(prompts))
        (cache / f"{name}.csv").write_text(body)
        sets[name] = {
            "title": "t", "url": f"http://127.0.0.1:9/{name}", "sha256": hashlib.sha256(body.encode()).hexdigest(),
            "file": f"{name}.csv", "column": "caption", "rows": len(prompts), "licence": "MIT", "kind": kind,
        }  # fmt: skip
    sets["sd2-webster219"]["category"] = "label"
    sets["elsewhere"] = sets["plain"] | {"file": "elsewhere.csv"}
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / "data" / "prompts" / "sources.yml").write_text(yaml.safe_dump({"sets": sets, "aliases": {"other": "plain"}}))
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEMLIB_PROMPTS", str(cache))
    return cache


def test_counts_leave_out_what_the_tokenizer_adds_and_cut_nothing():
    assert token_counts(["cat", "a cat", "word " * 75, "word " * 200, "", "a cat !"]).tolist() == [1, 2, 75, 200, 0, 3]
    assert padding_left(np.array([0, 1, 44, 45, 75, 200])).tolist() == [75, 74, 31, 30, 0, 0]
    with pytest.raises(InputError, match="no prompts"):
        token_counts([])


def test_limits_with_and_without_the_special_tokens():
    row = summarise(np.array([1, 37, 38, 39, 40, 44, 45, 90]))
    assert (row["n"], row["longest"], row["median"]) == (8, 90, 39.5)
    assert (row["at_least_40"], row["at_least_40_with_special"]) == (4, 6)
    assert (row["share_below_40"], row["share_below_40_with_special"]) == (0.5, 0.25)
    assert row["padding_30_or_fewer"] == 2  # 45 tokens and the two special ones leave 30
    assert lengths(row).tolist() == [1, 37, 38, 39, 40, 44, 45, 90]
    assert lengths(summarise(np.array([3, 1, 3, 3]))).tolist() == [1, 3, 3, 3]


def test_statistics_of_hand_made_lists(lists):
    table = statistics().set_index(["list", "category"])
    got = {key: (row["n"], row["longest"], row["at_least_40"]) for key, row in table.iterrows()}
    assert got == {
        ("webster-mv86", "all"): (2, 37, 0),
        ("webster345", "all"): (3, 37, 0), ("webster345", "MV"): (2, 37, 0), ("webster345", "RV or TV"): (1, 2, 0),
        ("webster500", "all"): (4, 80, 1), ("webster500", "MV"): (2, 37, 0),
        ("webster500", "RV or TV"): (1, 2, 0), ("webster500", "N"): (1, 80, 1),
        ("sd2-webster219", "all"): (2, 2, 0), ("sd2-webster219", "MV"): (1, 2, 0), ("sd2-webster219", "TV"): (1, 2, 0),
        ("plain", "all"): (3, 40, 2),
        # cat, 37 words, word cat, word word: each once, though it stands in several lists
        (POOLED, "sd2-webster219, webster-mv86, webster345"): (4, 37, 0),
    }  # fmt: skip
    plain = table.loc[("plain", "all")]
    # "cat & amp ; cat" is five tokens, "cat & cat" three: 40 and 38 with the 35 words.
    assert (plain["at_least_40"], plain["at_least_40_with_special"], plain["at_least_40_unescaped"]) == (2, 3, 1)
    assert plain["sha256"] == hashlib.sha256((lists / "plain.csv").read_bytes()).hexdigest() and plain["url"].endswith("/plain")


def test_labels_tell_rv_from_tv(lists, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("caption,overfit_type\ncat,MV\nword cat,RV\n")
    table = statistics(labels=labels)
    assert set(table[table["list"] == "webster500"]["category"]) == {"all", "MV", "RV", "N"}
    labels.write_text("caption,kind\ncat,MV\n")
    with pytest.raises(InputError, match="no column 'overfit_type'"):
        statistics(labels=labels)


def test_lists_that_are_absent_or_changed_are_left_out(lists):
    (lists / "webster-mv86.csv").unlink()
    (lists / "plain.csv").write_text("caption\nforged\n")
    table = statistics()
    assert set(table["list"]) == {"webster345", "webster500", "sd2-webster219", POOLED}
    assert table[table["list"] == "webster500"]["category"].tolist() == ["all"]  # who is MV is not known then
    for path in lists.glob("*.csv"):
        path.unlink()
    with pytest.raises(InputError, match="MEMLIB_PROMPTS"):
        statistics()
    with pytest.raises(InputError, match="cannot be fetched"):
        statistics(fetch=True)


def test_command_writes_what_is_read_back(lists, tmp_path, capsys):
    out = tmp_path / "lengths.csv"
    assert main(["prompts", "lengths", "--output", str(out)]) == 0
    told = capsys.readouterr().out
    assert "not at hand: elsewhere" in told and "word" not in told
    assert "word" not in out.read_text()  # no prompt leaves the lists
    table = read_statistics(out)
    assert table.to_csv() == statistics().to_csv()
    assert main(["prompts", "lengths", "--output", str(out / "no" / "folder.csv")]) == 1  # a file stands where a folder would have to
    assert "cannot be written" in capsys.readouterr().err
    assert main(["prompts", "lengths"]) == 0 and (tmp_path / "data" / "token_lengths.csv").is_file()


def test_statistics_that_contradict_their_histogram_are_refused(lists, tmp_path):
    out = tmp_path / "lengths.csv"
    main(["prompts", "lengths", "--output", str(out)])
    text = out.read_text()
    out.write_text(text.replace("1:1 2:1", "1:1 3:1"))
    with pytest.raises(InputError, match="does not follow from the histogram"):
        read_statistics(out)
    out.write_text(text.replace("histogram", "counts", 1))
    with pytest.raises(InputError, match="lack histogram"):
        read_statistics(out)
    with pytest.raises(InputError, match="cannot be read"):
        read_statistics(tmp_path / "nothing.csv")


def test_committed_statistics_are_of_the_published_lists():
    table, sources = read_statistics(), load_sources()
    for row in table[table["list"] != POOLED].to_dict("records"):
        source = sources[row["list"]]
        assert (row["url"], row["kind"]) == (source.url, source.kind) and source.sha256 in (None, row["sha256"])
        assert row["category"] != "all" or source.rows in (None, row["n"])
    every = table[table["category"] == "all"].set_index("list")
    assert set(every.index) >= {source.name for source in sources.values()} - {"lexica"}
    for name, part in table[(table["category"] != "all") & (table["list"] != POOLED)].groupby("list"):
        assert part["n"].sum() == every.loc[name, "n"] and part["at_least_40"].sum() == every.loc[name, "at_least_40"]
    assert every["longest"].max() < 1000 and table["histogram"].str.fullmatch(r"(\d+:\d+ ?)+").all()
