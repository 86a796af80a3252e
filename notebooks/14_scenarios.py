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
# # Does every kind of memorization leave its basin at one time, and does waiting help?
#
# Claims B3 and B6 of Jain and others, Sections 5 and 6, Appendices 9 to 11, Tables 1 to 5, Figures 3 to 5 {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, sd14, sd21, or a folder with a diffusers pipeline: the pre-trained model
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
small_model = "auto"  # model of scenario 1; auto: the substrate's own, or a folder written by memlib.training.finetune
large_model = "auto"  # model of scenario 1b, likewise
class_model = "auto"  # model of scenario 2
duplicated_model = "auto"  # model of scenario 3
memorized = "memorized"  # prompt set of scenario 4: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
methods = ["static-transition", "static-transition-opposite", "dynamic-transition", "dynamic-transition-opposite"]  # by name; None: all registered
n_prompts = 6  # at most so many prompts of each scenario, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
n_timed = None  # turns of every method in which time is taken; None: the kept times of the substrate, or 5 turns where there are none
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, reported_at, told
from memlib.judging.bounded import student_mean
from memlib.mitigations import REGISTRY, get
from memlib.probes.transitions import trace
from memlib.results import figures as plots
from memlib.results import times as bench
from memlib.results.effects import kind_of, spread, spread_difference, worst_of
from memlib.results.evidence import DESCRIPTIONS, gather, scoring
from memlib.results.measure import scored
from memlib.results.scenarios import SCENARIOS, SIMILARITY, TRANSITION, at_transition, distances, each, own_methods, strips, transition_under
from memlib.results.table import join, rows_of

page = Page("B3", "B6")
plots.style()
ALIGNMENT, DISTANCE, UNGUIDED, NONE = "alignment with prompt", "distance to real pictures", "without guidance", get("none")
chosen = [NONE, *(get(name) for name in (REGISTRY if methods is None else methods) if name != "none")]
waiting = [m for m in chosen if m.name.startswith(("static-transition", "dynamic-transition"))]
models = {"small": small_model, "large": large_model, "class": class_model, "duplicated": duplicated_model}


