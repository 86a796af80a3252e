# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Four scenarios of memorization
#
# **Claims B3 and B6** · `basin`, Sections 5 and 6, Appendices 9 to 11, Tables 1 to 5, Figures 3 to 5 {cite:p}`basin`
#
# Memorization comes about in different ways, and `basin` studies four: (1) a model fine-tuned on a small set until it overfits, and (1b)
# on one ten times larger; (2) fine-tuned with one caption per class, "An image of ..."; (3) fine-tuned on a few pictures that are
# duplicated among many single ones; (4) a pre-trained model with its own memorized prompts. It claims:
#
# - **B3** In scenarios 1 and 2 all pictures share one transition point, a *static* one; in 3 and 4 each prompt and noise has its own, a
#   *dynamic* one.
# - **B6** Waiting for the transition point lowers similarity in every scenario, at little cost.
#
# That earlier methods work only in the scenario that they were made for (B7) is judged [with all mitigations](16_all_mitigations).
#
# The criteria below were fixed in `data/claims.yml` before anything ran. On MiniSD the scenarios are `minisd-v1` fine-tuned on fresh scenes that
# it never saw, by the trainer that also fine-tunes Stable Diffusion (`memlib finetune`, see [](../book/running.md)); only the
# U-Net is trained, as in the published fine-tunings. How often a picture is seen, and why, stands in `data/minisd/training.yml`. For another substrate
# the fine-tuned folders are parameters, and a scenario without one is *not measured*.

# %%
import textwrap
from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from memlib.experiment.page import NOT_MEASURED, Page, reported_at, told
from memlib.judging.estimates import mean_interval
from memlib.mitigations import REGISTRY, get
from memlib.probes.transitions import trace, transition_step
from memlib.results import figures as plots
from memlib.results import times as bench
from memlib.results.effects import kind_of, largest_cost, least_lowering, spread, spread_difference
from memlib.results.measure import measure
from memlib.results.scenarios import SCENARIOS, SIMILARITY, distances, each, own_methods, placed, strips, summary
from memlib.results.table import estimate, matrix

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, sd14, sd21, or a folder with a diffusers pipeline: the pre-trained model
small_model = "auto"  # model of scenario 1; auto: the substrate's own, or a folder written by memlib.training.finetune
large_model = "auto"  # model of scenario 1b, likewise
class_model = "auto"  # model of scenario 2
duplicated_model = "auto"  # model of scenario 3
memorized = "memorized"  # prompt set of scenario 4: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
methods = ["static-transition", "static-transition-opposite", "dynamic-transition", "dynamic-transition-opposite"]  # by name; None: all registered
n_prompts = 6  # at most so many prompts of each scenario
n_seeds = 2  # seeds 0, 1, ... for every prompt
n_timed = None  # turns of every method in which time is taken; None: the kept times of the substrate, or 5 turns where there are none
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("B3", "B6")
plots.style()
chosen = [get("none"), *(get(name) for name in (REGISTRY if methods is None else methods) if name != "none")]
models = {"small": small_model, "large": large_model, "class": class_model, "duplicated": duplicated_model}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# ## Each scenario measured
#
# Of each scenario so many captions of its training set, and as many prompts that are not memorized. First the traces without guidance, from
# which the transition step of every picture is read by Algorithm 1 (see the notebook on traces); then pictures under every
# mitigation of this page. A *static* transition point is not taken from the text, whose models are others, but from the scenario's own traces:
# the median of the transition steps, without guidance or under the opposite guidance that precedes it. Where no picture has a transition,
# the text's own switch-on time stands in for the static point, and the dynamic methods never guide: the column *guided* of the table says in how
# many pictures guidance ever began. A picture without it ignores its prompt, and a low similarity is then no mitigation.

# %%
ALIGNMENT = "alignment with prompt"


def measured(key, group):
    """What is measured in one scenario: scores under each method, and traces without guidance."""
    run = group.experiment
    other = run.group(not_memorized, n_prompts, "not memorized")
    here, guided = placed(chosen, group)
    rows, _ = measure(group, here, [SIMILARITY, ALIGNMENT, "quality"])
    own = own_methods(key, here)
    quiet, others = trace(group, 0.0), trace(other, 0.0)
    return SimpleNamespace(
        model=run.substrate.name, prompts=group.prompts.prompts, methods=here, own=own, guided=guided, rows=rows, distances=distances(group, here),
        steps=quiet.transition(), traces=quiet.difference, other_steps=others.transition(), other_traces=others.difference,
        pictures=strips(group, [here[0], *own], 6), thresholds=run.thresholds, provenance=run.provenance(),
    )  # fmt: skip


found = each(measured, models, memorized=memorized, n_prompts=n_prompts, **page.settings)
threshold = found["pretrained"].thresholds.get("copy_threshold")

