"""The report as one HTML file: what to do first, then what it rests on; pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from memlib.base.writing import write_text
from memlib.companion.report.advice import Advice, Line
from memlib.companion.report.findings import AGREEMENT, CHANGED, Findings
from memlib.experiment import picture_policy as care
from memlib.experiment.page import NOT_MEASURED, told
from memlib.judging.bounded import FEWEST
from memlib.judging.estimates import Estimate, share_interval, wilson
from memlib.probes.detectors.evaluation import Evaluation

SIDE = 112  # pixels of a picture in the report
SHOWN = 8  # prompts with pictures
SEEDS_SHOWN = 3
COLOURS, QUALITY = 64, 80
KEPT = {AGREEMENT: "agreement with the prompt", CHANGED: "how alike the pictures of other prompts stay to what they were", "": "nothing"}


@dataclass(frozen=True)
class Reproduced:
    """A prompt of the screening: how many of its pictures are copies, with Wilson's interval of the share, and how alike they are."""

    prompt: str
    times: int
    copies: int
    seeds: int
    share: Estimate
    mean: float
    low: float
    high: float


def write(found: Findings, advice: Advice, path: Path, facts: dict[str, str], model: str) -> Path:
    """Write the report to `path`, whole or not at all; `facts` join its provenance, `model` is what code examples load."""
    write_text(path, render(found, advice, facts, model))
    return path


def render(found: Findings, advice: Advice, facts: dict[str, str], model: str) -> str:
    """Return the report's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        found=found, advice=advice, model=model, metric=found.judged.metric, prompts=_prompts(found), strips=_strips(found, advice.method),
        agreement=AGREEMENT, kept_words=KEPT[advice.kept], detectors=sorted(found.detected, key=_by_area), code=_code(advice.method),
        any_copy=share_interval(found.copies), percent=_percent, told=told, facts={**facts, **found.run.provenance().facts},
        seeds=len(found.run.seeds), fresh=found.memorized.experiment.seeds if found.memorized else (), withheld=care.shown_as(), enough=FEWEST,
        which="other" if found.others else "these",
    )  # fmt: skip


def picture_uri(picture: np.ndarray, side: int = SIDE) -> str:
    """Return a picture uint8 [H, W, 3] as a data URI, at most `side` pixels a side: a palette PNG or a JPEG, whichever is smaller."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    made = []
    for kind, saved, options in (
        ("png", image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), {"optimize": True}),
        ("jpeg", image, {"quality": QUALITY, "optimize": True}),
    ):
        buffer = io.BytesIO()
        saved.save(buffer, kind, **options)
        made.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(made)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _prompts(found: Findings) -> list[Reproduced]:
    """All screened prompts, the most alike first."""
    table, count = found.screened.prompts.table, found.similarity.shape[1]
    times = table["copies"] if "copies" in table else np.ones(len(table), int)
    rows = []
    for row in np.argsort(-found.similarity.mean(1), kind="stable"):
        values, copies = found.similarity[row], int(found.copies[row].sum())
        rows.append(Reproduced(found.screened.prompts.prompts[row], int(times.iloc[row] if hasattr(times, "iloc") else times[row]), copies, count,
                               wilson(copies, count), float(values.mean()), float(values.min()), float(values.max())))  # fmt: skip
    return rows


def _strips(found: Findings, chosen: Line | None) -> list[dict[str, Any]]:
    """Pictures of the first reproduced prompts: training, as sampled, and with the recommended mitigation on seeds of its own."""
    training, strips = found.screened.training, []
    for place, row in enumerate(found.reproduced[:SHOWN]):
        groups: list[tuple[str, Sequence[np.ndarray]]] = []
        if training is not None:
            groups.append(("training", training[row][:1]))
        groups.append(("generated", found.screened.some_pictures("none", [row], SEEDS_SHOWN)[0]))
        if chosen is not None and found.memorized is not None and place < len(found.memorized):
            groups.append((f"with {chosen.method.title}", found.memorized.some_pictures(chosen.method, [place], 2)[0]))
        shown = [(label, [picture_uri(care.shown(picture)) for picture in pictures]) for label, pictures in groups]
        strips.append({"prompt": found.screened.prompts.prompts[row], "groups": shown})
    return strips


def _code(chosen: Line | None) -> str:
    if chosen is None:
        return ""
    return "".join(f", {name}={value!r}" for name, value in chosen.method.params.items() if type(chosen.method)().params[name] != value)


def _by_area(evaluation: Evaluation) -> float:
    return -evaluation.auc.value if evaluation.auc else 1.0


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOT_MEASURED
    ends = "" if np.isnan(estimate.low) else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    return f"{estimate.value:.0%}{ends}"
