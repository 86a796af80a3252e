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
# # Guidance switched on later
#
# **Claim B2** · `basin`, Section 4, Figures 2 and 4 {cite:p}`basin`
#
# Sampling starts under zero guidance, so that the prompt has no say, and guidance is switched on at some step. `basin` claims that the
# picture flips: switched on before the pull of the prompt drops, guidance brings out the memorized picture; switched on
# after it, a picture that fits the prompt and is no copy. The drop is read from the trace under zero guidance alone, the norm of
# conditional minus unconditional prediction, as its first local minimum (Algorithm 1). So the trace predicts, before any
# guidance is used, at which step the picture flips. Here that prediction is tested against the flip, for every prompt and seed.
#
# The criterion below was fixed in `data/claims.yml` before anything ran. `basin` shows single prompts and gives no count; the contrast with
# prompts that are **not** memorized, which have no training picture, uses similarity to their own picture under plain guidance.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.experiment.tables import mean_of_those
from memlib.judging.estimates import mean_interval
from memlib.models.devices import device_of
from memlib.models.speed import Speed
from memlib.models.substrate import load
from memlib.probes.flips import Flips
from memlib.probes.switch_on import REFERENCE_STEPS, sweep, swept_score, switch_steps
from memlib.probes.transitions import VARIANTS, trace
from memlib.results import figures as plots
from memlib.results.figures.interactive import Story, switch_figure
from memlib.results.figures.style import short

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 6  # at most so many memorized prompts
n_others = 3  # at most so many prompts that are not memorized
n_seeds = 2  # seeds 0, 1, ... for every prompt
every = 2  # guidance is switched on at steps 0, every, 2 every, ...
n_shown = 4  # memorized prompts in the interactive figure, beside one other
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance once it is on
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("B2")
plots.style()
# Before the switch the prompt does not count: these steps are done once for all prompts and switches with a seed (see memlib.sampling.prefix).
sharing = replace(Speed.on(device_of(device)), skip_unused=True, shared_prefix=True)
run = page.experiment(loaded=load(substrate, device, dtype, sharing))
known, other = run.group(memorized, n_prompts, "memorized"), run.group(not_memorized, n_others, "not memorized")
groups = [known, other]
swept = switch_steps(steps, every)
switches = [*swept, steps]  # the last one never comes: zero guidance to the end, shown for comparison
threshold = run.thresholds.get("copy_threshold")

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds, quantities=True)

# %% [markdown]
# ## The pictures
#
# One row per prompt, first seed, guidance switched on later from left to right; in the last column it never is.

# %%
pictures = {group.label: sweep(group, switches) for group in groups}
traces = {group.label: trace(group, 0.0) for group in groups}
scores = {
    (group.label, name): swept_score(group, f"similarity to {name}", pictures[group.label])
    for group in groups
    for name in ("training", "original")
}


def strip(group, count=8, columns=13):
    """The first prompts' pictures of the first seed, and the columns they belong to."""
    chosen = sorted(set(np.linspace(0, len(switches) - 1, min(columns, len(switches))).round().astype(int)))
    rows = {
        short(f"{i + 1}  {prompt}", 33): pictures[group.label][i, 0, chosen]
        for i, prompt in enumerate(group.prompts.prompts[:count])
    }
    return rows, ["never" if switches[k] == steps else f"step {switches[k]}" for k in chosen]

# %% mystnb={"image": {"alt": "Memorized prompts: one row of pictures per prompt, guidance switched on later and later from left to right", "width": "100%"}}
plots.montage(*strip(known), "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: one row of pictures per prompt, guidance switched on later and later from left to right", "width": "100%"}}
plots.montage(*strip(other), "Prompts that are not memorized");

# %% [markdown]
# ## Try it
#
# Choose a prompt and a seed and drag the step from which guidance is on (the arrow keys work too). The upper curve is the trace under
# zero guidance, from which the transition is predicted; the lower one what the sweep found. Without scripts, the rows
# above and the curves below show the same.