# %% [markdown]
# ## Static or dynamic?
#
# The transition step of each picture, from 0 (the noisiest), without guidance. *Spread* is its standard deviation over prompts and seeds as a
# share of the schedule: *static* means that the whole interval is at most a twentieth, *dynamic* that it is wholly above.

# %%
def middle(values):
    values = values[values >= 0]
    return "none" if not values.size else f"{np.median(values):.0f} ({values.min()} to {values.max()})"


spreads = {key: spread(r.steps, steps) for key, r in found.items()}
pd.DataFrame(
    {
        SCENARIOS[key].label: {
            "according to basin": SCENARIOS[key].kind,
            "measured": kind_of(spreads[key]),
            "spread": told(spreads[key], 3),
            "median transition step (range)": middle(r.steps),
            "pictures with a transition": f"{(r.steps >= 0).sum()} of {r.steps.size}",
            "not memorized: with a transition": f"{(r.other_steps >= 0).sum()} of {r.other_steps.size}",
            "step of the mean trace": int(transition_step(r.traces.mean((0, 1)))),
        }
        for key, r in found.items()
    }
).T

# %% mystnb={"image": {"alt": "Transition step of every picture by scenario, prompts of the scenario beside prompts that are not memorized", "width": "100%"}}
by_scenario = {SCENARIOS[key].label: {"of the scenario": r.steps, "not memorized": r.other_steps} for key, r in found.items()}
plots.step_dots(by_scenario, steps, "transition step", "no picture has a transition");

