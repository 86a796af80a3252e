import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.paths import store_folder
from memlib.base.store import Store
from memlib.sampling.guidance import constant
from memlib.sampling.recipe import Recipe, picture_recipe
from memlib.sampling.stored import PictureStore


@dataclass(frozen=True)
class FakeEmbedding:
    states: torch.Tensor

    def select(self, rows):
        return FakeEmbedding(self.states[rows])


@dataclass
class FakeSubstrate:
    weights_hash: str = "w" * 64
    dtype: torch.dtype = torch.float32
    beta_end: float = 0.012

    def scheduler(self, kind, steps):
        return SimpleNamespace(config={"kind": kind, "beta_end": self.beta_end, "_private": object()})


class FakeSampler:
    """Draws noise that depends on the row and the seed alone, in batches, and records what it drew."""

    def __init__(self, stop_after=None):
        self.drawn, self.stop_after = [], stop_after

    def __call__(self, substrate, embedding, seeds, recipe, batch_size, uncond, pairs, cost):
        for start in range(0, len(pairs), batch_size or 2):
            if self.stop_after is not None and start >= self.stop_after:
                raise KeyboardInterrupt
            batch = pairs[start : start + (batch_size or 2)]
            self.drawn += [(float(embedding.states[row, 0, 0]), seed) for row, seed in batch]
            pictures = [picture_of(embedding.states[row], seed) for row, seed in batch]
            yield [row for row, _ in batch], [seed for _, seed in batch], np.stack(pictures)


def picture_of(states, seed):
    generator = np.random.default_rng([int(1000 * float(states[0, 0])), seed])
    return generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def prompts():
    return FakeEmbedding(torch.arange(4.0)[:, None, None].expand(4, 77, 3).clone())


UNCOND = torch.zeros(1, 77, 3)


def test_pictures_come_back_pixel_by_pixel_and_are_sampled_once(tmp_path, prompts):
    first = FakeSampler()
    store = PictureStore(tmp_path, first)
    made = store.pictures(FakeSubstrate(), prompts, [3, 5, 8], uncond=UNCOND)
    expected = [[picture_of(states, seed) for seed in (3, 5, 8)] for states in prompts.states]
    assert made.dtype == np.uint8 and np.array_equal(made, expected)
    assert (store.made, store.found) == (12, 0)

    second = FakeSampler()
    again = PictureStore(tmp_path, second).pictures(FakeSubstrate(), prompts, [8, 3], uncond=UNCOND)
    assert second.drawn == [] and np.array_equal(again, made[:, [2, 0]])


def test_only_what_is_absent_is_sampled(tmp_path, prompts):
    PictureStore(tmp_path, FakeSampler()).pictures(FakeSubstrate(), prompts.select([1, 3]), [0, 1], uncond=UNCOND)
    sampler = FakeSampler()
    pictures = PictureStore(tmp_path, sampler).pictures(FakeSubstrate(), prompts, [0, 1, 2], uncond=UNCOND)
    asked = [(float(row), seed) for row in range(4) for seed in range(3)]
    held = [(1.0, 0), (1.0, 1), (3.0, 0), (3.0, 1)]
    assert sorted(sampler.drawn) == [pair for pair in asked if pair not in held]
    assert np.array_equal(pictures[1, 2], picture_of(prompts.states[1], 2))


def test_everything_that_makes_a_picture_is_in_its_key(tmp_path, prompts):
    base = {"substrate": FakeSubstrate(), "recipe": Recipe(50, 7.5, "ddim"), "uncond": UNCOND}
    nudged = FakeEmbedding(prompts.states.clone())
    nudged.states[0, 76, 2] += 1e-6
    changes = [
        {},
        {"recipe": Recipe(49)},
        {"recipe": Recipe(guidance=7.4)},
        {"recipe": Recipe(scheduler="dpm")},
        {"uncond": UNCOND + 1e-6},
        {"substrate": FakeSubstrate(weights_hash="v" * 64)},
        {"substrate": FakeSubstrate(dtype=torch.float16)},
        {"substrate": FakeSubstrate(beta_end=0.02)},
        {"embedding": nudged},
        {"seeds": [1]},
    ]
    store = PictureStore(tmp_path, FakeSampler())
    keys = [store.ensure(**({"embedding": prompts.select([0]), "seeds": [0], **base} | change))[0][0] for change in changes]
    assert len(set(keys)) == len(changes)
    # The same guidance written as a whole number is the same picture.
    same = [store.ensure(FakeSubstrate(), prompts.select([0]), [0], Recipe(guidance=guidance), uncond=UNCOND) for guidance in (7, 7.0, constant(7))]
    assert same[0] == same[1] == same[2]


