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
# # Does the trace tell when guidance stops copying?
#
# Claim B2, Section 4, Figures 2 and 4 of Jain and others {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "none"  # a second contrast, of another kind of caption: likewise
n_prompts = 24  # at most so many prompts of each set, where they are measured now
n_seeds = 1  # seeds 0, 1, ... for every prompt, where they are measured now
every = 2  # guidance is switched on at steps 0, every, 2 every, ...
coarser = 4  # prompts of the contrast are swept at every so-manieth of these steps
n_shown = 3  # memorized prompts in the interactive figure, beside one that was seen once
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance once it is on
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_mean
from memlib.models.devices import device_of
from memlib.models.speed import Speed
from memlib.models.substrate import load
from memlib.probes.flips import Flips
from memlib.probes.switch_on import REFERENCE_STEPS, sweep, swept_score, switch_steps
from memlib.probes.transitions import VARIANTS, trace
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather
from memlib.results.figures.interactive import Story, switch_figure
from memlib.results.figures.style import short

page = Page("B2")
plots.style()
# Before the switch the prompt does not count: these steps are done once for all prompts and switches with a seed (see memlib.sampling.prefix).
run = page.experiment(loaded=load(substrate, device, dtype, replace(Speed.on(device_of(device)), skip_unused=True, shared_prefix=True)))
swept = switch_steps(steps, every)
few_steps, last = swept[::coarser], swept[-1]
TRAINING, ORIGINAL, FREE = "similarity to training", "similarity to original", "no guidance"


def on_from(step):
    return FREE if step == steps else f"guidance from step {step}"


def sweeping(in_full):
    """The measurement of where guidance from each step leads, and of the transition in the trace without guidance; `in_full` of memorized prompts."""
    def measured(group):
        at = [*(swept if in_full and group.label == MEMORIZED else few_steps), steps]
        pictures, recorded = sweep(group, at), trace(group, 0.0)
        rows = [table.rows_of(group, on_from(k), score, values[..., i]) for score in (TRAINING, ORIGINAL)
                if (values := swept_score(group, score, pictures)) is not None for i, k in enumerate(at)]  # fmt: skip
        return table.join([*rows, *(table.rows_of(group, FREE, f"transition, {v}", recorded.transition(v)) for v in VARIANTS)])
    return measured


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, sweeping(True), profile, n_prompts, {MEMORIZED: 4, SEEN_ONCE: 1, DESCRIPTIONS: 1}, sweeping(False))
threshold = found.bounds.get("strict")
predicted = {v: found.values(f"transition, {v}", FREE).astype(int) for v in VARIANTS}
similarity = [found.values(TRAINING, on_from(k)) for k in swept]
flips = None if threshold is None or any(v is None for v in similarity) else Flips(np.stack(similarity, -1), swept, predicted["text"], threshold, steps)


def mean_of(values):
    """Mean over the prompts that have a value, None where none has."""
    return None if flips is None or not np.isfinite(values).any() else student_mean(values, missing="drop")


signed = mean_of(flips.error() if flips else np.nan)
apart = mean_of(abs(flips.error()) if flips else np.nan)
page.conclude({"B2": [found.mean(TRAINING, on_from(0)), found.mean(TRAINING, on_from(last)), apart]}, run)
half = few_steps[len(few_steps) // 2]
own = {of: told(found.mean(ORIGINAL, on_from(half), of)) for of in found.rows if half}
page.answer(
    f"The similarity of memorized prompts to their training picture is {told(found.mean(TRAINING, on_from(0)))} with guidance from the first step and",
    f"{told(found.mean(TRAINING, on_from(last)))} with guidance from step {last}; where it falls below the strict bound and where the trace says lie",
    f"{told(apart, 1)} steps apart (with sign {told(signed, 1)}; below 0: the picture is lost before the transition).",
    f"Their similarity to the picture that plain guidance gives is {own.get(MEMORIZED, NOT_MEASURED)} with guidance from step {half}, that of titles of the",
    f"same kind that were seen once {own.get(SEEN_ONCE, NOT_MEASURED)}: what both have lost by then is no matter of memorization, the difference of",
    f"{told(found.contrast(ORIGINAL, on_from(half)))} between them is.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-key", "caption": "What guidance reaches that is switched on late, by the step at which it begins; bands are 95 % intervals over prompts, the last point is without guidance. Left: similarity to the training picture, with the strict bound (dashed) and the lax one (dotted). Right: similarity to the picture of the same noise under plain guidance, which every prompt has. Look for the step of the fall, and for a fall without memorization."}, "image": {"alt": "Similarity to the training picture, and to the picture under plain guidance, by the step at which guidance begins: memorized prompts and titles seen once", "width": "100%"}}
