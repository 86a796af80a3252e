"""Pictures for the front page: prompts under each edit, from the store, as small palette PNGs in one script that asks for nothing from elsewhere.

`write` makes two kinds of files in a folder of the site: ``explorer-pictures.js`` for the edit explorer, whose own script is
book/_static/explorer.js, and the strips ``front-*.png`` of the key figure, which tells the same without a script.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.writing import replacing
from memlib.companion.book.layout import DEFAULT_SUBSTRATE
from memlib.experiment import Experiment
from memlib.experiment.group import Group
from memlib.experiment.settings import Edit
from memlib.mitigations import REGISTRY, get
from memlib.models.catalogue import source_of
from memlib.prompts.interventions import INTERVENTIONS

PICTURES = "explorer-pictures.js"
EDITS = ("none", "f", "h", "c", "b", "a", "d", "e", "g", "pad-mask", "pad-swap", "pad-swap-eot-mask")
STRIPS = ("training", "none", "f", "c", "h", "pad-mask", "pad-swap")
MEMORIZED, OTHERS, SEEDS = 8, 4, 2
SHOWN = (6, 4)  # prompts of either kind in the strips
GAP, GROUPS_GAP = 4, 16  # pixels between pictures of a strip
COLOURS = 64  # of a palette: MiniSD's pictures are drawings


def label(edit: str) -> str:
    """What pages call an edit or a mitigation."""
    return "training picture" if edit == "training" else INTERVENTIONS[edit].label if edit in INTERVENTIONS else REGISTRY[edit].label


def write(folder: Path, substrate: str = DEFAULT_SUBSTRATE) -> list[Path]:
    """Write the explorer's pictures and the strips to `folder` and return the files; pictures that the store lacks are made.

    Raises InputError for a substrate whose pictures are not free to show, training pictures included, as MiniSD's are.
    """
    if not source_of(substrate).data().free:
        raise InputError(f"The explorer shows training pictures, and those of {substrate} are not free to show: leave it out.")
    run = Experiment(substrate, n_seeds=SEEDS)
    known, other = run.group("memorized", MEMORIZED, "memorized"), run.group("not memorized", OTHERS, "not memorized")
    data = {
        "substrate": run.substrate.name,
        "weights": run.substrate.weights_hash[:12],
        "threshold": run.thresholds.get("copy_threshold"),
        "edits": [{"key": edit, "label": label(edit)} for edit in EDITS],
        "seeds": list(run.seeds),
        "shown": SHOWN,
        "strips": [{"label": label(edit), "file": f"front-{edit}.png"} for edit in STRIPS],
        "prompts": [entry for group in (known, other) for entry in _entries(group)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / PICTURES
    with replacing(script) as temporary:
        temporary.write_text(f"window.memlibExplorer = {json.dumps(data, separators=(',', ':'))};\n", encoding="utf-8")
    return [script, *(_strip(folder / f"front-{edit}.png", edit, known, other) for edit in STRIPS)]


def about(folder: Path) -> dict[str, Any] | None:
    """What `write` put into a folder, without the prompts' pictures; None where nothing is there."""
    script = folder / PICTURES
    if not script.is_file():
        return None
    data = json.loads(script.read_text(encoding="utf-8").partition("=")[2].rstrip().rstrip(";"))
    with Image.open(folder / data["strips"][0]["file"]) as strip:
        return {**{name: value for name, value in data.items() if name != "prompts"}, "width": strip.width, "height": strip.height}


def _edit(key: str) -> Edit:
    return key if key in INTERVENTIONS else get(key)


def _training(group: Group) -> list[np.ndarray] | None:
    return None if group.training is None else [pictures[0] for pictures in group.training]


def _entries(group: Group) -> list[dict[str, Any]]:
    """One entry a prompt: text, a sheet of its pictures (a row for each seed, a column for each edit, the training picture last), and scores."""
    pictures = {edit: group.pictures(_edit(edit)) for edit in EDITS}
    training = _training(group)
    scores = {}
    for name, metric in (("training", "similarity to training"), ("original", "similarity to original"), ("alignment", "alignment with prompt")):
        values = [value for edit in EDITS if (value := group.score(metric, _edit(edit))) is not None]
        scores[name] = np.round(np.stack(values, axis=1), 2).tolist() if len(values) == len(EDITS) else None  # [P, E, S]
    entries = []
    for row, prompt in enumerate(group.prompts.prompts):
        columns = [np.concatenate(list(pictures[edit][row]), axis=0) for edit in EDITS]
        if training is not None:
            columns.append(np.concatenate([training[row]] * SEEDS, axis=0))
        sheet = base64.b64encode(_png(np.concatenate(columns, axis=1))).decode()
        own = {name: None if values is None else values[row] for name, values in scores.items()}
        entries.append({"prompt": prompt, "group": group.label, "training": training is not None, "sheet": f"data:image/png;base64,{sheet}", "scores": own})
    return entries


def _strip(path: Path, edit: str, known: Group, other: Group) -> Path:
    """Write one row of the key figure: the first seed of the first prompts of either kind; empty where there is no training picture."""
    rows: list[np.ndarray | None] = []
    for group, count in zip((known, other), SHOWN, strict=True):
        if edit != "training":
            rows.append(group.pictures(_edit(edit))[:count, 0])
        elif (training := _training(group)) is not None:
            rows.append(np.stack(training[:count]))
        else:
            rows.append(None)
    side = known.pictures().shape[2]
    width = sum(SHOWN) * (side + GAP) - GAP + GROUPS_GAP
    canvas, empty, left = np.zeros((side, width, 3), np.uint8), np.ones((side, width), bool), 0
    for pictures, count in zip(rows, SHOWN, strict=True):
        for column in range(count):
            if pictures is not None:
                canvas[:, left : left + side], empty[:, left : left + side] = pictures[column], False
            left += side + GAP
        left += GROUPS_GAP
    with replacing(path) as temporary:
        temporary.write_bytes(_png(canvas, empty))
    return path


def _png(pixels: np.ndarray, empty: np.ndarray | None = None) -> bytes:
    """Pixels [H, W, 3] as a palette PNG; where `empty` [H, W], one sees through."""
    buffer, transparent = io.BytesIO(), {}
    made = Image.fromarray(pixels).quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    if empty is not None:
        indices = np.array(made)
        indices[empty] = COLOURS
        palette = made.getpalette() or []
        made = Image.fromarray(indices, mode="P")
        made.putpalette((palette + [0] * 3 * (COLOURS + 1))[: 3 * (COLOURS + 1)])
        transparent["transparency"] = COLOURS
    made.save(buffer, "PNG", optimize=True, **transparent)
    return buffer.getvalue()