def test_a_seed_or_prompt_given_twice_is_sampled_once(tmp_path, prompts):
    sampler = FakeSampler()
    twice = prompts.select([1, 1])
    pictures = PictureStore(tmp_path, sampler).pictures(FakeSubstrate(), twice, [4, 4], uncond=UNCOND)
    assert sampler.drawn == [(1.0, 4)] and pictures.shape[:2] == (2, 2)
    assert (pictures == picture_of(prompts.states[1], 4)).all()


def test_a_batch_size_of_nothing_is_named_also_where_all_is_stored(tmp_path, prompts):
    store = PictureStore(tmp_path, FakeSampler())
    store.pictures(FakeSubstrate(), prompts, [0], uncond=UNCOND)
    for size in (0, -1, 2.0, True):
        with pytest.raises(InputError, match=f"Batch size {size!r} is not usable"):
            store.pictures(FakeSubstrate(), prompts, [0], uncond=UNCOND, batch_size=size)


def test_an_interrupted_run_keeps_its_finished_batches(tmp_path, prompts):
    with pytest.raises(KeyboardInterrupt):
        PictureStore(tmp_path, FakeSampler(stop_after=4)).pictures(FakeSubstrate(), prompts, [0, 1], uncond=UNCOND)
    sampler = FakeSampler()
    store = PictureStore(tmp_path, sampler)
    store.pictures(FakeSubstrate(), prompts, [0, 1], uncond=UNCOND)
    assert len(sampler.drawn) == 4 and store.found == 4 and store.broken() == []


