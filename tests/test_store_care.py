"""Checking, merging, counting and pruning stores: with broken, foreign and conflicting entries made by hand."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.base.hashing import digest, digest_of_json
from memlib.base.store import Store
from memlib.base.store.care import Chosen, merge, open_store, prune, size, stats, verify
from memlib.companion.bench import store as benchmark
from memlib.companion.commands import main

RECIPE = {"weights": "ab" * 32, "steps": 50, "dtype": "torch.float16", "guidance": {"rule": "constant", "scale": 7.5},
          "scheduler": {"class": "DDIMScheduler"}}  # fmt: skip


NOBODY = 65_534


def recipe(seed, **changes):
    return {**RECIPE, "seed": seed, **changes}


def picture(value):
    return np.full((8, 8, 3), value, np.uint8)


def put(store, seed, value=None, **changes):
    """Store a picture under the key of its recipe and return its path."""
    made = recipe(seed, **changes)
    return store.write_picture(digest(made), picture(seed if value is None else value), made)


@pytest.fixture
def stores(tmp_path):
    return Store(tmp_path / "ours"), Store(tmp_path / "theirs")


def test_verify_tells_sound_broken_and_foreign_apart(stores):
    store, _ = stores
    put(store, 1)
    cut = put(store, 2)
    cut.write_bytes(cut.read_bytes()[:60])
    store.score({"metric": "m"}, lambda: 1.0)
    (score,) = store.root.glob("scores/*/*.json")
    stray = score.with_name("notes.json")
    stray.write_text("{}")
    moved = store.root / "pictures" / "zz" / cut.name
    moved.parent.mkdir()
    moved.write_bytes(put(store, 3).read_bytes())
    # Sound in itself, and yet not made of what its name is the hash of.
    renamed = store.write_picture(digest({"other": 1}), picture(9), recipe(4))
    found = verify(store)
    assert found.sound == {"pictures": 2, "scores": 1}
    assert found.broken == [cut] and sorted(found.foreign) == sorted([stray, moved, renamed])


def test_merging_takes_what_is_absent_and_overwrites_nothing_sound(stores):
    ours, theirs = stores
    same, broken = put(ours, 1), put(ours, 2)
    put(theirs, 1), put(theirs, 2)
    broken.write_bytes(b"")
    conflict = put(ours, 3, value=10)
    put(theirs, 3, value=20)
    new, damaged = put(theirs, 4), put(theirs, 5)
    damaged.write_bytes(damaged.read_bytes()[:50])
    (theirs.root / "pictures" / "readme.txt").write_text("hello")
    ours.score({"metric": "m"}, lambda: 1.0), theirs.score({"metric": "m"}, lambda: 2.0)
    theirs.score({"metric": "n"}, lambda: np.arange(3))
    before = {path: path.read_bytes() for path in (same, conflict)}

    done = merge(ours, theirs)
    assert (done.taken, done.repaired, done.already_there, done.broken, done.foreign) == (2, 1, 1, 1, 1)
    assert len(done.conflicts) == 2 and conflict in done.conflicts
    assert all(path.read_bytes() == content for path, content in before.items())
    assert ours.score({"metric": "m"}, lambda: pytest.fail("computed again")) == 1.0
    assert list(ours.score({"metric": "n"}, lambda: pytest.fail("not taken over"))) == [0, 1, 2]
    assert np.array_equal(ours.read_picture(new.stem), picture(4)) and np.array_equal(ours.read_picture(broken.stem), picture(2))
    assert ours.read_picture(damaged.stem) is None and damaged.exists() and verify(ours).broken == []
    again = merge(ours, theirs)
    assert again.taken == again.repaired == 0 and again.already_there == 4


def test_a_store_is_not_merged_with_itself_or_with_any_folder(stores, tmp_path):
    ours, _ = stores
    with pytest.raises(InputError, match="with itself"):
        merge(ours, open_store(ours.root))
    with pytest.raises(InputError, match="There is no store"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="is no store"):
        open_store(tmp_path / "photos")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cat.jpg"]


def test_pruning_is_dry_at_first_and_goes_by_age_and_recipe(stores):
    store, _ = stores
    old, young = put(store, 1, steps=10), put(store, 2, steps=10)
    other = put(store, 3)
    for path in (old, other):
        os.utime(path, (0, 0))
    store.score({"metric": "m", "steps": 10}, lambda: 1.0)
    ten = Chosen(where={"steps": "10"})
    assert prune(store, ten)[0] == 3 and old.exists() and young.exists()
    assert prune(store, Chosen(where={"steps": "10"}, kinds=("pictures",)))[0] == 2
    assert prune(store, Chosen(days=30))[0] == 2
    count, freed = prune(store, Chosen(days=30, where={"steps": "10"}), remove=True)
    assert count == 1 and freed > 0 and not old.exists() and young.exists() and other.exists()
    assert prune(store, Chosen(where={"weights": "abababab"}))[0] == 2
    assert prune(store, Chosen(where={"weights": "abab"}))[0] == 0  # too short for a hash to be meant
    assert prune(store, Chosen(where={"guidance.scale": "7.5", "seed": "3"}))[0] == 1
    assert prune(store, Chosen(where={"guidance.scale.more": "7.5"}))[0] == 0
    for unclear in ({}, {"days": -1}, {"days": float("nan")}):
        with pytest.raises(InputError):
            Chosen(**unclear)


def test_stats_group_by_what_entries_were_made_with(stores):
    store, _ = stores
    for seed in range(3):
        put(store, seed)
    put(store, 0, mitigation={"mitigation": "wen", "version": 1})
    store.write_picture("0" * 64, picture(0))
    store.score({"score": "similarity"}, lambda: 1.0)
    rows = stats(store)
    counted = {row["made with"]: row["entries"] for row in rows}
    assert counted["DDIMScheduler, 50 steps, float16, guidance 7.5"] == 3
    assert counted["DDIMScheduler, 50 steps, float16, guidance 7.5, wen"] == 1
    assert counted["not stated"] == 1 and counted["similarity"] == 1
    assert sum(row["bytes"] for row in rows) == sum(p.stat().st_size for kind in ("pictures", "scores") for p in store.entries(kind))


def test_the_commands_say_what_they_did(stores, capsys):
    ours, theirs = stores
    put(theirs, 1)
    broken = put(ours, 2)
    broken.write_bytes(b"half")
    assert main(["store", "verify", "--store", str(ours.root)]) == 1
    assert "broken: pictures/" in capsys.readouterr().out
    assert main(["store", "verify", "--remove", "--store", str(ours.root)]) == 0 and not broken.exists()
    assert main(["store", "merge", str(theirs.root), "--store", str(ours.root)]) == 0
    assert "1 taken over" in capsys.readouterr().out
    assert main(["store", "stats", "--store", str(ours.root)]) == 0 and "50 steps" in capsys.readouterr().out
    assert main(["store", "prune", "--where", "steps=50", "--store", str(ours.root)]) == 0
    assert "1 entries" in (said := capsys.readouterr().out) and "add --yes" in said
    assert main(["store", "prune", "--where", "steps=50", "--yes", "--store", str(ours.root)]) == 0
    assert not list(ours.entries("pictures"))
    capsys.readouterr()
    for wrong in (["prune"], ["prune", "--where", "steps"], ["stats", "--store", str(ours.root / "nowhere")]):
        assert main(["store", *wrong, *([] if "--store" in wrong else ["--store", str(ours.root)])]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_sizes_are_readable():
    assert [size(n) for n in (0, 999, 1000, 39_400_000_000, 2e15)] == ["0 B", "999 B", "1.0 kB", "39.4 GB", "2000.0 TB"]


def test_entries_damaged_in_any_way_are_counted_and_stop_nothing(tmp_path):
    """Another format under the name of a picture, a nest that no reader survives, a folder in an entry's place, text without end."""
    from PIL import Image

    store = Store(tmp_path)
    sound = store.put("scores", digest({"a": 1}), 1.0, {"a": 1})
    broken = [store.path("pictures", digest({"n": number})) for number in range(2)] + [store.path("scores", digest({"n": number})) for number in range(3)]
    for path in broken:
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(broken[0], format="JPEG")
    broken[1].write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 100)
    broken[2].write_text("[" * 200_000)
    broken[3].write_text('{"key": 1')
    broken[4].write_text(f'{{"key": "{broken[4].stem}", "check": 0, "value": 1}}')
    huge, pipe = store.path("pictures", digest({"n": 7})), store.path("scores", digest({"n": 8}))
    for path in (huge, pipe):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(huge, "wb") as file:
        file.truncate(2**40)  # a TB that takes no room
    os.mkfifo(pipe)  # whoever opens it waits without end
    broken += [huge, pipe]
    folder = store.path("scores", digest({"n": 9}))
    folder.mkdir(parents=True)
    found = verify(store)
    assert found.sound == {"scores": 1} and sorted(found.broken) == sorted(broken) and found.foreign == [folder]
    assert sum(row["entries"] for row in stats(store)) == 9 and merge(Store(tmp_path / "other"), store).taken == 1 and sound.exists()
    with pytest.raises(InputError, match="folder lies where the store keeps a file"):
        store.score({"n": 9}, lambda: 1.0)
    assert store.score({"n": 0}, lambda: 1.0) == 1.0 and store.repaired == 2


