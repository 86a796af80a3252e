"""What a training step costs under each mitigation: steps of all of them timed in turns, in one process.

Run after run would compare the machine's load at different times. A step here is loss and gradient; optimizer and average are the same for all.
"""

from __future__ import annotations

import csv
import time

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.minisd.paths import settings
from memlib.results.trainings import PLAIN, table_file
from memlib.training.minisd.mitigated import design, run_name
from memlib.training.minisd.train import unet_part

COLUMNS = ("mitigation", "repeat", "seconds")
WARM_UP = 2  # turns that are not counted


def time_steps(repeats: int = 12, device: str = "auto") -> list[dict]:
    """Time `repeats` steps of the plain training and of each mitigation, in turns; write and return one row a step.

    `seconds` of loss and gradient of the same batch. Raises InputError for less than two repeats.
    """
    if repeats < 2:
        raise InputError(f"{repeats} repeats do not show a spread: use 2 or more.")
    place = device_of(device)
    seed = settings()["replicates"]["seeds"][0]
    names = [PLAIN, *(name for name, _ in design(None, [seed]))]
    parts = {name: unet_part(run_name(name, seed), place, bfloat16_pays(place)) for name in names}
    for part in parts.values():
        part.module.to(place)
    rows = []
    for turn in range(WARM_UP + repeats):
        for name, part in parts.items():
            part.module.zero_grad(set_to_none=True)
            started = _clock(place)
            part.loss(turn)[0].backward()
            rows.append({"mitigation": name, "repeat": turn - WARM_UP, "seconds": round(_clock(place) - started, 5)})
    rows = [row for row in rows if row["repeat"] >= 0]
    with open(table_file("training_cost"), "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def print_costs(rows: list[dict]) -> None:
    """Print each mitigation's step as a ratio to the plain step of the same turn: median, and the middle half."""
    names = dict.fromkeys(row["mitigation"] for row in rows)
    seconds = {name: np.array([row["seconds"] for row in rows if row["mitigation"] == name]) for name in names}
    print(f"plain: {np.median(seconds[PLAIN]):.2f} s a step")
    for name, values in seconds.items():
        if name != PLAIN:
            low, middle, high = np.quantile(values / seconds[PLAIN], [0.25, 0.5, 0.75])
            print(f"{name}: {middle:.3f} of the plain step (half of {len(values)} between {low:.3f} and {high:.3f})")


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
