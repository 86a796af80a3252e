"""Several worker processes against one: pictures per second and speed-up, with the same pictures in the end.

    memlib bench workers --substrate minisd-v1 --workers 1 --workers 2

Every number of workers makes the same pictures into an empty store of its own. Starting processes and loading the model is timed apart: each
worker first makes one picture of a prompt that is not counted.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROMPT = "a photograph of a lighthouse in the snow, number {}"


def measure(substrate: str, workers: list[int], pictures: int, batch_size: int, **settings: Any) -> pd.DataFrame:
    """A row for each number of workers: seconds to start, seconds for the pictures, their rate, the rate over that of the first number, and the
    largest difference of a pixel to the pictures of the first number (0 to 255)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows, first = [], None
        for place, count in enumerate(workers):
            starting, seconds, made = _timed(substrate, count, pictures, batch_size, Path(folder) / str(place), settings)
            first = made if first is None else first
            rows.append({"workers": count, "starting [s]": starting, "pictures": pictures, "seconds": seconds, "pictures a second": pictures / seconds,
                         "speed-up": rows[0]["seconds"] / seconds if rows else 1.0, "largest difference": _apart(made, first)})  # fmt: skip
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame) -> str:
    """The table with few digits."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.2f}")


def _timed(substrate: str, count: int, pictures: int, batch_size: int, root: Path, settings: dict[str, Any]) -> tuple[float, float, np.ndarray]:
    """Seconds until `count` workers have loaded the model, seconds for the pictures, and these."""
    from memlib.companion.distributed import Work, cluster, parts, results, run_parts, sample_part
    from memlib.experiment.run import Experiment
    from memlib.prompts.sets import PromptSet

    made = Experiment(substrate, n_seeds=1, store=root, **settings)
    names = tuple(PROMPT.format(number) for number in range(pictures))
    group = made.group(PromptSet("timed", names, pd.DataFrame({"prompt": names}), "memlib.companion.bench", "none"))
    warm = made.group(PromptSet("warm", (PROMPT.format("none"),), pd.DataFrame({"prompt": [PROMPT.format("none")]}), "memlib.companion.bench", "none"))
    work = Work(substrate, str(root.resolve()), edit="none", **settings)
    began = time.perf_counter()
    with cluster("local", count) as client:
        client.wait_for_workers(count)
        [task] = parts(warm, "none", 1)
        # To every worker by its address, each with a store of its own, so that each loads the model.
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
        own = [Work(substrate, f"{root}-{number}", edit="none", **settings) for number in range(count)]
        loading = [
            client.submit(sample_part, one, task, workers=[address], allow_other_workers=True, pure=False) for one, address in zip(own, addresses, strict=True)
        ]
        results(client, loading, progress=False)
        starting, began = time.perf_counter() - began, time.perf_counter()
        run_parts(client, sample_part, work, parts(group, "none", batch_size), progress=False)
        seconds = time.perf_counter() - began
    return starting, seconds, group.pictures()


def _apart(pictures: np.ndarray, first: np.ndarray) -> int:
    return int(np.abs(pictures.astype(int) - first).max())