@pytest.fixture
def nobody():
    """A folder, and the rights of somebody whom permissions hold: root's go past them."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield folder
    if os.getuid() == 0:
        os.seteuid(0)
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_counted_and_stops_nothing(nobody):
    store = Store(nobody / "store")
    paths = [put(store, seed) for seed in range(4)]
    paths[0].chmod(0)
    paths[1].parent.chmod(0)
    with pytest.raises(PermissionError):
        paths[0].read_bytes()  # or this test shows nothing
    found = verify(store)
    assert found.sound == {"pictures": 2} and found.broken == [paths[0]] and found.foreign == [paths[1].parent]
    assert merge(Store(nobody / "other"), store).taken == 2


def test_a_store_that_may_only_be_read_is_verified_and_merged_from(nobody):
    theirs, ours = Store(nobody / "theirs"), Store(nobody / "ours")
    path = put(theirs, 1)
    theirs.score({"metric": "m"}, lambda: 1.0)
    for inside in [*theirs.root.rglob("*"), theirs.root]:
        inside.chmod(0o555 if inside.is_dir() else 0o444)
    with pytest.raises(PermissionError):
        (theirs.root / "new").touch()  # or this test shows nothing
    before = sorted(theirs.root.rglob("*"))
    assert verify(open_store(theirs.root)).sound == {"pictures": 1, "scores": 1}
    assert merge(ours, open_store(theirs.root)).taken == 2 and np.array_equal(ours.read_picture(path.stem), picture(1))
    assert sum(row["entries"] for row in stats(open_store(theirs.root))) == 2 and sorted(theirs.root.rglob("*")) == before


def test_the_benchmark_finds_verifies_and_merges_what_it_wrote(tmp_path, monkeypatch):
    """Its pictures are entries like any other, and its checks fail where one is not as it must be."""
    monkeypatch.setattr(benchmark, "LOOKED_UP", 20)
    found = benchmark.measure(200, tmp_path)
    assert list(found["pictures"])[:3] == ["10", "20", "200"] and "20 merged in, of which 10 new and 1 for a damaged one" in found["pictures"].iloc[-1]
    made = Store(tmp_path / "store")
    assert len(list(made.entries("pictures"))) == 210
    np.testing.assert_array_equal(made.read_picture(benchmark.key_of(7)), benchmark.picture(7))
    assert made.read_picture(benchmark.key_of(10_000)) is None
    sampled = made.path("pictures", benchmark.key_of(7)).stat().st_size
    assert float(found["bytes a picture"].iloc[2].replace(",", "")) == pytest.approx(sampled, rel=0.02)
    with pytest.raises(AssertionError):  # half of what it counts on is not new
        benchmark.measure(200, tmp_path)


def test_what_a_recipe_from_a_file_hashes_to_is_its_key():
    recipe = {"b": [1, 2.5, None, True], "a": {"text": "ä", "empty": {}}}
    assert digest_of_json(json.loads(json.dumps(recipe))) == digest(recipe)
    with pytest.raises(InputError, match="NaN"):
        digest_of_json({"a": float("nan")})
