"""Prompt sets: files read verbatim, bad files refused in a sentence, lists fetched and verified (offline)."""

import csv
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.companion.commands import main
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.prompts import published as prompt_sources
from memlib.prompts.files import read_prompt_file
from memlib.prompts.sets import clean_mask, load_prompts

HARD = (
    "<i>Fable</i> & <script>alert('x')</script>",
    'He said "no", twice; then\tleft',
    "Прогулка 夜の街 مدينة – café",
    "word " * 500 + "end",
    " leading and trailing ",
    "NA",
    "007",
    "a \u2028 rare separator and \x0b another",
)


def sentence(error):
    """The message of `error`, once it is seen to be one line that ends like a sentence."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def refused(path, column=None):
    with pytest.raises(InputError) as error:
        load_prompts(path, column)
    return sentence(error)


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Files


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "semicolon", "jsonl", "json", "strings"])
def test_prompts_stay_verbatim(tmp_path, kind):
    if kind == "txt":
        path = write(tmp_path, "p.txt", "\n".join(HARD) + "\n")
    elif kind in ("csv", "tsv", "semicolon"):
        path = tmp_path / ("p.tsv" if kind == "tsv" else "p.csv")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter={"csv": ",", "tsv": "\t", "semicolon": ";"}[kind])
            writer.writerows([("", "Caption", "score"), *((n, text, n / 2) for n, text in enumerate(HARD))])
    elif kind == "jsonl":
        path = write(tmp_path, "p.jsonl", "".join(json.dumps({"caption": text}) + "\n" for text in HARD))
    else:
        items = list(HARD) if kind == "strings" else [{"prompt": text} for text in HARD]
        path = write(tmp_path, "p.json", json.dumps(items))
    found = load_prompts(path)
    assert found.prompts == HARD == tuple(found.table["prompt"])
    assert len(found) == len(HARD) and found.name == "p"
    if kind == "csv":
        assert list(found.table.columns) == ["prompt", "row", "score"]
        assert found.table["score"].tolist() == [n / 2 for n in range(len(HARD))]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    assert load_prompts(write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")).prompts == ("one", "two")
    assert load_prompts(write(tmp_path, "b.csv", b"\xef\xbb\xbfprompt,n\r\none,1\r\n")).prompts == ("one",)


def test_other_columns_become_numbers_only_if_all_are(tmp_path):
    table = read_prompt_file(write(tmp_path, "p.csv", "prompt,score,id,mixed\na,0.5,001,1\nb,,002,x\n"))
    assert table["score"].tolist()[0] == 0.5 and np.isnan(table["score"][1])
    assert table["id"].tolist() == ["001", "002"] and table["mixed"].tolist() == ["1", "x"]


def test_column_by_name_keeps_the_other_prompt_column(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,rewritten\na,b\n")
    found = load_prompts(path, column="rewritten")
    assert found.prompts == ("b",) and found.table["other prompt"].tolist() == ["a"]


@pytest.mark.parametrize("column", ["text", "TEXT", "Text"])
def test_tables_as_hubs_publish_them(tmp_path, column):
    texts, rows = ("a cat; red", "b"), [{column: "a cat; red", "URL": "u"}, {column: "b", "URL": "v"}]
    for kind in ("csv", "tsv", "jsonl", "json", "parquet"):
        path = tmp_path / f"p.{kind}"
        table = pd.DataFrame(rows)
        if kind == "parquet":
            table.to_parquet(path)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows) if kind == "json" else table.to_csv(index=False, sep="," if kind == "csv" else "\t"))
        assert load_prompts(path).prompts == texts and list(load_prompts(path).table.columns) == ["prompt", "URL"]
    # A table of captions with a text beside them keeps its captions.
    assert load_prompts(write(tmp_path, "both.csv", "TEXT,caption\na,b\n")).prompts == ("b",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "one\n\nthree\n", ["Line 2", "empty"]),
        ("p.txt", "one\n  \t\n", ["Line 2", "empty"]),
        ("p.csv", "prompt,n\none,1\n\nthree,3\n", ["Line 3", "empty"]),
        ("p.csv", "prompt,n\none,1\n ,2\n", ["Line 3", "empty"]),
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": ""}\n', ["Line 2", "no text"]),
        ("p.jsonl", '{"prompt": "one"}\n{"other": "two"}\n', ["Line 2", "no text"]),
        ("p.json", '["one", ""]', ["Entry 2", "no text"]),
        ("p.txt", "", ["no prompts"]),
        ("p.csv", "", ["no prompts"]),
        ("p.csv", "prompt,n\n", ["no prompts"]),
        ("p.json", "[]", ["no prompts"]),
        ("p.csv", "words,n\none,1\n", ["no column 'prompt'", "'words', 'n'"]),
        ("p.jsonl", '{"words": "one"}\n', ["no column 'prompt'", "'words'"]),
        ("p.csv", "prompt,prompt\none,1\n", ["two columns"]),
        ("p.csv", "prompt,n\none, and more,1\n", ["Line 2", "3 fields", "quotes"]),
        ("p.csv", 'prompt,n\n"never closed,1\ntwo,2\n', ["Line", "not CSV"]),
        ("p.json", '{"prompt": "one"}', ["not a JSON list"]),
        ("p.json", '["one", {"prompt": "two"}]', ["mixes"]),
        ("p.json", "[1, ", ["not a JSON list"]),
        ("p.jsonl", "{one}\n", ["Line 1", "not one JSON value"]),
        ("p.txt", "café\n".encode("latin-1"), ["not UTF-8", "0xe9 at position 3"]),
        ("p.csv", "prompt\none\n".encode("utf-16"), ["not UTF-8", "position 0"]),
        ("p.docx", "one", ["no known kind", ".csv"]),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, name, text, words):
    path = write(tmp_path, name, text)
    message = refused(path)
    assert str(path) in message and all(word in message for word in words), message


def test_missing_named_column_missing_file_and_unknown_name(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,n\none,1\n")
    assert "no column 'caption'" in refused(path, "caption")
    assert "cannot be read" in refused(tmp_path / "none.csv")
    message = refused("webster50")
    assert "did you mean 'webster500'" in message and "membench" in message and ".csv" in message


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"Prompt": ["one", "two"]}).to_parquet(tmp_path / "p.parquet")
    assert load_prompts(tmp_path / "p.parquet").prompts == ("one", "two")
    assert "Parquet" in refused(write(tmp_path, "broken.parquet", b"PAR1 and nothing more"))


def test_parquet_without_its_reader(tmp_path, monkeypatch):
    def no_reader(path):
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", no_reader)
    assert "pyarrow" in refused(write(tmp_path, "p.parquet", b"PAR1"))


# Sets


def numbered(tmp_path, texts):
    return load_prompts(write(tmp_path, "set.txt", "\n".join(texts)))


def test_select_first_sample_unique(tmp_path):
    ten = numbered(tmp_path, [f"prompt {n % 7}" for n in range(10)])
    assert ten.select([8, 0]).prompts == ("prompt 1", "prompt 0")
    assert ten.select(np.arange(10) > 7).table.index.tolist() == [0, 1]
    assert ten.first(3).prompts == ten.prompts[:3] and ten.first(None) is ten and len(ten.first(99)) == 10
    assert len(ten.unique()) == 7
    drawn = numbered(tmp_path, [f"{n:02}" for n in range(50)]).sample(20, seed=4)
    assert len(set(drawn.prompts)) == 20 and list(drawn.prompts) == sorted(drawn.prompts)
    again = numbered(tmp_path, [f"{n:02}" for n in range(50)])
    assert all(set(again.sample(n, seed=4).prompts) < set(drawn.prompts) for n in (1, 6, 19))
    assert again.sample(20, seed=4).prompts == drawn.prompts != again.sample(20, seed=5).prompts
    wrong = (lambda: ten.select([10]), lambda: ten.select([True]), lambda: ten.select([0.5]), lambda: ten.select([]))
    for call in (*wrong, lambda: ten.first(0), lambda: ten.sample(11, seed=0)):
        with pytest.raises(InputError) as error:
            call()
        sentence(error)


def test_figure_prompts_are_those_of_the_texts():
    figures = load_prompts("figures")
    assert set(figures.table["text"]) == {"clip", "basin"}
    assert "Mothers influence on her young hippo" in figures.prompts
    per_kind = figures.table[figures.table["figure"] == "Figure 12"].groupby("kind").size()
    assert per_kind.to_dict() == {f"non-memorized:{name}": 10 for name in ("coco", "lexica", "laion")}


def test_minisd_sets_come_from_their_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    assert "minisd-heldout.csv" in refused("minisd-heldout")
    (tmp_path / "minisd" / "prompts").mkdir(parents=True)
    write(tmp_path / "minisd" / "prompts", "minisd-heldout.csv", "prompt,training_picture\na cat,4\n")
    assert load_prompts("minisd-heldout").table["training_picture"].tolist() == [4]


# Titles of MiniSD's duplicated pictures


def test_titles_are_distinct_and_fit_the_context():
    tokenizer = build_clip_tokenizer()
    titles = load_prompts(data_folder() / "minisd" / "titles.csv")
    templates = load_prompts(data_folder() / "minisd" / "templates.csv")
    assert titles.table["length"].value_counts().to_dict() == {"short": 75, "long": 38, "medium": 37}
    texts = titles.prompts + templates.prompts
    assert len(titles) == 150 and len(templates) == 16
    assert len({tuple(text.lower().split()[:3]) for text in texts}) == 166
    assert max(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]) <= 60


# The filter


def test_clean_mask_by_hand():
    # Every "cat" is one token, so the length is known without the tokenizer.
    cases = {
        "cat " * 4: False,
        "cat " * 5: True,
        "cat " * 40: True,
        "cat " * 41: False,
        "cat " * 200: False,
        "cat cat cat cat café": False,
        "cat cat cat cat WWW.example": False,
        "cat cat cat Http://a": False,
        "": False,
    }
    found = clean_mask(list(cases), build_clip_tokenizer())
    assert found.tolist() == list(cases.values())
    assert clean_mask(list(cases), build_clip_tokenizer("!")).tolist() == found.tolist()


# Published lists


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A web server on this machine, a table of sources that names it and an empty cache."""
    state = SimpleNamespace(body=b"Caption;n\none;1\ntwo;2\n", requests=0, cut=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests += 1
            self.send_response(200 if self.path == "/list.csv" else 404)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body[: len(state.body) - state.cut])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    state.server, state.cache = server, tmp_path / "cache"
    address = f"http://127.0.0.1:{server.server_port}"
    entry = {"title": "t", "url": f"{address}/list.csv", "column": "Caption", "licence": "MIT"}
    known = {"sha256": hashlib.sha256(state.body).hexdigest(), "file": "known.csv", "rows": 2}
    sets = {
        "known": entry | known | {"styles": [["a", 1], ["b", 1]]},
        "unknown": entry | {"sha256": None, "file": "unknown.csv"},
        "gone": entry | known | {"url": f"{address}/nowhere", "file": "gone.csv"},
    }
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    text = yaml.safe_dump({"sets": sets, "aliases": {"other": "known"}})
    (tmp_path / "data" / "prompts" / "sources.yml").write_text(text)
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEMLIB_PROMPTS", str(state.cache))
    yield state
    server.shutdown()
    server.server_close()