@pytest.mark.parametrize("harm", ["truncate", "empty", "flip", "swap"])
def test_a_damaged_entry_is_noticed_and_made_again(tmp_path, prompts, harm):
    store = PictureStore(tmp_path, FakeSampler())
    whole = store.pictures(FakeSubstrate(), prompts, [0], uncond=UNCOND)
    first, second = sorted(tmp_path.glob("pictures/*/*.png"))[:2]
    content = bytearray(first.read_bytes())
    if harm == "truncate":
        content = content[: len(content) // 2]
    elif harm == "empty":
        content = b""
    elif harm == "flip":
        content[-40] ^= 4
    else:
        content = second.read_bytes()
    first.write_bytes(content)
    sampler = FakeSampler()
    store = PictureStore(tmp_path, sampler)
    assert store.broken() == [first]
    assert np.array_equal(store.pictures(FakeSubstrate(), prompts, [0], uncond=UNCOND), whole)
    assert len(sampler.drawn) == 1 and store.repaired == 1 and store.broken() == []


def test_scores_of_many_keys_are_computed_together_and_saved_as_they_come(tmp_path):
    keys = [{"metric": "m", "of": name} for name in "abcba"]
    store = Store(tmp_path)
    store.score(keys[2], lambda: 30)

    def compute(absent):
        assert absent == [0, 1]
        yield 1, np.array([2.0])
        if interrupted:
            raise KeyboardInterrupt
        yield 0, 1

    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        store.scores(keys, compute)
    assert store.score(keys[1], lambda: pytest.fail("was lost")) == [2.0]
    assert store.scores(keys, lambda absent: [(i, 1) for i in absent]) == [1, [2.0], 30, [2.0], 1] and store.made == 3
    assert store.scores(keys[:3], lambda absent: pytest.fail("computed twice")) == [1, [2.0], 30]


def test_infinity_in_a_schedulers_configuration_is_a_key():

    schedule = SimpleNamespace(config={"lambda_min_clipped": -np.inf, "beta_end": 0.012})
    substrate = SimpleNamespace(weights_hash="w", dtype="float32", scheduler=lambda kind, steps: schedule)
    recipe = picture_recipe(substrate, torch.zeros(1, 2, 2), Recipe(5, 7.5, "dpm"), 1)
    assert recipe["scheduler"] == {"class": "SimpleNamespace", "lambda_min_clipped": "-Infinity", "beta_end": 0.012}
    assert len(digest(recipe)) == 64


def test_scores_are_kept_and_broken_ones_recomputed(tmp_path):
    store, calls = Store(tmp_path), []

    def compute():
        calls.append(1)
        return {"mean": 0.1 + 0.2, "names": ["a", "ö"]}

    key = {"metric": "copy", "pictures": ["k1", "k2"], "features": np.arange(3)}
    assert store.score(key, compute) == store.score(key, compute) == {"mean": 0.1 + 0.2, "names": ["a", "ö"]}
    assert len(calls) == 1
    (path,) = tmp_path.glob("scores/*/*.json")
    path.write_text(path.read_text().replace("0.30000000000000004", "0.4"))
    assert store.broken() == [path]
    assert store.score(key, compute)["mean"] == 0.1 + 0.2 and len(calls) == 2 and store.repaired == 1

    table = np.array([[1.5, np.nan]], dtype=np.float32)
    for _ in range(2):
        kept = store.score({"metric": "table"}, lambda: table)
        assert kept.dtype == np.float32 and np.array_equal(kept, table, equal_nan=True)
    # A score of nothing at all is a score too, and is not computed twice.
    assert store.score({"metric": "none"}, lambda: None) is None
    assert store.score({"metric": "none"}, lambda: pytest.fail("computed twice")) is None


def test_dictionaries_of_arrays_are_scores_and_peeking_computes_nothing(tmp_path):
    store = Store(tmp_path)
    key, value = {"metric": "run"}, {"norm": np.arange(3, dtype=np.float32), "rows": np.float64(2), "names": ["a"]}
    assert store.peek(key) is None and not list(tmp_path.glob("scores/*/*.json"))
    store.score(key, lambda: value)
    for kept in (store.peek(key), store.score(key, lambda: pytest.fail("computed twice"))):
        assert kept["norm"].dtype == np.float32 and np.array_equal(kept["norm"], value["norm"])
        assert kept["rows"] == 2.0 and kept["names"] == ["a"]


def test_digest_ignores_order_and_notices_types():
    assert digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
    assert digest("1") != digest(1) and digest([1, 2]) != digest([2, 1])
    floats = np.arange(6, dtype=np.float32)
    assert digest(floats) != digest(floats.reshape(2, 3)) != digest(floats.astype(np.float64).reshape(2, 3))
    assert digest(floats.reshape(2, 3).T) != digest(floats.reshape(3, 2))
    half = torch.arange(6, dtype=torch.bfloat16)
    assert digest(half) == digest(half.clone()) != digest(half + 1)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    for unusable in ({1: 2}, {"a": {1, 2}}, object(), float("nan")):
        with pytest.raises(InputError, match="store key"):
            digest(unusable)


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(tmp_path, monkeypatch, prompts):
    store = PictureStore(tmp_path, FakeSampler())
    store.pictures(FakeSubstrate(), prompts, [0], uncond=UNCOND)

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(InputError, match="is full: free some space or set MEMLIB_STORE"):
            store.pictures(FakeSubstrate(), prompts, [1], uncond=UNCOND)
    assert list((tmp_path / "tmp").iterdir()) == [] and store.broken() == []
    assert store.pictures(FakeSubstrate(), prompts, [0, 1], uncond=UNCOND).shape == (4, 2, 8, 8, 3)


def test_unusable_folders_pictures_and_rules_are_refused(tmp_path, prompts):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "file")
    store = PictureStore(tmp_path, FakeSampler())
    with pytest.raises(InputError, match="uint8"):
        store.write_picture("a" * 64, np.zeros((8, 8, 3)))
    with pytest.raises(InputError, match="at least one prompt"):
        store.pictures(FakeSubstrate(), prompts, [], uncond=UNCOND)
    with pytest.raises(InputError, match="guidance rule"):
        store.pictures(FakeSubstrate(), prompts, [0], Recipe(guidance=lambda step: 1), uncond=UNCOND)


