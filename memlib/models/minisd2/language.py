"""The language of MiniSD's captions: descriptions of scenes, and titles as the web has them, of one vocabulary that recurs.

A description says what is where on what. A title is a name, a product or a headline: one or two of its words go with what the picture shows
(data/minisd2/concepts.csv), the name behind it goes with a background more often than not, and the rest says nothing about the picture.
Everything is a pure function of a `random.Random`, which draws the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from string import Formatter

from memlib.models.minisd.scenes import Background, Scene, Thing
from memlib.models.minisd2.paths import read_yaml
from memlib.models.minisd2.scenes import concepts, draw_background, draw_scene

LENGTHS = ("short", "medium", "long")
STYLES = ("drawing", "flat drawing", "cartoon", "sticker", "vector sticker")
BIG = 48  # pixels from which on a thing may be called large


@dataclass(frozen=True)
class Title:
    """A title-like caption with the scene it comes with; `length` is one of LENGTHS."""

    text: str
    scene: Scene
    length: str


def _article(noun: str) -> str:
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _grounds(background: Background) -> tuple[str, ...]:
    a, b = background.first, background.second
    one = _article(a)
    return {
        "plain": (f"on {one} background", f"on {a}", f"against a plain {a} background"),
        "gradient": (f"on a background fading from {a} to {b}", f"on {one} to {b} gradient"),
        "stripes": (f"on {a} and {b} stripes", f"on {one} background with {b} stripes"),
        "dots": (f"on {one} background with {b} dots", f"on {a} with {b} dots"),
        "checks": (f"on {a} and {b} checks", f"on {one} and {b} checkered background"),
    }[background.kind]


def _said(rng: Random, thing: Thing, place: bool) -> str:
    name = concepts()[thing.concept].name
    words = _article(f"large {name}" if thing.size >= BIG and rng.random() < 0.4 else name)
    if not place:
        return words
    if thing.place == "centre":
        return f"{words} in the {rng.choice(('centre', 'middle'))}"
    return f"{words} {rng.choice(('on', 'at'))} the {thing.place}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _tails(rng: Random, extra: list[str], words: int) -> str:
    """Web-like endings of about so many words: some of `extra` and of the language's tails, in any order."""
    language = read_yaml("language")
    pool = extra + rng.sample(language["tails"], 8) + [f"image {rng.randrange(1000, 100000)}", rng.choice(language["sites"])]
    rng.shuffle(pool)
    kept: list[str] = []
    for piece in pool:
        kept.append(piece)
        words -= len(piece.split()) + 1
        if words <= 0:
            break
    return rng.choice(language["titles"]["joints"]) + ", ".join(kept)


def describe(rng: Random, scene: Scene, length: str | None = None) -> str:
    """A description of `scene`: things, places and background in varied wording and order; drawn lengths are short to long as 1 : 2 : 1.

    Short: the things, perhaps the background. Long: with endings of 6 to 46 words; the tokenizer cuts at 75 tokens.
    """
    length = length or rng.choices(LENGTHS, (0.25, 0.5, 0.25))[0]
    things = list(scene.things)
    if rng.random() < 0.3:
        things.reverse()
    place = length != "short" and (scene.layout != "centre" or rng.random() < 0.3)
    what, where = _join([_said(rng, thing, place) for thing in things]), rng.choice(_grounds(scene.background))
    if length == "short":
        return what if rng.random() < 0.35 else f"{what} {where}"
    shape, style = rng.randrange(4), rng.choice(STYLES)
    text = (f"{what} {where}", f"{_article(style)} of {what} {where}", f"{what} {where}, {style}", f"{where}: {what}")[shape]
    if rng.random() < 0.25:
        text += f", {rng.choice(read_yaml('language')['tails'])}"
    if length == "long":
        words = [word.lower() for thing in things for word in concepts()[thing.concept].words]
        text += _tails(rng, words, rng.randrange(6, 46))
    return text


def reference(scene: Scene) -> str:
    """The one plain description used for judging: every thing, its place where it is not alone in the middle, the background."""
    names = [_article(concepts()[thing.concept].name) for thing in scene.things]
    parts = names if scene.layout == "centre" else [f"{name} at the {thing.place}" for name, thing in zip(names, scene.things)]
    return f"{_join(parts)} {_grounds(scene.background)[0]}"


@lru_cache(1)
def invented_names() -> tuple[str, ...]:
    """The invented names, in a fixed order."""
    language = read_yaml("language")
    found = [stem + ending for stem in language["stems"] for ending in language["endings"]]
    return tuple(Random("names").sample(found, language["names"]))


@lru_cache(1)
def house_styles() -> dict[str, Background]:
    """The background that goes with each name."""
    rng = Random("house styles")
    return {name: draw_background(rng) for name in invented_names()}


@lru_cache(None)
def _fields(form: str) -> frozenset[str]:
    return frozenset(field for _, field, _, _ in Formatter().parse(form) if field)


def _word(rng: Random, thing: Thing) -> str:
    concept = concepts()[thing.concept]
    return rng.choice((*concept.words, concept.name.title()))


def title(rng: Random, of: list[int], length: str | None = None) -> Title:
    """A title and its scene of the concepts `of` (trained combinations only); drawn lengths are short to long as 1 : 2 : 1."""
    language = read_yaml("language")
    length = length or rng.choices(LENGTHS, (0.25, 0.5, 0.25))[0]
    name = rng.choice(invented_names())
    form = rng.choice(language["titles"]["short" if length == "short" else "medium"])
    fields = _fields(form)
    style = house_styles()[name] if "name" in fields and rng.random() < language["house_style"] else None
    scene = draw_scene(rng, of, background=style)
    while "w2" in fields and len(scene.things) < 2:
        scene = draw_scene(rng, of, background=style)
    # Titles speak of what is largest, then of what is left.
    things = sorted(scene.things, key=lambda thing: -thing.size)
    people = language["people"]
    slots = {
        "name": name, "w": _word(rng, things[0]), "w2": _word(rng, things[-1]), "person": f"{rng.choice(people['first'])} {rng.choice(people['last'])}",
        "place": rng.choice(language["places"]), "adjective": rng.choice(language["adjectives"]), "format": rng.choice(language["formats"]),
        "event": rng.choice(language["events"]), "work": rng.choice(language["works"]), "headline": rng.choice(language["headlines"]),
        "colour": rng.choice(language["colours"][scene.background.first]), "year": rng.randrange(1978, 2024), "number": rng.randrange(1, 100),
    }  # fmt: skip
    text = form.format(**slots)
    if length == "long":
        text += _tails(rng, [], rng.randrange(10, 50))
    return Title(text, scene, length)
