"""Training pictures from addresses, live and dead, and clip's selection protocol, on lists and a web server made here."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from memlib.base.download import DownloadError, download
from memlib.base.errors import InputError, NotMeasured
from memlib.base.pictures import read_pictures
from memlib.companion.selection import addresses, build, candidates, lowest_similarity, select, with_pictures
from memlib.prompts import training_pictures
from memlib.prompts.sets import load_prompts
from memlib.prompts.training_pictures import Fetched, count_reasons, fetch_pictures


def picture_bytes(value, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    """Serves /good-N.png and the like, which counts as no local address; `asked` counts the requests of each path."""
    asked: list[str] = []
    monkeypatch.setenv("MEMLIB_LOCAL", "1")
    monkeypatch.setattr(training_pictures, "PAUSE_SECONDS", 0)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.rsplit("/", 1)[-1]
            if name.startswith("gone"):
                self.send_error(404)
                return
            if name.startswith("moved"):
                self.send_response(302)
                self.send_header("Location", "/good-7.png")
                self.end_headers()
                return
            if name.startswith("busy") and asked.count(self.path) == 1:
                self.send_error(503)
                return
            if name.startswith("drip"):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(200):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
            if name.startswith("slow-header"):
                with contextlib.suppress(OSError):
                    for _ in range(200):
                        self.wfile.write(b"H")
                        time.sleep(0.05)
                return
            content = {"page": b"<html>sold out</html>", "large": b"x" * 5000, "stand%20in": picture_bytes(9)}.get(name.split(".")[0])
            if content is None:
                content = picture_bytes(int(name.split(".")[0].split("-")[1]), "JPEG" if name.endswith("jpg") else "PNG")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + (99 if name.startswith("short") else 0)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", asked=asked)
    running.shutdown()
    running.server_close()


def test_live_addresses_give_pictures_and_dead_ones_a_reason(server, tmp_path, monkeypatch):
    monkeypatch.setattr(training_pictures, "MAX_BYTES", 4000)
    names = ("good-1.png", "good-2.jpg", "moved.png", "gone.png", "page.html", "large.png", "short-3.png")
    urls = [f"{server.url}/{name}" for name in names] + ["file:///etc/hostname", "http://127.0.0.1:9/x.png", "not an address"]
    found = fetch_pictures(urls, tmp_path)
    reasons = {name: found[f"{server.url}/{name}"].reason for name in names}
    assert reasons == {"good-1.png": "", "good-2.jpg": "", "moved.png": "", "gone.png": "answers 404", "page.html": "no picture",
                       "large.png": "too large", "short-3.png": "broken off"}  # fmt: skip
    assert found["file:///etc/hostname"].reason == found["not an address"].reason == "no web address"
    assert found["http://127.0.0.1:9/x.png"].reason == "does not answer"
    assert (tmp_path / found[f"{server.url}/good-1.png"].file).read_bytes() == picture_bytes(1)
    assert found[f"{server.url}/good-2.jpg"].file.endswith(".jpg")
    assert sum(count_reasons(found).values()) == 7
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_is_fetched_twice_unless_it_changed_or_is_asked_for(server, tmp_path):
    urls = [f"{server.url}/good-1.png", f"{server.url}/gone.png"]
    first = fetch_pictures(urls, tmp_path)
    assert fetch_pictures(urls, tmp_path) == first and len(server.asked) == 2
    fetch_pictures(urls, tmp_path, retry=True)
    assert server.asked.count("/gone.png") == 2 and server.asked.count("/good-1.png") == 1
    (tmp_path / first[urls[0]].file).write_bytes(b"harmed")
    assert fetch_pictures(urls, tmp_path)[urls[0]] == first[urls[0]] and server.asked.count("/good-1.png") == 2
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        fetch_pictures(urls, tmp_path)


def test_one_malformed_address_loses_no_other_and_blanks_are_quoted(server, tmp_path):
    good, blank = f"{server.url}/good-1.png", f" {server.url}/stand in.png "
    found = fetch_pictures(["http://[::1", good, "http://", "gopher://x/y", blank], tmp_path)
    assert found["http://[::1"].reason == found["http://"].reason == found["gopher://x/y"].reason == "no web address"
    assert found[good].file and found[blank].file and "/stand%20in.png" in server.asked


def test_a_server_that_was_busy_is_asked_again(server, tmp_path):
    found = fetch_pictures([f"{server.url}/busy-5.png", f"{server.url}/gone.png"], tmp_path)
    assert found[f"{server.url}/busy-5.png"].file and server.asked.count("/busy-5.png") == 2
    assert server.asked.count("/gone.png") == 1


@pytest.mark.parametrize("name", ["drip.png", "slow-header.png"])
def test_a_dripping_server_is_left_after_the_time_for_all_of_it(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(training_pictures, "SECONDS", 0.4)
    monkeypatch.setattr(training_pictures, "TRIES", 1)
    start = time.monotonic()
    found = fetch_pictures([f"{server.url}/{name}"], tmp_path)
    assert time.monotonic() - start < 5
    assert found[f"{server.url}/{name}"].reason == "takes too long"


def test_local_addresses_are_not_asked(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MEMLIB_LOCAL")
    port = server.url.rsplit(":", 1)[1]
    urls = [f"http://{host}:{port}/good-1.png" for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0")]
    found = fetch_pictures(urls, tmp_path)
    assert {found[url].reason for url in urls} <= {"a local address", "does not answer"} and found[urls[0]].reason == "a local address"
    assert server.asked == []


def test_a_redirect_to_a_local_address_is_not_followed(server, monkeypatch):
    # The first address counts as public, as a list's would; the one that it leads to does not.
    real, hosts = ipaddress.ip_address, []

    def once_public(text):
        hosts.append(text)
        return real("93.184.215.14") if len(hosts) == 1 else real(text)

    monkeypatch.setattr(ipaddress, "ip_address", once_public)
    with pytest.raises(DownloadError, match="a local address"):
        download(f"{server.url}/moved.png", io.BytesIO(), max_bytes=10**6, seconds=5)
    assert server.asked == ["/moved.png"]


def test_pictures_are_told_by_their_content(server, tmp_path, monkeypatch):
    contents = {"good-1": picture_bytes(1, "GIF"), "good-2": picture_bytes(2, "TIFF"), "good-3": picture_bytes(3, "WEBP")}
    monkeypatch.setitem(globals(), "picture_bytes", lambda value, kind="PNG": contents.get(f"good-{value}"))
    urls = [f"{server.url}/good-{n}.png" for n in (1, 2, 3)]
    gif, tiff, webp = (fetch_pictures(urls, tmp_path)[url] for url in urls)
    assert tiff.reason == "no picture" and webp.file.endswith(".webp")
    # A GIF is among what the readers of pictures take.
    assert gif.file.endswith(".gif") and read_pictures([tmp_path / gif.file], 20).shape == (1, 20, 20, 3)
    assert abs(int(read_pictures([tmp_path / gif.file], 20)[0, 0, 0, 0]) - 1) <= 1


def test_a_picture_of_too_many_pixels_is_not_decoded(server, tmp_path, monkeypatch):
    monkeypatch.setattr(training_pictures, "MAX_PIXELS", 20 * 30 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert fetch_pictures([f"{server.url}/good-1.png"], tmp_path)[f"{server.url}/good-1.png"].reason == "too many pixels"


def test_one_picture_from_several_addresses_is_a_stand_in(tmp_path):
    table = pd.DataFrame({"prompt": list("abcd"), "origin": ["membench"] * 3 + ["webster"], "url": ["u1", "u2", "u3", "u3"]})
    same = {"u1": Fetched("x.png", "x"), "u2": Fetched("x.png", "x"), "u3": Fetched("y.png", "y")}
    kept, counts = with_pictures(table, same, tmp_path)
    # One address of two prompts is no stand-in: captions share pictures.
    assert list(kept["prompt"]) == ["c", "d"] and (kept["training_picture"] != "").all()
    assert next(count for name, count in counts.items() if "stand-in" in name) == 2


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("http://a/one two.jpg", ["http://a/one two.jpg"]),
        ("http://a/one two.jpg https://b/3", ["http://a/one two.jpg", "https://b/3"]),
        ("http://a/b,c.jpg", ["http://a/b,c.jpg"]),
        ("['http://a/1', 'http://a/2']", ["http://a/1", "http://a/2"]),
        ('["http://a/1", "http://a/1"]', ["http://a/1"]),
        ("http://a/1 | http://a/2", ["http://a/1", "http://a/2"]),
        ("[broken", ["[broken"]),
        (float("nan"), []),
        (None, []),
    ],
)
def test_addresses_of_a_cell(cell, expected):
    assert addresses(cell) == expected


@pytest.fixture
def lists(tmp_path, server):
    """Two verbatim prompts (one without a live address) and six of MemBench.

    Those are two sound ones, one dead, one of two pictures, one of both lists, and one unstable.
    """
    live = {name: f"{server.url}/good-{i}.png" for i, name in enumerate(("a", "c", "d", "h"), 1)}
    (tmp_path / "mv.csv").write_text("prompt\nA & a\nB\n")
    (tmp_path / "known.csv").write_text(f"caption,url\nA & a,{live['a']}\nB,{server.url}/gone-1.png\nother,{live['c']}\n")
    rows = [("C", [live["c"]]), ("D", [live["d"]]), ("E", [f"{server.url}/gone-2.png"]), ("F", [live["c"], live["d"]]), ("B", [live["c"]]),
            ("H", [live["h"]])]  # fmt: skip
    pd.DataFrame(rows, columns=["prompt", "urls"]).to_csv(tmp_path / "membench.csv", index=False)
    return [load_prompts(tmp_path / name) for name in ("mv.csv", "known.csv", "membench.csv")]


class Run:
    """An experiment whose pictures have known similarities to their training pictures: three seeds each."""

    known = {"A & a": [0.9, 0.9, 0.9], "C": [0.76, 0.8, 0.9], "D": [0.75, 0.75, 1.0], "H": [0.99, 0.99, 0.74]}

    def __init__(self, available=True):
        self.metrics = SimpleNamespace(copy=SimpleNamespace(available=available, reason="SSCD is not at hand."))
        self.judged = []

    def group(self, prompts):
        assert (prompts.table["training_picture"] != "").all()
        self.judged += list(prompts.prompts)
        return SimpleNamespace(score=lambda name: np.array([self.known[prompt] for prompt in prompts.prompts]))


def test_the_protocol_keeps_what_the_text_says(lists, tmp_path, server):
    run = Run()
    found = build(run, lists, tmp_path / "pictures")
    assert list(found.table["prompt"]) == ["A & a", "B", "C", "D"]
    assert list(found.table["origin"]) == ["webster", "webster", "membench", "membench"]
    assert run.judged == ["A & a", "C", "D", "H"]
    pictures = dict(zip(found.table["prompt"], found.table["training_picture"]))
    assert pictures["B"] == "" and np.array(Image.open(pictures["C"]))[0, 0, 0] == 2
    counts = found.counts
    assert counts["of these with several training pictures or none"] == 1 and counts["of these in both lists or twice"] == 1
    assert counts["prompts of MemBench without a training picture (left out)"] == 1 and counts["addresses: answers 404"] == 2
    assert counts["prompts of MemBench below 0.75 with some seed"] == 1
    assert "verbatim 2 (reported 86), membench 2 (reported 372), together 4 (reported 458)" in found.as_text()
    # The file is a prompt set that a notebook takes.
    found.table.to_csv(tmp_path / "out.csv", index=False)
    assert load_prompts(tmp_path / "out.csv").prompts == ("A & a", "B", "C", "D")


def test_bounds_and_missing_columns_are_refused(lists, tmp_path):
    table = pd.DataFrame({"prompt": ["x"], "origin": ["membench"], "training_picture": ["p"]})
    assert len(select(table, np.array([0.75])).table) == 1 and len(select(table, np.array([0.7499])).table) == 0
    assert len(select(table, np.array([np.nan])).table) == 0
    for bound in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError):
            select(table, np.array([0.8]), bound)
    with pytest.raises(InputError, match="no column 'url'"):
        candidates(lists[0], lists[0], lists[2])
    with pytest.raises(NotMeasured):
        lowest_similarity(Run(available=False), table)