def files(publisher):
    return sorted(path.name for path in publisher.cache.glob("*")) + sorted(path.name for path in publisher.cache.glob(".*"))


def test_fetched_once_and_verified(publisher):
    known = load_prompts("known")
    assert known.prompts == ("one", "two") and known.licence == "MIT" and known.source.endswith("/list.csv")
    assert known.table["style"].tolist() == ["a", "b"] and known.table["n"].tolist() == [1, 2]
    assert load_prompts("other").prompts == known.prompts and publisher.requests == 1
    assert files(publisher) == ["known.csv"]
    (publisher.cache / "known.csv").write_bytes(b"Caption;n\nforged;1\ntwo;2\n")
    assert load_prompts("known").prompts == ("one", "two") and publisher.requests == 2


def test_other_bytes_are_refused_and_not_kept(publisher):
    publisher.body = b"Caption;n\nchanged;1\ntwo;2\n"
    message = refused("known")
    assert hashlib.sha256(publisher.body).hexdigest() in message and "file of your own" in message
    assert files(publisher) == []


def test_first_download_is_recorded_and_checked_ever_after(publisher):
    assert load_prompts("unknown").prompts == ("one", "two")
    lock = json.loads((publisher.cache / prompt_sources.LOCK_FILE).read_text())
    assert [entry["sha256"] for entry in lock.values()] == [hashlib.sha256(publisher.body).hexdigest()]
    (publisher.cache / "unknown.csv").unlink()
    publisher.body += b"three;3\n"
    assert "SHA-256" in refused("unknown")
    (publisher.cache / prompt_sources.LOCK_FILE).write_text("{")
    assert "damaged" in refused("unknown")