def by_picture(group):
    """Without guidance, the transition steps and the magnitude at every step; of the scenario's own prompts also scores under each method."""
    quiet = trace(group, 0.0)
    rows = [rows_of(group, UNGUIDED, TRANSITION, quiet.transition())]
    rows += [rows_of(group, UNGUIDED, f"magnitude at step {k}", quiet.difference[:, :, k]) for k in range(0, steps, max(1, steps // 25))]
    if group.label == DESCRIPTIONS:
        return join(rows)
    begins = {m: transition_under(m, group) for m in waiting}
    here = [at_transition(m, begins.get(m, np.array([-1]))) if m.name.startswith("static") else m for m in chosen]
    rows += [rows_of(group, m, TRANSITION, found_steps) for m, found_steps in begins.items()]
    rows += [rows_of(group, m, DISTANCE, value[0]) for m in here for title, value in distances(group, here).items() if title == m.title]
    return join([*rows, scored(group, here, [SIMILARITY, ALIGNMENT, "quality"])])


def measured(key, group):
    """The evidence of one scenario, the methods with static transitions where its own traces have them, and a few pictures."""
    run, label = group.experiment, group.label
    anew = scoring([NONE, *(m for m in chosen if m.name == "dynamic-transition")], [SIMILARITY, ALIGNMENT, "quality"])
    sets = {label: group.prompts, DESCRIPTIONS: not_memorized}
    found = gather(page.name, run, sets, by_picture, profile, n_prompts, {label: 2, DESCRIPTIONS: 0}, anew)
    begins = {m: found.values(TRANSITION, m, label) for m in waiting}
    here = [at_transition(m, begins[m]) if m.name.startswith("static") else m for m in chosen]
    own = own_methods(key, here)
    few = found.groups[label]
    return SimpleNamespace(found=found, label=label, here=here, own=own, begins=begins, pictures=strips(few, [NONE, *own], 2), prompts=few.prompts.prompts[:2],
                           steps=found.values(TRANSITION, UNGUIDED, label), other=found.values(TRANSITION, UNGUIDED, DESCRIPTIONS),
                           model=run.substrate.name, provenance=run.provenance())  # fmt: skip


with redirect_stdout(StringIO()) as said:
    found = each(measured, models, memorized=memorized, n_prompts=None, **page.settings)


def apart(first, second):
    return spread_difference(found[first].steps, found[second].steps, steps) if {first, second} <= set(found) else None


def worst(key, measure, metric, largest=False):
    """A change or share under that of the text's own methods that is worst in a scenario."""
    r = found.get(key)
    return None if r is None else worst_of(r.own, lambda m: getattr(r.found, measure)(metric, m, NONE, r.label), largest)


lowering = {key: worst(key, "change", SIMILARITY, largest=True) for key in SCENARIOS}
aligned = {key: worst(key, "share", ALIGNMENT) for key in SCENARIOS}
spreads = {key: spread(r.steps, steps) for key, r in found.items()}
page.conclude(
    {
        "B3": [apart(a, b) for a in ("pretrained", "duplicated") for b in ("small", "class")],
        "B6": [*(lowering[key] for key in ("small", "class", "duplicated", "pretrained", "large")),
               *(aligned[key] for key in ("small", "duplicated", "pretrained")), None, None, None],
    },  # fmt: skip
    page.experiment(),
)
page.answer(
    "Pictures with a transition, and how far its step varies between them as a share of the schedule:",
    "; ".join(f"{(r.steps >= 0).sum()} of {r.steps.size}, {told(spreads[key])} ({SCENARIOS[key].number}: {kind_of(spreads[key])})" for key, r in found.items())
    + ".",
    "The weakest of the text's methods changes similarity to training by",
    "; ".join(f"{told(lowering[key])} ({s.number})" for key, s in SCENARIOS.items()) + ".",
    "Of descriptions that are not memorized", "; ".join(f"{(r.other >= 0).sum()} of {r.other.size} ({SCENARIOS[key].number})" for key, r in found.items()),
    "pictures have a transition as well.",
)
for r in found.values():
    if r.label == "memorized":
        print(r.found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-key", "caption": "Transition step of every picture, without guidance, by scenario: prompts of the scenario beside descriptions that are not memorized. A static transition is one column of dots, a dynamic one is spread out; a scenario without dots has no picture with a transition."}, "image": {"alt": "Transition step of every picture by scenario, prompts of the scenario beside prompts that are not memorized", "width": "100%"}}
by_scenario = {SCENARIOS[key].label: {"of the scenario": r.steps, "descriptions": r.other} for key, r in found.items()}
plots.step_dots(by_scenario, steps, "transition step", "no picture has a transition");

# %% [markdown]
# Jain and others study four ways in which memorization comes about: (1) a model fine-tuned on a small set until it overfits, and (1b) on one ten times
# larger; (2) fine-tuned with one caption per class; (3) fine-tuned on a few pictures that are duplicated among many single ones; (4) a pre-trained model with
# its own memorized prompts. They say that in 1 and 2 all pictures share one transition point, while in 3 and 4 each prompt and noise has its own (B3), and
# that waiting for it lowers similarity everywhere at little cost (B6). On MiniSD the scenarios are fine-tuned on fresh scenes by the trainer that also
# fine-tunes Stable Diffusion (`memlib finetune`, see [](../book/running.md)).
#
# A *static* transition point is not taken from the text, whose models are others, but is the median of the scenario's own transition steps; where no picture
# has one, the text's own switch-on time stands in. That earlier methods work only in their own scenario (B7) is judged [with all
# mitigations](16_all_mitigations).
#
# ## Reported beside measured

# %% tags=["hide-input"]
def middle(values):
    values = values[values >= 0]
    return "none" if not values.size else f"{np.median(values):.0f} ({values.min():.0f} to {values.max():.0f})"


lines = {
    SCENARIOS[key].label: {
        "according to Jain and others": SCENARIOS[key].kind, "measured": kind_of(spreads[key]), "spread": told(spreads[key], 3),
        "median step (range)": middle(r.steps), "with a transition": f"{(r.steps >= 0).sum()} of {r.steps.size}",
        "descriptions: with a transition": NOT_MEASURED if r.other is None else f"{(r.other >= 0).sum()} of {r.other.size}",
    } for key, r in found.items()
}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("scenario"), "Static (at most a twentieth of the schedule) or dynamic, by scenario")

# %% tags=["hide-input"]
rows = reported_at("basin", [s.place for s in SCENARIOS.values()])
rows = rows[rows["metric"].isin(["similarity_p95", "similarity", "clip_score"])]
reported = rows.pivot_table(index=["place", "setting", "method"], columns="metric", values="value", sort=False).round(3).astype(object).fillna("–")
Captioned(reported, "What Jain and others report: other models and metrics, so compare directions and order", folded=True)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-traces", "caption": "Magnitude of the difference of the two predictions by step, without guidance, with 95 % intervals: prompts of the scenario beside descriptions, in three of the scenarios. A transition is the first rise after a fall."}, "image": {"alt": "Magnitude of the difference of the predictions by step without guidance, one panel per scenario, prompts of the scenario beside prompts that are not memorized", "width": "100%"}}
def by_step(r, label):
    points = {k: r.found.values(f"magnitude at step {k}", UNGUIDED, label) for k in range(steps)}
    return {k: student_mean(values) for k, values in points.items() if values is not None}


panels = {f"scenario {SCENARIOS[key].number}": {"of the scenario": by_step(r, r.label), "descriptions": by_step(r, DESCRIPTIONS)} for key, r in found.items()
          if key in ("small", "duplicated", "pretrained")}  # fmt: skip
plots.bands(panels, "step (0 is the noisiest)", "magnitude of the difference", width=3.2);

# %% [markdown]
# ## The pictures
#
# Without mitigation, under the methods that Jain and others use in the scenario, and the training pictures, first seed, made now. Guidance that never begins
# gives pictures that ignore the prompt: a low similarity is then no mitigation.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-pictures", "caption": "Two prompts of each scenario: without mitigation, under the text's own methods, and the training picture."}, "image": {"alt": "For each scenario two prompts: pictures without mitigation, under the text's methods, and training pictures", "width": "100%"}}
titles = sorted(dict.fromkeys(title.split(" (")[0] for r in found.values() for title in r.pictures), key=lambda title: title == "training picture")
blank = np.full_like(next(iter(next(iter(found.values())).pictures.values())), 255)
rows_here = [{title.split(" (")[0]: strip for title, strip in r.pictures.items()} for r in found.values()]
columns = [f"{SCENARIOS[key].number}: {prompt}" for key, r in found.items() for prompt in r.prompts]
plots.montage({title: np.concatenate([own.get(title, blank[: len(next(iter(own.values())))]) for own in rows_here]) for title in titles}, columns);

# %% [markdown]
# ## Is it about memorization?
#
# Prompts that are not memorized pass through the same models in the figures above: where they have transitions as well, a transition is no sign of a copy.
# A scenario whose pictures are not above the copy bound without mitigation is one in which little was memorized verbatim.

# %% tags=["hide-input"]
def shown(r, m):
    scores = {metric: told(r.found.mean(metric, m, r.label)) for metric in (SIMILARITY, ALIGNMENT, "quality")}
    far, begun = r.found.values(DISTANCE, m, r.label), next((begins for own, begins in r.begins.items() if own.name == m.name and m.name.startswith("dynamic")), None)
    return {"guided": "all" if begun is None else f"{(begun >= 0).sum()} of {begun.size}", "used in the text": "yes" if m in r.own else "", **scores,
            DISTANCE: NOT_MEASURED if far is None else f"{far.item():.3f}"}  # fmt: skip


table = {(SCENARIOS[key].label, m.title): shown(r, m) for key, r in found.items() for m in r.here}
Captioned(pd.DataFrame(table).T.rename_axis(["scenario", "method"]), "Every method of this page in every scenario, means with 95 % intervals")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). The text's quality is a distance of distributions (FID), which a few
# pictures cannot tell: its parts are not measured here, and the distances above (KID to pictures that the model never saw) are shown without a verdict.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# ## All numbers

# %% tags=["hide-input"]
print(said.getvalue())
run = page.experiment(n_seeds=1)
sampler = bench.Sampler(run.substrate, steps, guidance, scheduler)
taken = bench.times(sampler, chosen, run.group(memorized, n_timed or bench.TURNS).prompts.prompts, n_timed)
print(taken.source)
Captioned(taken.table().rename_axis("method"), "Time, one picture at a time", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"kind_{key}": kind_of(spreads.get(key)) for key in SCENARIOS} | {f"change_{key}": value for key, value in lowering.items()})

# %% tags=["remove-input"]
for key, r in found.items():
    print(f"{SCENARIOS[key].label}: {r.provenance}\n")
run.provenance()
