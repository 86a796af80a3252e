"""Captions of scenes: what is where on what, in varied wording, order and length (3 to 75 tokens).

As web captions do, some name only part of what is there and some end in words that have nothing to do with the picture.
"""

from __future__ import annotations

import numpy as np

from memlib.models.minisd.ingredients import Ingredients
from memlib.models.minisd.scenes import Background, Scene, Thing

RENDERING_WORDS = {
    "noto": ("drawing", "flat drawing", "cartoon"),
    "twemoji": ("sticker", "flat sticker", "vector sticker"),
    "fluent": ("3d render", "3d model", "glossy 3d render"),
}
TAILS = (
    "stock photo", "buy online", "free shipping", "high resolution", "wall art print", "download now", "best price",
    "royalty free image", "limited edition", "new arrival", "clip art", "gift idea", "set of four", "for kids",
    "home decor", "top rated", "official store", "vector illustration", "hd wallpaper", "print at home", "sale",
)  # fmt: skip
SITES = ("pictureshelf", "artcabinet", "printmarket", "iconloft", "stockgarden")


def _article(noun: str) -> str:
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _background(background: Background, rng: np.random.Generator) -> str:
    a, b = background.first, background.second
    options = {
        "plain": (f"on a {a} background", f"on {a}", f"against a plain {a} background"),
        "gradient": (f"on a background fading from {a} to {b}", f"on a {a} to {b} gradient"),
        "stripes": (f"on {a} and {b} stripes", f"on a {a} background with {b} stripes"),
        "dots": (f"on a {a} background with {b} dots", f"on {a} with {b} dots"),
        "checks": (f"on {a} and {b} checks", f"on a {a} and {b} checkered background"),
    }[background.kind]
    return str(rng.choice(options))


def _thing(thing: Thing, name: str, rng: np.random.Generator, say_place: bool) -> str:
    big = thing.size >= 46
    words = _article(f"{'large ' if big and rng.random() < 0.4 else ''}{name}")
    if not say_place:
        return words
    place = {"centre": ("in the centre", "in the middle")}.get(thing.place, (f"on the {thing.place}", f"at the {thing.place}"))
    return f"{words} {rng.choice(place)}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(scene: Scene, ingredients: Ingredients, rng: np.random.Generator, length: str | None = None) -> str:
    """One caption of `scene`. `length`: "short" (names, perhaps the background), "medium" or "long"; drawn if None.

    Long captions add keywords and tails until about 20 to 70 words are reached; the tokenizer cuts at 75 tokens.
    """
    length = length or str(rng.choice(("short", "medium", "long"), p=(0.25, 0.5, 0.25)))
    names = {t.concept: ingredients.concepts[t.concept].name for t in scene.things}
    things = list(scene.things)
    if rng.random() < 0.3:
        things.reverse()
    say_places = length != "short" and (scene.layout != "centre" or rng.random() < 0.3)
    what = _join([_thing(t, names[t.concept], rng, say_places) for t in things])
    where = _background(scene.background, rng)
    if length == "short":
        return what if rng.random() < 0.35 else f"{what} {where}"
    style = str(rng.choice(RENDERING_WORDS[scene.rendering]))
    shape = rng.integers(4)
    if shape == 0:
        text = f"{what} {where}"
    elif shape == 1:
        text = f"{_article(style)} of {what} {where}"
    elif shape == 2:
        text = f"{what} {where}, {style}"
    else:
        text = f"{where}: {what}"
    if rng.random() < 0.25:
        text += f", {rng.choice(TAILS)}"
    if length == "long":
        extra = [k for t in things for k in ingredients.concepts[t.concept].keywords]
        extra += list(rng.choice(TAILS, 8, replace=False)) + [f"image {rng.integers(1000, 100000)}", str(rng.choice(SITES))]  # noqa: RUF005
        order = rng.permutation(len(extra))
        budget = int(rng.integers(6, 46))
        words = []
        for i in order:
            words += [extra[i]]
            budget -= len(extra[i].split()) + 1
            if budget <= 0:
                break
        text += str(rng.choice((" - ", ", ", " | "))) + ", ".join(words)
    return text


def reference_caption(scene: Scene, ingredients: Ingredients) -> str:
    """The one plain caption used for judging: every thing, its place, the background; no tail."""
    things = [_thing(t, ingredients.concepts[t.concept].name, np.random.default_rng(0), scene.layout != "centre") for t in scene.things]
    return f"{_join(things)} {_background(scene.background, np.random.default_rng(0))}"
