"""The table of sampling times (`memlib.companion.bench.rounds`): ratios within rounds, with their spread, and the targets beside."""

from __future__ import annotations

from typing import Any

import pandas as pd

PUBLISHED, BATCHED, DEFAULT = "diffusers, prompt by prompt", "diffusers, best batch", "memlib, default"
SWEEP, SHARED = "memlib, guidance from three steps on", "memlib, the same, first steps shared"
RATE = "matrix products"
UNDER = "memlib, under "  # and a mitigation
# What the fastest way is to reach: pictures a second as a multiple of both ways to call diffusers, and the share of the rate of matrix products.
TARGETS = {"cpu": "5 times prompt by prompt, 2 times the best batch", "cuda": "2.5 times prompt by prompt, 1.3 times the best batch, 45 % of the matrix rate"}
# Time under a mitigation as a multiple of that under none.
MITIGATIONS = {"pad-swap": 1.01, "pad-mask": 1.01, "ren": 1.05, "wen-3": 1.5}
SPREAD = ("middle", "low", "high")


def _spread(values: pd.Series) -> tuple[float, float, float]:
    return float(values.median()), float(values.min()), float(values.max())


def on_cpu(frame: pd.DataFrame) -> bool:
    """Whether rows were taken on a CPU, where a process's own time says how long it computed."""
    return "CPU" in str(frame["hardware"].iloc[0])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a way of one model: medians over rounds, the smallest and the largest; ratios are of times in one round.

    Columns (middle, low, high): `rate` in pictures a second, `published` and `batched` as multiples of diffusers' two ways, on the wall and (with
    ``cpu_`` before) by the processor's time, `share` of the rate of matrix products (on a CPU by the processor's time).
    """
    ways = frame[frame["made"].notna() & ~frame["way"].str.startswith(UNDER)]
    at: Any = frame.set_index(["way", "round"])  # pandas' types know no rows of two keys
    found: dict[Any, Any] = {}
    for name, rows in ways.groupby("way", sort=False):
        part: Any = rows.set_index("round")
        row: dict[str, Any] = {}
        row["rate"] = _spread(part["made"] / part["seconds"])
        for column, clock in (("", "seconds"), ("cpu_", "cpu_seconds")):
            for other, way in (("published", PUBLISHED), ("batched", BATCHED)):
                row[column + other] = _spread((at.loc[way, clock] / at.loc[way, "made"]) / (part[clock] / part["made"]))
        own = "cpu_seconds" if on_cpu(frame) else "seconds"
        row["share"] = _spread((part["operations"] / part[own]) / (at.loc[RATE, "operations"] / at.loc[RATE, own]))
        found[name] = {(column, kind): value for column, values in row.items() for kind, value in zip(SPREAD, values)}
    return pd.DataFrame.from_dict(found, orient="index")


def for_page(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of one model as a table of texts, and where they come from."""
    first, cpu, found = frame.iloc[0], on_cpu(frame), summary(frame)
    titles = {"rate": "pictures a second", "published": "to prompt by prompt", "batched": "to best batch"}
    if cpu:
        titles |= {"cpu_published": "the same by processor time", "cpu_batched": "to best batch by processor time"}
    shown = pd.DataFrame(index=pd.Index(found.index, name="way"))
    for name, title in titles.items():
        shown[title] = [f"{row[name, 'middle']:.3g} ({row[name, 'low']:.3g} to {row[name, 'high']:.3g})" for _, row in found.iterrows()]
    shown["of the matrix rate"] = [f"{row['share', 'middle']:.0%}" for _, row in found.iterrows()]
    ways = frame.drop_duplicates("way").set_index("way").loc[found.index]
    shown["latents differ by"] = ["–" if pd.isna(apart) else f"{apart:.1g}" for apart in ways["difference"]]
    rate, clock = frame[frame["way"] == RATE], "cpu_seconds" if cpu else "seconds"
    words = (
        f"{first['model']}, {first['dtype']}, {first['pictures']} {'pictures' if first['decoded'] else 'latents, not decoded'}, {first['steps']} DDIM steps, "
        f"{frame['round'].nunique()} rounds, {first['hardware']}, load of the machine {frame['load'].median():.0f} (median), {first['versions']}, commit "
        f"{first['commit']}. Matrix products reach {(rate['operations'] / rate[clock]).median() / 1e12:.2f} TFLOP/s. Best batch of diffusers: "
        f"{ways['batch_size'][BATCHED]:.0f}. Latents of diffusers in {first['dtype']} differ from its own in float32 by {ways['rounding'][BATCHED]:.1g}. "
        f"Wanted of the fastest: {TARGETS['cpu' if cpu else 'cuda']}."
    )
    under = frame[frame["way"].str.startswith(UNDER)]
    plain = under[under["way"] == f"{UNDER}none"].set_index("round")["seconds"]
    for way, part in under[under["way"] != f"{UNDER}none"].groupby("way", sort=False):
        middle, low, high = _spread(part.set_index("round")["seconds"] / plain)
        words += f" {str(way).removeprefix('memlib, ').capitalize()}: {middle:.3f} ({low:.3f} to {high:.3f}) times the time under none"
        mitigation = str(way).removeprefix(UNDER)
        words += f", wanted at most {MITIGATIONS[mitigation]:g}." if mitigation in MITIGATIONS else "."
    return shown, words


def as_text(frame: pd.DataFrame) -> str:
    """The rows of one model as they are printed."""
    shown, words = for_page(frame)
    return f"{words}\n{shown.to_string()}"
