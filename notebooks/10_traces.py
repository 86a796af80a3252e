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
# # Does the prompt's pull show a memorized picture?
#
# Claims B1, B4 and B9, Sections 4, 5 and 6.3, Appendix 8, Figures 2, 3, 6 and 9 of Jain and others {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 18  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
opposite = None  # scale of opposite guidance; None: minus the guidance, as in the text
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # trajectories at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import Page, told
from memlib.experiment.tables import median_step, middle_half
from memlib.judging.bounded import student_contrast, student_mean
from memlib.judging.roc import auc_interval, tpr_at_fpr
from memlib.probes.pull import log_magnitude, log_ratio_after, log_ratio_at_end
from memlib.probes.transitions import fall_step, steepest_fall, trace, transition_step
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather

page = Page("B1", "B4", "B9")
plots.style()
run = page.experiment()
away = -guidance if opposite is None else opposite
FREE, GUIDED, AGAINST, ONE = "no guidance", f"guidance {guidance:g}", f"opposite guidance {away:g}", "guidance 1"
REGIMES = {FREE: 0.0, GUIDED: guidance, AGAINST: away, ONE: 1.0}
TEXT, BY_PROGRAM, TURN, BY_TURN, FALL = "text, no guidance", f"program, {ONE}", f"text, {AGAINST}", f"program, {AGAINST}", "largest fall, no guidance"


def recording(*regimes):
    """The measurement of traces under some of REGIMES: magnitudes by step, and where each reading finds the transition."""
    def measured(group):
        rows = []
        for regime in regimes:
            found = trace(group, REGIMES[regime])
            parts = ("difference", "conditional", "unconditional") if regime == FREE else ("difference",) if regime != ONE else ()
            named = {f"{part}, step {k}": getattr(found, part)[..., k] for part in parts for k in range(found.difference.shape[-1])}
            readings = {FREE: {TEXT: found.transition(), FALL: fall_step(found.difference)}, ONE: {BY_PROGRAM: found.transition("as_published")},
                        AGAINST: {TURN: found.transition(), BY_TURN: found.transition("as_published_opposite"), "turn": transition_step(found.turn)}}
            named |= {f"transition, {name}": at for name, at in readings.get(regime, {}).items()}
            one = table.rows_of(group, regime, "", np.zeros(found.difference.shape[:2]))
            rows += [one.assign(metric=name, value=np.asarray(values, float).reshape(-1)) for name, values in named.items()]
        return table.join(rows)
    return measured


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, recording(*REGIMES), profile, n_prompts, anew=recording(FREE, GUIDED, AGAINST))


def pull(regime, of, part="difference"):
    """Magnitudes [P, S, T] of a group under a regime, prompts in the order of their names."""
    rows = found.rows[of]
    wide = rows[rows["method"] == regime].pivot(index=["prompt", "seed"], columns="metric", values="value")
    return wide[[f"{part}, step {k}" for k in range(steps)]].to_numpy().reshape(wide.index.get_level_values(0).nunique(), -1, steps)


def step_of(reading, of, regime=FREE):
    """Transition steps [P, S] by a reading, -1 for none."""
    return found.values(f"transition, {reading}", regime, of).astype(int)


recorded = {(regime, of): pull(regime, of) for regime in (FREE, GUIDED, AGAINST) for of in found.rows}
first = {of: recorded[FREE, of][..., 0] for of in found.rows}
drop = {key: steepest_fall(values) for key, values in recorded.items()}
has = {of: step_of(TEXT, of) >= 0 for of in found.rows}
area = {of: auc_interval(first[MEMORIZED][:, :1], first[of][:, :1]) for of in found.rows if of != MEMORIZED}
ends = (0, 1)
contrast = {of: {
    "log of the first magnitude": student_contrast(log_magnitude(first[MEMORIZED]), log_magnitude(first[of])),
    **{f"drop, {regime}": student_contrast(drop[regime, MEMORIZED], drop[regime, of], ends) for regime in (FREE, GUIDED, AGAINST)},
    "share with a transition": student_contrast(has[MEMORIZED], has[of], ends),
} for of in area}  # fmt: skip
once = contrast.get(SEEN_ONCE, {})
guided, free = recorded[GUIDED, MEMORIZED], recorded[FREE, MEMORIZED]
after = log_ratio_after(guided, free, step_of(TEXT, MEMORIZED))
fewer = student_contrast(has[SEEN_ONCE], has[MEMORIZED], ends) if SEEN_ONCE in has else None
measured = {
    "B1": [once.get("log of the first magnitude"), once.get(f"drop, {FREE}"), student_mean(drop[FREE, MEMORIZED], ends)],
    "B4": [student_mean(after, missing="drop") if np.isfinite(after).any() else None, student_mean(log_ratio_at_end(guided, free))],
    "B9": [area.get(SEEN_ONCE), area.get(SEEN_ONCE), fewer, student_mean(has[SEEN_ONCE], ends) if SEEN_ONCE in has else None],
}
page.conclude(measured, run, {"B9": "There are no prompts of the memorized ones' kind that were seen once."} if SEEN_ONCE not in has else None)
said = {of: (told(student_mean(first[of]), 1), told(student_mean(drop[FREE, of], ends)), told(student_mean(has[of], ends))) for of in found.rows}
page.answer(
    f"Without guidance the prompt's pull starts at {said[MEMORIZED][0]} on memorized prompts and loses a share of {said[MEMORIZED][1]} of its height",
    "within a tenth of the steps;" if SEEN_ONCE in said else "within a tenth of the steps.",
    f"on titles of the same kind that were seen once it is {said[SEEN_ONCE][0]} and {said[SEEN_ONCE][1]}." if SEEN_ONCE in said else "",
    f"The first step tells the two apart with an area of {told(area.get(SEEN_ONCE))}; a transition point is found on a share of {said[MEMORIZED][2]} of",
    f"memorized traces and {said[SEEN_ONCE][2]} of the others." if SEEN_ONCE in said else "memorized traces.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-key", "caption": "The pull, the norm of the difference of the predictions with and without the prompt, step by step: median over prompts and seeds, and their middle half as a band. The vertical axis is logarithmic. Compare memorized prompts with titles seen once, the same kind of caption: where do they part, and when?"}, "image": {"alt": "Magnitude of the difference of the two noise predictions by step, one panel each for no guidance, guidance and opposite guidance, one band for each set of prompts", "width": "100%"}}
