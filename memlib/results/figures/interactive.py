"""The switch-on sweep as an interactive figure: one fragment of HTML that needs no network, no library and no server.

Choose a prompt and a seed, drag the step from which guidance is on (or use the arrow keys), and see the picture change and the points on the
trace and on the similarity curve move. Pictures are data: URIs, curves inline SVG. Without scripts a strip of pictures is shown.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from memlib.base.errors import InputError
from memlib.experiment import picture_policy as care

# Style, markup and script, with places (@NAME@) that are filled here.
PAGE = Path(__file__).with_name("interactive.html")
LIMIT = 600_000
# Side in pixels and WebP quality, tried in turn until the fragment is small enough.
SIZES = ((128, 85), (128, 65), (96, 60), (64, 50), (48, 40))


@dataclass(frozen=True)
class Story:
    """One prompt and seed: `pictures` uint8 [K, H, W, 3] by `switches` [K] (the number of steps means never).

    `similarity` [K] is that to the picture named by `measure`, or None where it is not measured; `trace` [T] the magnitude of the difference under
    zero guidance at the scheduler's `times` [T]; `predicted` the transition step of the trace, or -1; `training` uint8 [H, W, 3] or None.
    """

    prompt: str
    group: str
    seed: int
    switches: Sequence[int]
    pictures: np.ndarray
    similarity: np.ndarray | None
    trace: np.ndarray
    times: np.ndarray
    predicted: int
    measure: str = "similarity to training"
    training: np.ndarray | None = None


def switch_figure(stories: Sequence[Story], threshold: float | None = None, limit: int = LIMIT) -> str:
    """Return the figure as a fragment of HTML of at most `limit` characters; `threshold` is that of a copy, if there is one.

    Every prompt needs the same seeds. Larger pictures are shrunk and compressed until the fragment fits; raises InputError if they cannot be.
    """
    if not stories:
        raise InputError("There is nothing to show: give at least one prompt and seed.")
    prompts: dict[tuple[str, str], list[Story]] = {}
    for story in stories:
        if not len(story.pictures) == len(story.switches) == (len(story.switches) if story.similarity is None else len(story.similarity)):
            raise InputError(f"The sweep of {story.prompt!r} has {len(story.pictures)} pictures for {len(story.switches)} steps: give one for each.")
        prompts.setdefault((story.group, story.prompt), []).append(story)
    seeds = [[story.seed for story in found] for found in prompts.values()]
    if any(other != seeds[0] for other in seeds):
        raise InputError("The prompts of an interactive figure were not sampled with the same seeds: give the same ones for each.")
    for side, quality in SIZES:
        page = _page(prompts, threshold, side, quality)
        if len(page) <= limit:
            return page
    raise InputError(f"The interactive figure has {len(page):,} characters and may have {limit:,}: show fewer prompts, seeds or steps.")


def _page(prompts: dict[tuple[str, str], list[Story]], threshold: float | None, side: int, quality: int) -> str:
    stories = [story for found in prompts.values() for story in found]
    first = stories[0]
    shown = [
        {
            "prompt": prompt,
            "group": group,
            "stories": [
                {
                    "seed": s.seed,
                    "switches": [int(k) for k in s.switches],
                    "pictures": [_data(picture, side, quality) for picture in s.pictures],
                    "similarity": None if s.similarity is None else [round(float(v), 3) for v in s.similarity],
                    "measure": s.measure,
                    "trace": [float(f"{v:.4g}") for v in s.trace],
                    "times": [round(float(t)) for t in s.times],
                    "predicted": int(s.predicted),
                    "training": None if s.training is None or not care.training_allowed() else _data(s.training, side, quality),
                }
                for s in found
            ],
        }
        for (group, prompt), found in prompts.items()
    ]
    # A "<" could end the script element, whatever the prompt says.
    data = json.dumps({"threshold": threshold, "prompts": shown}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    texts = {
        "ID": f"memlib-{hashlib.sha256(data.encode()).hexdigest()[:12]}",
        "DATA": data,
        "PROMPTS": "".join(f'<option value="{i}">{html.escape(f"{prompt} ({group})")}</option>' for i, (group, prompt) in enumerate(prompts)),
        "SEEDS": "".join(f'<option value="{i}">{s.seed}</option>' for i, s in enumerate(next(iter(prompts.values())))),
        "LAST": str(len(first.switches) - 1),
        "FIRST": _data(first.pictures[0], side, quality),
        "STRIP": _strip(first.pictures, min(side, 96), quality),
        "STRIP_ALT": html.escape(f"Pictures of the prompt {first.prompt} with guidance switched on later and later, from left to right"),
    }
    # In one pass, so that a prompt which looks like a place is left alone.
    return re.sub("@(" + "|".join(texts) + ")@", lambda found: texts[found.group(1)], PAGE.read_text(encoding="utf-8"))


def _shrunk(picture: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(care.shown(picture)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _data(picture: np.ndarray, side: int, quality: int) -> str:
    """A picture uint8 [H, W, 3] as a data: URI, at most `side` pixels wide and high."""
    return _uri(_shrunk(picture, side), quality)


def _strip(pictures: np.ndarray, side: int, quality: int) -> str:
    """About ten of the pictures side by side, as a data: URI."""
    tiles = [np.asarray(_shrunk(picture, side)) for picture in pictures[:: max(1, len(pictures) // 9)]]
    return _uri(Image.fromarray(np.concatenate(tiles, axis=1)), quality)


def _uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