def test_the_recipe_travels_inside_the_picture(tmp_path, prompts):
    from PIL import Image

    store = PictureStore(tmp_path, FakeSampler())
    ((key,),) = store.ensure(FakeSubstrate(), prompts.select([2]), [7], uncond=UNCOND)
    (path,) = tmp_path.glob(f"pictures/{key[:2]}/{key}.png")
    recipe = json.loads(Image.open(path).text["recipe"])
    assert recipe["seed"] == 7 and recipe["guidance"] == {"rule": "constant", "scale": 7.5}
    assert digest(recipe) == key


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "elsewhere"))
    assert store_folder() == tmp_path / "elsewhere" and Store().root.is_dir()


WRITER = '''
import sys, time
import numpy as np
import memlib.base.store
from memlib.base.store import Store

class SlowFile:
    """Writes piece by piece, so that a kill finds the file half written."""
    def __init__(self, *args):
        self.file = open(*args, buffering=0)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, content):
        for start in range(0, len(content), 4096):
            self.file.write(content[start : start + 4096])
            time.sleep(0.0005)
    def flush(self):
        pass
    def fileno(self):
        return self.file.fileno()

memlib.base.store.open = SlowFile
store = Store(sys.argv[1])
pictures = np.random.default_rng(int(sys.argv[2])).integers(0, 256, (3, 200, 200, 3), dtype=np.uint8)
for number in range(100_000):
    print(number, flush=True)
    store.write_picture(f"{number % 20:064x}", pictures[number % 3])
    store.score({"number": number, "writer": sys.argv[2]}, lambda: list(range(2000)))
'''