AXIS = "step (0 is the noisiest)"
bands = {regime: {of: middle_half(recorded[regime, of]) for of in found.rows} for regime in (FREE, GUIDED, AGAINST)}
plots.bands(bands, AXIS, "magnitude of the difference", yscale="log");

# %% [markdown]
# At every denoising step the model predicts the noise twice, with the prompt and without. The norm of the difference
# $\lVert\varepsilon_c - \varepsilon_u\rVert_2$ says how hard the prompt pulls at this latent, and can be recorded whether or not guidance uses it. Jain
# and others read an attraction basin from it: without guidance (scale 0, so that the prompt does not act at all) the pull of a memorized prompt starts high
# and then drops steeply, that of another prompt stays low and flat (B1); with guidance from the first step it stays high to the end (B4); the first
# step's value tells memorized from other prompts, which have no transition point (B9). A *transition point* is where the trajectory leaves the
# basin; Algorithm 1 takes it from the first local minimum of the trace. The text prints curves for these claims and no numbers, so that there is
# nothing reported to set beside ours.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-both", "caption": "Without guidance, both predictions and their difference, as in Figure 3 of the text, which says that the conditional one is the larger before the transition and that the two meet there. Medians with the middle half."}, "image": {"alt": "Without guidance: magnitudes of the conditional and the unconditional prediction and of their difference by step, one panel for each set of prompts", "width": "100%"}}
both = {of: {part: middle_half(pull(FREE, of, part)) for part in ("conditional", "unconditional", "difference")} for of in found.rows}
plots.bands(both, AXIS, "magnitude");

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-single", "caption": "Single traces without guidance, first seed, three prompts of each set. The mark is the step from which Algorithm 1 would guide, one after the minimum; no mark where it never would."}, "image": {"alt": "Single traces of the magnitude without guidance, three prompts of each set, with the transition point marked", "width": "100%"}}
single = {}
for of, rows in found.rows.items():
    at = rows[(rows["metric"] == f"transition, {TEXT}") & (rows["seed"] == 0)].set_index("prompt")["value"].astype(int).sort_index()
    single[of] = [(prompt, recorded[FREE, of][i, 0], at[prompt]) for i, prompt in enumerate(at.index[:3])]
plots.marked_traces(single, "magnitude of the difference");

# %% [markdown]
# ## The pictures
#
# A column for each prompt at hand, first seed, memorized ones first. Without guidance the prompt has no part in the picture, which is one for all.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-pictures", "caption": "Pictures with guidance and with opposite guidance, and training pictures; memorized prompts, then titles that were seen once."}, "image": {"alt": "Pictures without guidance, with guidance and with opposite guidance, and training pictures, one column per prompt", "width": "100%"}}
shown = [group.part(8, 1) for group in found.groups.values()]
one = shown[0].part(1, 1)
rows = {FREE: np.repeat(one.sample(one.embedding, guidance=0.0)[:, 0], sum(map(len, shown)), 0)}
rows |= {regime: np.concatenate([part.sample(part.embedding, guidance=REGIMES[regime])[:, 0] for part in shown]) for regime in (GUIDED, AGAINST)}
if all(part.training is not None for part in shown):
    rows["training picture"] = np.stack([pictures[0] for part in shown for pictures in part.training])
plots.montage(rows, [prompt for part in shown for prompt in part.prompts.prompts]);