def curve(score, of):
    """A score's mean by switch-on step."""
    return {k: mean for k in [*swept, steps] if (mean := found.mean(score, on_from(k), of)) is not None}


panels = {f"{score} picture": {of: points for of in found.rows if (points := curve(score, of))} for score in (TRAINING, ORIGINAL)}
panels = {title: curves for title, curves in panels.items() if curves}
figure = plots.bands(panels, "step at which guidance begins", "similarity", (-0.05, 1.05)) if panels else print(f"similarity: {NOT_MEASURED}")
for bound, style in (("strict", "--"), ("lax", ":")) if panels else ():
    figure.axes[0].axhline(found.bounds[bound], color="black", linewidth=1, linestyle=style)

# %% [markdown]
# Sampling starts without guidance, so that the prompt has no say, and guidance is switched on at some step. Jain and others say that the picture flips:
# switched on before the *transition point*, guidance brings out the memorized picture, after it one that fits the prompt and is no copy. The transition
# is read from the trace without guidance alone, the norm of conditional minus unconditional prediction: one step after its first local minimum
# (Algorithm 1). So the trace predicts, before any guidance is used, where the picture flips. The text shows single prompts and gives no count, so that
# nothing reported can stand beside ours.
#
# ## Try it
#
# Choose a prompt and drag the step from which guidance is on (the arrow keys work too). The upper curve is the trace without guidance, from which the
# transition is predicted; the lower one what the sweep found. Without scripts, the rows below show the same.

# %% tags=["hide-input"]
stories = []
for of, group in found.groups.items():
    few = group.part(n_shown if of == MEMORIZED else 1, 1)
    pictures, recorded = sweep(few, [*swept, steps]), trace(few, 0.0)
    score = TRAINING if of == MEMORIZED and few.training is not None else ORIGINAL
    values = swept_score(few, score, pictures)
    stories += [Story(prompt, of, run.seeds[0], [*swept, steps], pictures[i, 0], None if values is None else values[i, 0], recorded.difference[i, 0],
                      recorded.times, recorded.transition()[i, 0], score, None if few.training is None else few.training[i][0])
                for i, prompt in enumerate(few.prompts.prompts)]  # fmt: skip
HTML(switch_figure(stories, threshold))

# %% [markdown]
# ## The pictures

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-pictures", "caption": "One row for each prompt of the interactive figure, first seed, made now: guidance begins later from left to right, and never in the last column. Memorized prompts first, then a title that was seen once."}, "image": {"alt": "Pictures with guidance switched on later and later from left to right, one row per prompt: memorized prompts, then a title seen once", "width": "100%"}}
shown = sorted({round(i) for i in np.linspace(0, len(swept), min(13, len(swept) + 1))})
titles = [FREE if k == len(swept) else f"step {swept[k]}" for k in shown]
plots.montage({short(f"{i + 1}  {story.prompt}", 33): story.pictures[shown] for i, story in enumerate(stories)}, titles);