# %% tags=["hide-input"]
measure = {group.label: "training" if scores[group.label, "training"] is not None else "original" for group in groups}
predicted = {group.label: traces[group.label].transition() for group in groups}


def stories(group, count):
    """The first prompts of a group, every seed, for the interactive figure."""
    label, kind = group.label, measure[group.label]
    for i, prompt in enumerate(group.prompts.prompts[:count]):
        for s, seed in enumerate(run.seeds):
            found = scores[label, kind]
            yield Story(
                prompt, label, seed, switches, pictures[label][i, s], None if found is None else found[i, s], traces[label].difference[i, s],
                traces[label].times, predicted[label][i, s], f"similarity to {kind}", None if group.training is None else group.training[i][0],
            )  # fmt: skip


HTML(switch_figure([*stories(known, n_shown), *stories(other, 1)], threshold))

# %% [markdown]
# ## The curves
#
# Mean over prompts and seeds with 95 % intervals by bootstrap over prompts. *To original* compares with the picture of the same seed under
# plain guidance; at step 0 that is the same picture.

# %%
def curve(label, name):
    """Similarity by switch-on step; None where it cannot be measured."""
    found = scores[label, name]
    return None if found is None else {k: mean_interval(found[..., i]) for i, k in enumerate(switches)}


curves = {(group.label, name): curve(group.label, name) for group in groups for name in ("training", "original")}
some = [switches[i] for i in np.unique(np.linspace(0, len(switches) - 1, 11).round().astype(int))]
pd.DataFrame(
    {
        f"{label}, to {name}": {("never" if k == steps else f"step {k}"): told(None if points is None else points[k]) for k in some}
        for (label, name), points in curves.items()
    }
)

# %% mystnb={"image": {"alt": "Similarity to training and to the original against the step at which guidance starts, with bands, memorized beside not memorized, and the copy threshold", "width": "100%"}}
panels = {
    f"{group.label} ({len(group)} prompts, {n_seeds} seeds)": {
        f"to {name}": curves[group.label, name] for name in ("original", "training") if curves[group.label, name] is not None
    }
    for group in groups
}
if all(panels.values()):
    figure = plots.bands(panels, "step at which guidance starts", "copy similarity")
    for axis in figure.axes:
        axis.axhline(threshold, color="black", linewidth=1, linestyle="--")

# %% [markdown]
# ## The flip that the trace predicts, and the flip that the sweep finds
#
# *Found* is the switch-on step at which similarity to training first falls below the copy threshold, linear between swept steps.
# *Predicted* is the step at which `basin`'s Algorithm 1 would switch guidance on, one after the first local minimum of the trace under zero
# guidance. The table counts the runs that lack one or the other; the error is found minus predicted in steps of a 50-step
# schedule: below zero the picture stopped being a copy before the predicted step.

# %%
steps_predicted, to_training = predicted[known.label], scores[known.label, "training"]
flips = None if to_training is None else Flips(to_training[..., : len(swept)], swept, steps_predicted, threshold, steps)
facts = {
    "runs (prompts x seeds)": steps_predicted.size,
    "found: similarity falls below the threshold": NOT_MEASURED if flips is None else int(flips.crosses.sum()),
    "of these, above it again later on": NOT_MEASURED if flips is None else int(flips.comes_back.sum()),
    "predicted: the trace has a local minimum": int((steps_predicted >= 0).sum()),
    "found step, mean": told(flips and mean_of_those(flips.found), 1),
    "predicted step, mean": told(mean_of_those(np.where(steps_predicted < 0, np.nan, steps_predicted)), 1) if (steps_predicted >= 0).any() else "none",
    "error, mean (50-step schedule)": told(flips and mean_of_those(flips.error()), 1),
    "error without its sign, mean": told(flips and mean_of_those(np.abs(flips.error())), 1),
    "not memorized: predicted": f"{int((predicted[other.label] >= 0).sum())} of {predicted[other.label].size}",
}
pd.DataFrame({"memorized": facts})

