"""A store at scale: what a look-up takes as it grows, how fast it is verified, what a picture weighs, and another one merged into it.

    memlib bench store --pictures 100000

Pictures are made up, of MiniSD's size and about its bytes, and lie in a temporary folder in the store's own layout; it is gone afterwards. Times are the
processor's, so that what else runs on the machine hardly counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from memlib.base.hashing import digest
from memlib.base.store import Store
from memlib.base.store.care import merge, verify
from memlib.base.store.entries import KINDS
from memlib.base.writing import write_table
from memlib.companion.book.progress import told
from memlib.experiment.provenance import provenance

SIDE = 64
LOOKED_UP = 1000
# What a picture's recipe is like: as many names and hashes as that of a sampled one.
RECIPE = {
    "cond": digest("cond"), "uncond": digest("uncond"), "weights": digest("weights"), "dtype": "torch.bfloat16", "steps": 50, "sampler": 3,
    "guidance": {"rule": "constant", "scale": 7.5}, "scheduler": {"class": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012},
}  # fmt: skip


def key_of(number: int) -> str:
    """The key of the made-up picture `number`."""
    return digest({**RECIPE, "seed": number})


def picture(number: int) -> np.ndarray:
    """A picture uint8 [64, 64, 3] of its own for each number: a ramp under noise that compresses as sampled pictures do."""
    noise = np.random.default_rng(number).integers(0, 16, (SIDE, SIDE, 3))
    return (np.linspace(0, 200, SIDE)[:, None, None] + noise).astype(np.uint8)


def fill(store: Store, numbers: Iterable[int]) -> None:
    """Put made-up pictures where the store has its entries, without waiting for the disk after each one."""
    kind = KINDS["pictures"]
    for number in numbers:
        path = store.path("pictures", key_of(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kind.dump(path.stem, picture(number), {**RECIPE, "seed": number}))


def look_up(store: Store, numbers: Iterable[int]) -> float:
    """Seconds of the processor that reading one of these pictures takes: the median over tenths of them."""
    seconds = []
    for keys in np.array_split([key_of(number) for number in numbers], 10):
        began = time.process_time()
        for key in keys:
            store.read_picture(str(key))
        seconds.append((time.process_time() - began) / len(keys))
    return float(np.median(seconds))


def measure(pictures: int, folder: Path) -> pd.DataFrame:
    """Fill a store in `folder` tenfold up to so many pictures, a row of texts a size; the last row says what merging another one took.

    Raises AssertionError where a picture is not found, verified or merged as it must be.
    """
    store, other, rows, there = Store(folder / "store"), Store(folder / "other"), [], 0
    for size in sorted({max(10, pictures // 100), max(10, pictures // 10), pictures}):
        began = time.perf_counter()
        fill(store, range(there, size))
        told(f"{size:,} pictures written in {time.perf_counter() - began:.0f} s")
        there, chosen = size, np.random.default_rng(size).integers(0, size, LOOKED_UP)
        found, absent = look_up(store, chosen), look_up(store, chosen + 10 * pictures)
        began = time.process_time()
        sound = verify(store)
        rate = size / (time.process_time() - began)
        assert sound.sound == {"pictures": size} and not sound.broken and not sound.foreign
        status = [path.stat() for path in store.entries("pictures")]
        rows.append({
            "pictures": f"{size:,}", "look-up [ms]": f"{1e3 * found:.2f}", "look-up of an absent one [ms]": f"{1e3 * absent:.3f}",
            "verified a second and core": f"{rate:,.0f}", "bytes a picture": f"{np.mean([s.st_size for s in status]):,.0f}",
            "bytes on the disk": f"{np.mean([s.st_blocks * 512 for s in status]):,.0f}",
        })  # fmt: skip
        told("; ".join(f"{name}: {value}" for name, value in rows[-1].items()))
    # Another machine's store: half of it is there already, one of those damaged here.
    shared, new = pictures // 20, pictures // 10 - pictures // 20
    fill(other, range(pictures - shared, pictures + new))
    store.path("pictures", key_of(pictures - 1)).write_bytes(b"damaged")
    began, wall = time.process_time(), time.perf_counter()
    done = merge(store, other)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    assert (done.taken, done.repaired, done.already_there, done.conflicts) == (new, 1, shared - 1, []), done
    assert verify(store).sound == {"pictures": pictures + new}
    merged = f"another store's {shared + new:,} merged in, of which {new:,} new and 1 for a damaged one"
    rows.append({"pictures": merged, "look-up [ms]": f"{1e3 * seconds / (shared + new):.2f} to merge one"})
    told(f"{merged}: {seconds:.1f} s of the processor, {wall:.1f} s on the wall")
    return pd.DataFrame(rows).fillna("")


def run(pictures: int, out: Path | None) -> None:
    """Carry out ``memlib bench store``: measure, print, and write where asked."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memlib-bench-") as folder:
        found = measure(pictures, Path(folder))
    told(f"\n{found.to_string(index=False)}")
    if out is not None:
        write_table(out, found.assign(provenance=str(provenance({"pictures": f"{SIDE} x {SIDE} pixels, made up"}, started))))