@pytest.mark.slow
def test_kill_9_in_mid_write_never_leaves_a_broken_entry(tmp_path):
    draw = np.random.default_rng(0)
    for attempt in range(6):
        # Two writers on the same keys: one is killed while the other goes on.
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], stdout=subprocess.PIPE) for name in (str(attempt), str(attempt + 100))]
        last = b"10\n" if attempt == 0 else b"1\n"
        for writer in writers:
            # Both are at work, however slow the machine is, and are stopped somewhere inside a write.
            while writer.stdout.readline() != last:
                assert writer.poll() is None
        for writer in writers:
            time.sleep(draw.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
    store = Store(tmp_path)
    assert len(list(tmp_path.glob("pictures/*/*.png"))) >= 10 and len(list(tmp_path.glob("scores/*/*.json"))) >= 20
    assert store.broken() == []
    assert list((tmp_path / "tmp").iterdir()), "no writer was stopped in mid-write: the test shows nothing"


def test_leftovers_are_swept_when_their_writer_is_dead_and_not_when_they_are_old(tmp_path):
    """Also with clocks that differ by days: the locks of a process end with it, and nothing else decides."""
    code = f"""
import time
from pathlib import Path
from memlib.base.writing import replacing
with replacing(Path({str(tmp_path / "pictures" / "x")!r}), Path({str(tmp_path / "tmp")!r})) as temporary:
    temporary.write_bytes(b"half")
    print(flush=True)
    time.sleep(60)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        writer.stdout.readline()
    living = list((tmp_path / "tmp").iterdir())
    assert len(living) == 2
    for path in living:
        os.utime(path, (0, 0))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / ("a" * 64 + ".lock")).write_text("")
    Store(tmp_path).score({"a": 1}, lambda: 1.0)
    assert sorted((tmp_path / "tmp").iterdir()) == sorted(living) and list((tmp_path / "claims").iterdir()) == []
    for writer in writers:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    Store(tmp_path).score({"a": 2}, lambda: 1.0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_with_the_real_sampler_pictures_are_those_of_sampling(tmp_path, sd1_tiny):
    from memlib.models.substrate import load
    from memlib.prompts.embedding import encode_prompts
    from memlib.sampling.batches import Cost, sample

    substrate = load(str(sd1_tiny), device="cpu", dtype="float32")
    embedding = encode_prompts(substrate, ["a cat", "<b>two</b> dogs & a bird"])
    store, cost = PictureStore(tmp_path), Cost()
    kept = store.pictures(substrate, embedding, [0, 1], Recipe(2), batch_size=3, cost=cost)
    assert np.abs(kept.astype(int) - sample(substrate, embedding, [0, 1], Recipe(2))).max() <= 1
    assert cost.pictures == 4 and store.made == 4
    again = PictureStore(tmp_path)
    # Encoded alone, a prompt has the same embedding and is found.
    alone = encode_prompts(substrate, ["<b>two</b> dogs & a bird"])
    assert np.array_equal(again.pictures(substrate, alone, [1], Recipe(2), cost=cost)[0, 0], kept[1, 1])
    assert again.found == 1 and cost.pictures == 4


def test_two_processes_that_want_the_same_pictures_make_them_once(tmp_path, prompts):
    """The second asks while the first is at work, with its first batch stored: it waits, makes nothing, and returns the same."""
    inside, counts, pictures = threading.Event(), {}, {}

    class Slow(FakeSampler):
        def __call__(self, *arguments, **named):
            for number, batch in enumerate(super().__call__(*arguments, **named)):
                yield batch
                if number == 0:
                    inside.set()
                    time.sleep(1.0)

    def ask(name, sampler):
        store = PictureStore(tmp_path, sampler)
        pictures[name] = store.pictures(FakeSubstrate(), prompts, [1, 2], uncond=UNCOND)
        counts[name] = store.made, store.found

    first = threading.Thread(target=ask, args=("first", Slow()))
    first.start()
    assert inside.wait(10)
    late = FakeSampler()
    ask("second", late)
    first.join()
    assert counts == {"first": (8, 0), "second": (0, 8)} and late.drawn == []
    assert np.array_equal(pictures["first"], pictures["second"])


@pytest.mark.slow
def test_a_claim_ends_with_its_process_and_scores_are_made_once(tmp_path):
    code = f"""
import os, time
from memlib.base.store import Store
from memlib.sampling.stored import PictureStore
store = Store({str(tmp_path)!r})
def compute(absent):
    yield 0, 1.0
    open({str(tmp_path / "begun")!r}, "w").close()
    time.sleep(60)
store.scores([{{"a": 1}}, {{"a": 2}}], compute)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    asked = []

    def compute(absent):
        asked.append(list(absent))
        yield from ((position, 2.0) for position in absent)

    threading.Timer(0.5, process.kill).start()
    assert Store(tmp_path).scores([{"a": 1}, {"a": 2}], compute) == [1.0, 2.0] and asked == [[1]]
    process.wait()


def test_folders_of_the_environment_mean_one_place_for_everybody(tmp_path, monkeypatch):
    """``~`` is the home folder, and a relative folder the same one from wherever it is looked for."""
    from memlib.base.paths import ROOT, data_folder
    from memlib.metrics.weights import cache_folder
    from memlib.models.minisd.paths import runs_folder
    from memlib.prompts.training_pictures import training_folder

    named = {
        "MEMLIB_STORE": store_folder,
        "MEMLIB_DATA": data_folder,
        "MEMLIB_RUNS": runs_folder,
        "MEMLIB_METRICS": cache_folder,
        "MEMLIB_TRAINING": training_folder,
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, folder in named.items():
        monkeypatch.setenv(variable, "~/kept")
        assert folder() == tmp_path / "kept"
        monkeypatch.setenv(variable, "made/kept")
        for place in (tmp_path, ROOT / "notebooks"):
            monkeypatch.chdir(place)
            assert folder() == ROOT / "made" / "kept"
    assert Store("~/pictures").root == tmp_path / "pictures"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_serves(tmp_path, monkeypatch, number):
    import fcntl

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = Store(tmp_path)
    assert store.scores([{"a": 1}, {"a": 2}], lambda absent: [(place, float(place)) for place in absent]) == [0.0, 1.0]
    assert Store(tmp_path).peek({"a": 2}) == 1.0


def test_a_store_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    Store(tmp_path).score({"a": 1}, lambda: 2.0)

    def closed(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("open", "replace"):
        monkeypatch.setattr(os, name, closed)
    monkeypatch.setattr("memlib.base.writing.open", closed, raising=False)
    assert Store(tmp_path).score({"a": 1}, lambda: 3.0) == 2.0
    with pytest.raises(InputError, match="cannot be written to"):
        Store(tmp_path).score({"a": 2}, lambda: 3.0)