# %% mystnb={"image": {"alt": "Switch-on step at which the picture stops being a copy against the step predicted by the trace, one dot per prompt and seed, with the line of equality and the margin", "width": "70%"}}
if flips is not None and flips.both.any():
    both = flips.both
    prompt_of = np.broadcast_to(np.arange(len(known))[:, None], both.shape)[both]
    figure, axis = plt.subplots(figsize=(4.8, 4.4))
    margin = next(c.threshold for c in page.claims["B2"].criteria if c.quantity == "error") * steps / REFERENCE_STEPS
    line = np.array([0, steps])
    axis.fill_between(line, line - margin, line + margin, color="0.88", label=f"within {margin:g} steps")
    axis.plot(line, line, color="black", linewidth=0.8)
    axis.scatter(steps_predicted[both], flips.found[both], c=prompt_of, cmap="tab10", s=28, alpha=0.85, edgecolor="black", linewidth=0.4)
    axis.set(xlabel="predicted by the trace (step)", ylabel="found by the sweep (step)", xlim=(0, steps), ylim=(0, steps),
             title="One dot per run, one colour per prompt")  # fmt: skip
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()

# %% [markdown]
# Other readings of the same traces: the published code's way to find the transition (see [the discrepancies](../book/discrepancies)),
# and, as a yardstick, one step for all, the mean of those found (so it knows the answer on average). A prediction that looks at the
# trace should be nearer than that.

# %%
def reading(expected):
    """Runs with a prediction, and the mean error with and without its sign."""
    wrong = flips.error(expected)
    return [int((flips.crosses & (expected >= 0)).sum()), told(mean_of_those(wrong), 1), told(mean_of_those(np.abs(wrong)), 1)]


readings = {f"trace, {v}": [NOT_MEASURED] * 3 if flips is None else reading(traces[known.label].transition(v)) for v in VARIANTS}
if flips is not None and flips.crosses.any():
    readings["one step for all (mean of those found)"] = reading(np.full(flips.found.shape, np.nanmean(flips.found)))
pd.DataFrame(readings, index=["runs with both", "error", "error without its sign"]).T

# %% [markdown]
# ## Verdict

# %%
quantities = page.unmeasured() if flips is None else flips.quantities()
page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
half, last = switches[len(swept) // 2], swept[-1]
page.glue({f"b2_{name}": told(value, 1 if name == "error" else 2) for name, value in quantities.items()})
for group, kind in ((known, "mem"), (other, "other")):
    points = curves[group.label, "original"]
    page.glue({f"b2_original_{name}_{kind}": points and points[k] for name, k in (("half", half), ("last", last))})
page.glue({"b2_half": str(half), "b2_last": str(last), "b2_signed": told(flips and mean_of_those(flips.error()), 1)})
page.glue({"b2_runs": NOT_MEASURED if flips is None else f"{int(flips.both.sum())} of {steps_predicted.size}"})

# %% [markdown]
# On this substrate B2 {glue:text}`verdict_B2`. Similarity to training is {glue:text}`b2_similarity_first` with guidance from step 0 on and
# {glue:text}`b2_similarity_last` from step {glue:text}`b2_last` on. In {glue:text}`b2_runs` runs the picture flips and the trace has a
# transition; there the two lie {glue:text}`b2_error` steps apart (with sign, found minus predicted, {glue:text}`b2_signed`).
#
# The picture of a prompt that is not memorized depends on the switch as well: its similarity to the picture under plain guidance is
# {glue:text}`b2_original_half_other` with guidance from step {glue:text}`b2_half` on, and that of memorized prompts
# {glue:text}`b2_original_half_mem`. A falling curve alone is therefore no sign of memorization. MiniSD's memorized captions are titles and its other prompts descriptions, so that the two groups differ in wording too.

# %% tags=["hide-input"]
run.provenance()