# %% [markdown]
# ## How steep is the drop?
#
# The drop of a trace is the largest fall between two steps at most a tenth of the schedule apart, as a share of its own highest value: an even fall to
# zero over the whole run loses a tenth, a cliff nearly all.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-drop", "caption": "Drop of the trace, one dot per prompt (mean over seeds), boxes for quartiles, with the bound that is called steep: twice what an even fall to zero loses."}, "image": {"alt": "Drop of the trace under no guidance, guidance and opposite guidance, one dot per prompt, one colour for each set of prompts", "width": "100%"}}
flat = [{"prompts": of, "edit": regime, "drop": value} for (regime, of), values in drop.items() for value in values.mean(1)]
plots.distributions(pd.DataFrame(flat), "drop", page.verdicts["B1"].parts[2].bound, "steep:");

# %% [markdown]
# ## One step to tell them apart
#
# The magnitude at the first step needs one pair of evaluations and does not depend on guidance.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-first", "caption": "Left, how the magnitude at the first step is distributed, one picture per prompt; right, how well it tells memorized prompts from each other set. The curve against titles seen once is the one that counts."}, "image": {"alt": "Histogram of the magnitude at the first step for each set of prompts, and ROC curves of memorized against each other set", "width": "100%"}}
plots.separation({of: values[:, 0] for of, values in first.items()}, "magnitude at the first step");

# %% tags=["hide-input"]
lines = {
    f"memorized against {of} ({found.count(of)})": {
        "area, one picture": told(area[of], 3), "area, mean over seeds": told(auc_interval(first[MEMORIZED], first[of]), 3),
        **{f"true positives at {rate:.0%} false ones, one picture": told(tpr_at_fpr(first[MEMORIZED][:, :1], first[of][:, :1], rate)) for rate in (0.01, 0.03)},
    } for of in area
}  # fmt: skip
caption = "Detection by the first step; with fewer than 100 other prompts 1 % of false positives means none at all"
Captioned(pd.DataFrame(lines).T.rename_axis("prompts"), caption, folded=True)

# %% [markdown]
# ## Transition points, by the text and by the program
#
# The text switches guidance on one step after the first local minimum of the trace without guidance. The authors' program guides with scale 1 until then
# and takes the model's raw output, which is another quantity for models that predict velocity. With opposite guidance the text keeps its test; the
# program looks at how far the latents turn from step to step, and takes step 5 where that has no minimum
# ([discrepancies](../book/discrepancies)). The last reading, the end of the largest fall between two steps, is ours.

# %% tags=["hide-input"]
lines = []
for of in found.rows:
    reference = step_of(TEXT, of)
    for name, regime in ((TEXT, FREE), (BY_PROGRAM, ONE), (TURN, AGAINST), (BY_TURN, AGAINST), (FALL, FREE)):
        step = step_of(name, of, regime)
        none = (step_of("turn", of, AGAINST) if name == BY_TURN else step) < 0
        alike = ~none & (reference >= 0)
        lines.append({
            "prompts": f"{of} ({found.count(of)})", "reading": name, "step, median [quartiles]": median_step(np.where(none, -1, step)),
            "none found": f"{none.sum()} of {none.size}",
            "same step as the text, no guidance": "–" if name == TEXT else f"{(step == reference)[alike].sum()} of {alike.sum()}",
        })  # fmt: skip
Captioned(pd.DataFrame(lines).set_index(["prompts", "reading"]), "Transition steps by five readings")

# %% [markdown]
# ## Is it about memorization?
#
# Memorized prompts minus each of the other sets. Titles seen once are of the memorized prompts' own kind: what remains against them is not a matter of
# wording. Descriptions are another kind.

# %% tags=["hide-input"]
lines = {name: {f"minus {of}": told(by_name[name]) for of, by_name in contrast.items()} for name in next(iter(contrast.values()), {})}
Captioned(pd.DataFrame(lines).T.rename_axis("quantity"), "Memorized prompts minus others, with 95 % intervals")

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
# Two limits. Without guidance all prompts share the latents of their seed, so traces of one seed are not independent of each other; the intervals draw
# prompts and hold for these seeds. And a local minimum is no proof of a basin: whether switching guidance on there changes the picture is
# [another test](11_switch_on).
#
# ## All numbers

# %% tags=["hide-input"]
lines = {
    f"{of} ({found.count(of)})": {"magnitude at the first step": told(student_mean(first[of]))}
    | {f"drop, {regime}": told(student_mean(drop[regime, of], ends)) for regime in (FREE, GUIDED, AGAINST)}
    | {"share with a transition": said[of][2]}
    for of in found.rows
}
Captioned(pd.DataFrame(lines).rename_axis("mean"), "Means with 95 % intervals, by prompts", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"first_step_area": area.get(SEEN_ONCE), "drop_mem": student_mean(drop[FREE, MEMORIZED], ends)})

# %% tags=["remove-input"]
run.provenance()