def test_cut_connection_missing_page_and_no_network(publisher):
    publisher.cut = 5
    assert "cannot be fetched" in refused("unknown")
    publisher.cut = 0
    assert "404" in refused("gone") or "Not Found" in refused("gone")
    publisher.server.shutdown()
    publisher.server.server_close()
    message = refused("known")
    expected = ["/list.csv", str(publisher.cache / "known.csv"), "file of your own"]
    assert all(part in message for part in expected), message
    assert files(publisher) == []
    publisher.cache.mkdir(exist_ok=True)
    write(publisher.cache, "known.csv", publisher.body)
    assert load_prompts("known").prompts == ("one", "two")


def test_cache_that_cannot_be_written(publisher):
    publisher.cache.write_text("a file where the folder should be")
    assert "MEMLIB_PROMPTS" in refused("known")


def test_command(publisher, capsys):
    assert main(["prompts", "fetch", "known", "unknown"]) == 0
    assert files(publisher) == ["known.csv", "sources.lock.json", "unknown.csv"]
    assert main(["prompts", "fetch", "nothing"]) == 1
    captured = capsys.readouterr()
    assert str(publisher.cache / "known.csv") in captured.out and "Unknown published list" in captured.err
    found = hashlib.sha256(publisher.body).hexdigest()
    assert f"SHA-256 {found[:12]}... of the table" in captured.out and f"SHA-256 {found}, none published, as first seen here on 20" in captured.out
    assert main(["prompts", "list"]) == 0
    listed = capsys.readouterr().out
    assert "licence: MIT" in listed and f"{found}, none published" in listed


def test_a_list_without_a_published_digest_says_so_before_it_is_fetched(publisher):
    assert "no SHA-256 is published" in prompt_sources.pinned(prompt_sources.load_sources()["unknown"])


def test_committed_table_of_sources():
    sources = prompt_sources.load_sources()
    assert sources["coco"] is sources["nonmem-coco"] and sources["laion"] is sources["nonmem-laion"]
    for source in sources.values():
        assert source.url.startswith("https://") and source.licence
        # A fixed commit in the address, so that the hash can hold.
        assert any(len(part) == 40 and int(part, 16) for part in source.url.split("/") if len(part) == 40)
        assert source.sha256 is None or (len(source.sha256) == 64 and int(source.sha256, 16))
        assert not source.styles or sum(rows for _, rows in source.styles) == source.rows
    assert [source.name for source in sources.values() if source.sha256 is None] == ["lexica"]
    assert len({source.file for source in sources.values()}) == len({source.name for source in sources.values()})
