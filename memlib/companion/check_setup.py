"""What must be at hand before a model is loaded: its files, disk, memory, weights of metrics, prompt lists; each with what to do.

Nothing is loaded and nothing is fetched here, so that it takes seconds. The loaded model is looked at in `memlib.companion.check_substrate`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from memlib.base.errors import InputError, NotMeasured
from memlib.base.paths import ROOT, store_folder
from memlib.companion.book.facts import FACTS
from memlib.metrics import Metric, metric
from memlib.metrics.weights import table, weight_file
from memlib.models.catalogue import locate, source_of
from memlib.models.checkpoint import check_folder, weight_files
from memlib.models.devices import device_of, free_memory
from memlib.models.substrate import dtype_of, picture_memory
from memlib.prompts.published import at_hand, load_sources
from memlib.prompts.sets import prompt_set_names

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One fact: `holds` is None where something is not at hand yet, or could not be looked at; `advice` says what to do unless it holds."""

    name: str
    holds: bool | None
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        state = {True: "ok", False: "WRONG", None: "not yet"}[self.holds]
        todo = f". To do: {self.advice}" if self.advice and not self.holds else ""
        return f"{state:8} {self.name}: {self.detail}{todo}"


def files(folder: Path, device: torch.device, dtype: torch.dtype) -> Check:
    """Every file that is read is there, and whole."""
    variant = check_folder(folder)
    read = weight_files(folder, variant)
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")).get("_class_name")
    detail = f"{folder}, {len(read)} files of weights, {'half precision (fp16)' if variant else 'the ordinary variant'}, scheduler {kind}"
    rest = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - sum(path.stat().st_size for path in read)
    if rest > GIB:
        detail += f"; {rest / GIB:.1f} GiB more lie there that are never read (pickled weights, other variants, safety checker)"
    if variant and dtype == torch.float32:
        detail += "; in single precision they are no more exact than in half"
    return Check("files", True, detail)


def memory(folder: Path, device: torch.device, dtype: torch.dtype) -> Check:
    """The weights in the precision asked for, and one picture, fit into the device."""
    values = 0
    for path in weight_files(folder, check_folder(folder)):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            values += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    need, free = values * dtype.itemsize + picture_memory(_resolution(folder), dtype), free_memory(device)
    precision = str(dtype).removeprefix("torch.")
    detail = f"{values / 1e6:,.1f} million weights in {precision} and one picture take about {need / GIB:.1f} GiB on {device}, {free / GIB:.1f} are free"
    half = "float16" if device.type == "cuda" else "bfloat16"
    return Check("memory", need <= free, detail, f"free some, or use {f'--dtype {half}' if dtype == torch.float32 else 'another device'}")


def disk(folder: Path, device: torch.device, dtype: torch.dtype) -> Check:
    """The store has room for as many pictures as the committed run made."""
    runs = json.loads((ROOT / FACTS).read_text(encoding="utf-8")) if (ROOT / FACTS).is_file() else {}
    pictures, side = sum(run.get("pictures") or 0 for run in runs.values()), _resolution(folder)
    place = next(path for path in (store_folder(), *store_folder().parents) if path.is_dir())
    need, free = pictures * 3 * side**2, shutil.disk_usage(place).free
    detail = f"{free / GIB:.0f} GiB are free in {place}; the committed run's {pictures:,} pictures of {side} px take at most {need / GIB:.1f}"
    return Check("disk", need <= free, detail, "set MEMLIB_STORE to a folder on a larger disk, or take fewer prompts and seeds")


def _resolution(folder: Path) -> int:
    """Side of a picture in pixels, the longer one."""
    unet, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae"))
    return max(np.atleast_1d(unet["sample_size"]).tolist()) * 2 ** (len(vae["block_out_channels"]) - 1)


def metric_at_hand(chosen: Metric) -> Check:
    """The files of a metric's weights are in the cache, and the right ones."""
    absent = []
    for name in chosen.weights:
        try:
            weight_file(name, download=False)
        except NotMeasured:
            absent.append(name)
    megabytes = sum(table()[name].bytes or 0 for name in absent) / 1e6
    detail = "its weights are not at hand; they are fetched when first needed" if absent else "its weights are at hand"
    size = f" (about {megabytes:,.0f} MB)" if megabytes else ""
    return Check(f"metric {chosen.label}", None if absent else True, detail, f"memlib weights {' '.join(absent)}{size}")


def prompt_list(role: str, name: str) -> Check:
    """A prompt set is at hand: published lists in the cache, others with the project or in a file."""
    source = load_sources().get(name)
    if source is not None and not at_hand(source):
        return Check(f"prompts {role}", None, f"{name} is not at hand; it is fetched when first needed", f"memlib prompts fetch {name}")
    if name in prompt_set_names() or Path(name).expanduser().is_file():
        return Check(f"prompts {role}", True, f"{name} is at hand")
    return Check(f"prompts {role}", False, f"{name} is neither a known set nor a file that is there", "correct the substrate's description")


def check(name: str, device: str = "auto", dtype: str = "auto", say: Callable[[str], None] = print) -> list[Check]:
    """Look at all that must be at hand, whatever is wrong with the rest.

    Raises InputError for an unknown substrate, device or precision.
    """
    source, target = source_of(name), device_of(device)
    precision, found = dtype_of(dtype, target), []

    def take(one: Check) -> None:
        found.append(one)
        say(str(one))

    try:
        folder = locate(name)[0] if source.base is None else [locate(each)[0] for each in (name, source.base)][-1]
        for look in (files, memory, disk):
            take(look(folder, target, precision))
    except (InputError, KeyError, TypeError) as error:  # what needs the files cannot be said without them
        take(Check("files", False, str(error) if isinstance(error, InputError) else f"a configuration lacks {error}: download the folder again"))
    data = source.data()
    for chosen in map(metric, data.metrics):
        if chosen.weights:
            take(metric_at_hand(chosen))
    for role, prompts in data.sets.items():
        take(prompt_list(role, prompts))
    return found