# %% mystnb={"image": {"alt": "Magnitude of the difference of the predictions by step without guidance, one panel per scenario, prompts of the scenario beside prompts that are not memorized", "width": "100%"}}
def by_step(traces):
    return {k: mean_interval(traces[:, :, k], resamples=500) for k in range(0, traces.shape[-1], max(1, steps // 25))}


panels = {SCENARIOS[key].label: {"of the scenario": by_step(r.traces), "not memorized": by_step(r.other_traces)} for key, r in found.items()}
highest = np.nanmax([(e.value, e.high) for curves in panels.values() for points in curves.values() for e in points.values()])
for start in range(0, len(panels), 3):
    row = dict(list(panels.items())[start : start + 3])
    plots.bands(row, "step (0 is the noisiest)", "magnitude of the difference", (0, 1.05 * highest))

# %% [markdown]
# ## The pictures
#
# Without mitigation, under the methods that the text uses in the scenario, and the training pictures where they are at hand, first seed.

# %% mystnb={"image": {"alt": "For each scenario a few prompts: pictures without mitigation, under the text's methods, and training pictures", "width": "100%"}}
for key, r in found.items():
    plots.montage(r.pictures, r.prompts[:6], SCENARIOS[key].label)

# %% [markdown]
# ## The table
#
# Every mitigation of this page in every scenario; all that are registered stand [elsewhere](16_all_mitigations). Means with 95 %
# intervals by bootstrap over prompts; the 95th percentile over all pictures; *distance* is the kernel distance (KID) of all pictures to real ones, with its standard deviation
# over subsets, which with so few pictures says little. The text reports FID against the training pictures, which a model that
# memorizes wins; here the real pictures are ones that MiniSD never saw. MiniSD's own memorized prompts (scenario 4) are titles that do not say what
# their picture shows, so that alignment with them is near zero with or without mitigation.

# %%
for key, r in found.items():
    shown = summary(r.rows, r.methods, (SIMILARITY, ALIGNMENT, "quality"), r.guided).drop(columns="acts on")
    shown.insert(0, "in the text here", ["yes" if title in [m.title for m in r.own] else "" for title in shown.index])
    shown["distance"] = ["{:.3f} (sd {:.3f})".format(*r.distances[title]) if title in r.distances else NOT_MEASURED for title in shown.index]
    display(Markdown(f"**Scenario {SCENARIOS[key].label}**, {len(r.prompts)} prompts, {n_seeds} seeds, model `{r.model}`"), shown)

# %% [markdown]
# `basin`'s own figures, *reported*: other models and metrics, so compare directions and order, not values.

# %%
rows = reported_at("basin", [s.place for s in SCENARIOS.values()])
rows = rows[rows["metric"].isin(["similarity_p95", "similarity", "clip_score"])]
rows.pivot_table(index=["place", "setting", "method"], columns="metric", values="value", sort=False).round(3).astype(object).fillna("–")

# %% mystnb={"image": {"alt": "Mean similarity to training by mitigation and scenario, as a table of colours", "width": "100%"}}
values = {SCENARIOS[key].label: {m.name: matrix(r.rows, SIMILARITY, m) for m in r.methods} for key, r in found.items()}
grid = pd.DataFrame({label: {name: np.mean(v) for name, v in row.items() if v is not None} for label, row in values.items()})
never = {(SCENARIOS[key].label, m.name) for key, r in found.items() for m in r.methods if not r.guided.get(m.title, np.ones(1)).any()}
if grid.size:
    plots.coloured_table(grid.rename(columns=lambda name: textwrap.fill(name, 16)), SIMILARITY, {(textwrap.fill(name, 16), m) for name, m in never},
                         "no picture has a transition, so none is ever guided")

# %% [markdown]
# ## What it costs
#
# One picture at a time, not from the store, from prompt to picture, the methods in turn on the pre-trained model's prompts after each was run once; the
# U-Nets of all scenarios are of one size. U-Net evaluations count rows: a guided step of one picture is two. Times kept with the project were taken
# on an idle machine by `memlib bench mitigations` (`-p n_timed 5` takes them anew).

# %%
run = page.experiment(n_seeds=1)
sampler = bench.Sampler(run.substrate, steps, guidance, scheduler)
taken = bench.times(sampler, chosen, run.group(memorized, n_timed or bench.TURNS).prompts.prompts, n_timed)
print(taken.source)
taken.table()


# %% [markdown]
# ## Verdicts

# %%
def why_absent(quantity):
    """Which scenario of those that B3 compares in a quantity has no spread, and why."""
    key = next((key for key in SCENARIOS if key in quantity and spreads.get(key) is None), "pretrained")
    if key not in found:
        return f"{SCENARIOS[key].title} was not measured."
    r = found[key]
    return f"In the scenario {SCENARIOS[key].title} {(r.steps >= 0).sum()} of {r.steps.size} pictures have a transition, too few for a spread."


def apart(first, second):
    return spread_difference(found[first].steps, found[second].steps, steps) if {first, second} <= set(found) else None


quantities = {
    "spread_small": spreads.get("small"),
    "spread_class": spreads.get("class"),
    **{f"{a}_minus_{b}": apart(a, b) for a in ("pretrained", "duplicated") for b in ("small", "class")},
}
for key in SCENARIOS:
    r = found.get(key)
    quantities[f"similarity_{key}"] = None if r is None else least_lowering(r.rows, r.own)
    for name, score in (("alignment", ALIGNMENT), ("quality", "quality")):
        quantities[f"{name}_{key}"] = None if r is None else largest_cost(r.rows, r.own, score)

page.judge(quantities, run.substrate.name, absent_because={q: why_absent(q) for q in page.claims["B3"].quantities});

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"threshold": NOT_MEASURED if threshold is None else f"{threshold:.2f}"})
for key in SCENARIOS:
    plain = estimate(found[key].rows, SIMILARITY, get("none")) if key in found else None
    page.glue({f"kind_{key}": kind_of(spreads.get(key)), f"similarity_{key}": plain, f"change_{key}": quantities[f"similarity_{key}"],
               f"cost_{key}": quantities[f"alignment_{key}"]})  # fmt: skip
    page.glue({f"spread_{key}": spreads.get(key)}, digits=3)

# %% [markdown]
# On this substrate B3 {glue:text}`verdict_B3` and B6 {glue:text}`verdict_B6`.
#
# | scenario | similarity to training without mitigation | transition (spread) | change of similarity under the weakest of the text's methods | change of alignment under the dearest |
# |---|---|---|---|---|
# | 1: small set | {glue:text}`similarity_small` | {glue:text}`kind_small` ({glue:text}`spread_small`) | {glue:text}`change_small` | {glue:text}`cost_small` |
# | 1b: ten times larger | {glue:text}`similarity_large` | {glue:text}`kind_large` ({glue:text}`spread_large`) | {glue:text}`change_large` | {glue:text}`cost_large` |
# | 2: class captions | {glue:text}`similarity_class` | {glue:text}`kind_class` ({glue:text}`spread_class`) | {glue:text}`change_class` | {glue:text}`cost_class` |
# | 3: duplicates | {glue:text}`similarity_duplicated` | {glue:text}`kind_duplicated` ({glue:text}`spread_duplicated`) | {glue:text}`change_duplicated` | {glue:text}`cost_duplicated` |
# | 4: pre-trained | {glue:text}`similarity_pretrained` | {glue:text}`kind_pretrained` ({glue:text}`spread_pretrained`) | {glue:text}`change_pretrained` | {glue:text}`cost_pretrained` |
#
# The copy threshold is {glue:text}`threshold`. A scenario whose pictures are not above it without mitigation is one in which little was memorized
# verbatim, as the text itself says of its larger set and of its class captions. A low similarity alone says little: guidance that never starts gives
# pictures that ignore the prompt, and alignment stands beside it for that reason. With the number of prompts and seeds
# of this page the intervals are wide; the parameters make them narrower.

# %% tags=["hide-input"]
for key, r in found.items():
    print(f"{SCENARIOS[key].label}: {r.provenance}\n")
run.provenance()