# %% [markdown]
# ## The flip that the trace predicts, and the flip that the sweep finds
#
# *Found* is the step at which similarity to the training picture first falls below the strict bound, linear between swept steps; *predicted* is the step
# of Algorithm 1. The distance counts where there are both. Other readings of the same traces are those of the published program
# ([discrepancies](../book/discrepancies)); the yardstick is one step for all, the mean of those found, which knows the answer on average: a prediction
# that looks at the trace should be nearer than that.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-flips", "caption": "The step at which the picture stops being a copy against the step that the trace predicts, one dot for each prompt and seed; the band is what the claim allows. Dots below the line: the picture is lost before the predicted step."}, "image": {"alt": "Step at which the picture stops being a copy against the step predicted by the trace, with the line of equality and a band around it", "width": "70%"}}
if flips is not None and flips.both.any():
    figure, axis = plt.subplots(figsize=(4.8, 4.4))
    line, margin = np.array([0, steps]), page.verdicts["B2"].parts[2].bound * steps / REFERENCE_STEPS
    axis.fill_between(line, line - margin, line + margin, color="0.88", label=f"within {margin:g} steps")
    axis.plot(line, line, color="black", linewidth=0.8, label="found where predicted")
    axis.scatter(predicted["text"][flips.both], flips.found[flips.both], s=28, alpha=0.7, edgecolor="black", linewidth=0.4, label="a prompt and seed")
    axis.set(xlabel="predicted by the trace (step)", ylabel="found by the sweep (step)", xlim=(0, steps), ylim=(0, steps))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout();
else:
    print(f"Flips: {NOT_MEASURED}")

# %% tags=["hide-input"]
readings = {f"trace, {v}": step for v, step in predicted.items()}
if flips is not None and flips.crosses.any():
    readings["one step for all, the mean of those found"] = np.full(flips.found.shape, np.nanmean(flips.found))
lines = {name: {"predicted": f"{(step >= 0).sum()} of {step.size}", "both": str((flips.crosses & (step >= 0)).sum()) if flips else NOT_MEASURED,
                "steps apart": told(mean_of(abs(flips.error(step)) if flips else np.nan), 1),
                "found minus predicted": told(mean_of(flips.error(step) if flips else np.nan), 1)} for name, step in readings.items()}  # fmt: skip
if flips is not None:
    print(f"Of {flips.found.size} runs {flips.crosses.sum()} stop being copies at some step, {flips.comes_back.sum()} of them are copies again later on.")
Captioned(pd.DataFrame(lines).T.rename_axis("prediction"), "Flips predicted and found, memorized prompts, in steps of a 50-step schedule")

# %% [markdown]
# ## Is it about memorization?
#
# The picture of any prompt depends on when guidance begins. Where an interval holds zero, memorized prompts and others depend on it alike; titles seen once
# are the matched contrast, the same kind of caption.

# %% tags=["hide-input"]
others = [of for of in found.rows if of != MEMORIZED]
lines = {on_from(k): {f"{score}, minus {of}": told(found.contrast(score, on_from(k), against=of)) for score in (ORIGINAL, TRAINING) for of in others}
         for k in [*few_steps, steps]}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("guidance"), "Memorized prompts minus others") if others else print("There are no other prompts.")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md).

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# A run that never falls below the bound, or whose trace has no minimum, has no distance and is left out of the third part; the table above counts them.
# What a miniature cannot say stands under [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
lines = {f"{of} ({found.count(of)}), {score}": {on_from(k): told(points[k]) for k in points} for of in found.rows for score in (TRAINING, ORIGINAL)
         if (points := curve(score, of))}  # fmt: skip
caption = "Means with 95 % intervals, by the step at which guidance begins; not every step was swept for each kind of prompts"
Captioned(pd.DataFrame(lines).fillna("–").rename_axis("guidance"), caption, folded=True) if lines else print(NOT_MEASURED)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"b2_error": apart, "b2_signed": signed})

# %% tags=["remove-input"]
run.provenance()
