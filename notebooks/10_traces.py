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
# # Traces of the prompt's pull
#
# **Claims B1, B4 and B9** · `basin`, Sections 4, 5 and 6.3, Appendix 8, Figures 2, 3, 6 and 9 {cite:p}`basin`
#
# At every denoising step the model predicts the noise twice, with the prompt and without. The norm of the difference
# $\lVert\varepsilon_c - \varepsilon_u\rVert_2$ says how hard the prompt pulls at this latent, and can be recorded whether or not guidance
# uses it. `basin` reads an attraction basin from it:
#
# - **B1** Without guidance (scale 0, so that the prompt does not act at all) the pull of a memorized prompt starts high and then
#   drops steeply; that of another prompt stays low and flat.
# - **B4** With guidance from the first step it stays high to the end.
# - **B9** The first step's value tells memorized from other prompts; those have no transition point.
#
# A *transition point* is where the trajectory leaves the basin; Algorithm 1 takes it from the first local minimum of the trace. The
# criteria were fixed in `data/claims.yml` before anything was recorded. Steps are counted from 0, the noisiest.

# %%
import numpy as np
import pandas as pd

from memlib.experiment.page import Page
from memlib.experiment.tables import mean_of_those, median_step, middle_half
from memlib.judging.estimates import group_difference, mean_interval, share_interval
from memlib.judging.roc import auc_interval, tpr_at_fpr
from memlib.probes.pull import log_magnitude, log_ratio_after, share_at_end
from memlib.probes.transitions import fall_step, steepest_fall, trace, transition_step
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
control = "auto"  # third set, shown and not judged: "auto" is MiniSD's titles seen once, none elsewhere; "none"; or a name or file
n_prompts = 18  # at most so many prompts of each set
n_seeds = 2  # seeds 0, 1, ... for every prompt
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
opposite = None  # scale of opposite guidance; None: minus the guidance, as in the text
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # trajectories at once; None: from free memory

# %%
page = Page("B1", "B4", "B9")
plots.style()
run = page.experiment()
known, other = run.pair(memorized, not_memorized, n_prompts)
third = run.control(control, n_prompts)
shown = [known, other] if third is None else [known, other, third]
opposite = -guidance if opposite is None else opposite
regimes = {"no guidance": 0.0, f"guidance {guidance:g}": guidance, f"opposite guidance {opposite:g}": opposite}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# `basin` prints no numbers for these claims, only curves; there is nothing reported to set beside ours.
#
# On MiniSD memorized prompts are titles and the others descriptions, so a difference between the two need not come from
# memorization. A third set is therefore shown beside them there: titles of the same kind whose picture was seen once and is not
# reproduced. On other substrates it can be given as a parameter.
#
# ## The pictures
#
# One column per prompt, first seed. Without guidance the prompt has no part in the picture: the row shows one picture for all.

# %%
def rows(group):
    """Pictures of the first eight prompts under each regime, and their training pictures where they are at hand."""
    part = group.part(8, 1)
    made = {
        label: part.sample(part.embedding, guidance=scale)[:, 0]
        for label, scale in regimes.items()
    }
    return made | ({} if part.training is None else {"training picture": np.stack([pictures[0] for pictures in part.training])})

# %% mystnb={"image": {"alt": "Memorized prompts: pictures without guidance, with guidance and with opposite guidance, and training pictures, one column per prompt", "width": "100%"}}
plots.montage(rows(known), known.prompts.prompts[:8], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: pictures without guidance, with guidance and with opposite guidance, one column per prompt", "width": "100%"}}
plots.montage(rows(other), other.prompts.prompts[:8], "Prompts that are not memorized");

# %% [markdown]
# ## The pull, step by step
#
# Median over prompts and seeds, with the middle half of them as a band; the vertical axis is logarithmic.

# %%
recorded = {(label, group.label): trace(group, scale) for label, scale in regimes.items() for group in shown}
free, guided, against = regimes

# %% mystnb={"image": {"alt": "Magnitude of the difference of the two noise predictions by step, one panel each for no guidance, guidance and opposite guidance, one band for each set of prompts", "width": "100%"}}
axis_label = "step (0 is the noisiest)"
plots.bands(
    {label: {group.label: middle_half(recorded[label, group.label].difference) for group in shown} for label in regimes},
    axis_label, "magnitude of the difference", yscale="log",
);  # fmt: skip

# %% [markdown]
# Both predictions without guidance, as in `basin`'s Figure 3: the text says that the conditional one is the larger
# before the transition and that the two meet there, while the distance between them falls.

# %% mystnb={"image": {"alt": "Without guidance: magnitudes of the conditional and the unconditional prediction and of their difference by step, one panel for each set of prompts", "width": "100%"}}
parts = ("conditional", "unconditional", "difference")
plots.bands(
    {group.label: {part: middle_half(getattr(recorded[free, group.label], part)) for part in parts} for group in shown}, axis_label, "magnitude"
);

# %% [markdown]
# Single traces without guidance, first seed. The mark is the step from which Algorithm 1 would guide, one after the minimum; no mark
# where it never would.

# %%
transitions = {group.label: recorded[free, group.label].transition() for group in shown}
single = {
    group.label: [
        (prompt, recorded[free, group.label].difference[i, 0], transitions[group.label][i, 0])
        for i, prompt in enumerate(group.prompts.prompts[:3])
    ]
    for group in shown
}

# %% mystnb={"image": {"alt": "Single traces of the magnitude without guidance, three prompts of each set, with the transition point marked", "width": "100%"}}
plots.marked_traces(single, "magnitude of the difference");

# %% [markdown]
# ## Transition points, by the text and by the program
#
# The text switches guidance on one step after the first local minimum of the trace without guidance. The authors' program guides with
# scale 1 until then and takes the model's raw output, which is another quantity for models that predict velocity. With opposite
# guidance the text keeps its test; the program looks at how far the latents turn from step to step, and takes step 5 where that has no
# minimum ([discrepancies](../book/discrepancies)). The last reading, the end of the largest fall between two steps, is ours.

# %%
for group in shown:
    recorded["guidance 1", group.label] = trace(group, 1.0)


def readings(label):
    """Transition steps [prompts, seeds] by reading, and where each finds none."""
    turn = recorded[against, label]
    found = {
        "text, no guidance": transitions[label],
        "program, guidance 1": recorded["guidance 1", label].transition("as_published"),
        f"text, opposite guidance {opposite:g}": turn.transition(),
        f"program, opposite guidance {opposite:g}": turn.transition("as_published_opposite"),
        "largest fall, no guidance": fall_step(recorded[free, label].difference),
    }
    return {name: (step, (transition_step(turn.turn) if "program, opposite" in name else step) < 0) for name, step in found.items()}


table = []
for group in shown:
    by_reading = readings(group.label)
    reference, without = by_reading["text, no guidance"]
    for name, (step, none) in by_reading.items():
        both = ~none & ~without
        table.append(
            {
                "prompts": f"{group.label} ({len(group)})", "reading": name, "step, median [quartiles]": median_step(np.where(none, -1, step)),
                "none found": f"{none.sum()} of {none.size}",
                "same step as the text, no guidance": "–" if name == "text, no guidance" else f"{(step == reference)[both].sum()} of {both.sum()}",
            }
        )  # fmt: skip
pd.DataFrame(table).set_index(["prompts", "reading"])

# %% [markdown]
# ## How steep is the drop?
#
# The drop of a trace is the largest fall between two steps at most a tenth of the schedule apart, as a share of its own highest value:
# an even fall to zero over the whole run loses a tenth, a cliff nearly all. Means over prompts and seeds with 95 % intervals by bootstrap
# over prompts.

# %%
first = {group.label: recorded[free, group.label].difference[..., 0] for group in shown}
drop = {(label, group.label): steepest_fall(recorded[label, group.label].difference) for label in regimes for group in shown}
pd.DataFrame(
    {
        f"{group.label} ({len(group)})": {"magnitude at the first step": mean_interval(first[group.label]).text(2)}
        | {f"drop, {label}": mean_interval(drop[label, group.label]).text(2) for label in regimes}
        for group in shown
    }
)

# %% mystnb={"image": {"alt": "Drop of the trace without guidance, one dot per prompt, one column for each set of prompts, with the bound that the claim calls steep", "width": "80%"}}
flat = [{"prompts": g.label, "edit": label, "drop": v} for label in regimes for g in shown for v in drop[label, g.label].mean(1)]
plots.distributions(pd.DataFrame(flat), "drop", 0.5, "steep:", {label: label.replace(" guidance", "\nguidance") for label in regimes});

# %% [markdown]
# ## One step to tell them apart
#
# The magnitude at the first step needs one pair of evaluations and does not depend on guidance. Left: how it is distributed; right:
# how well it separates, one picture per prompt.

# %% mystnb={"image": {"alt": "Histogram of the magnitude at the first step for each set of prompts, and ROC curves of memorized against each other set", "width": "100%"}}
plots.separation({label: values[:, 0] for label, values in first.items()}, "magnitude at the first step");

# %%
def detection(label):
    """How well the first step tells memorized prompts from the set `label`."""
    one, several = (first["memorized"][:, :1], first[label][:, :1]), (first["memorized"], first[label])
    return {
        "AUC, one picture": auc_interval(*one).text(3),
        f"AUC, mean of {n_seeds}": auc_interval(*several).text(3),
        "TPR at 1 % FPR, one picture": tpr_at_fpr(*one, 0.01).text(2),
        "TPR at 3 % FPR, one picture": tpr_at_fpr(*one, 0.03).text(2),
    }


detected = {f"memorized against {group.label} ({len(group)})": detection(group.label) for group in shown[1:]}
pd.DataFrame(detected).T

# %% [markdown]
# With fewer than 100 prompts that are not memorized, a false positive rate below 1 % means none at all.
#
# ## Verdicts

# %%
guided_pull, free_pull = (recorded[label, "memorized"].difference for label in (guided, free))
quantities = {
    "B1": {
        "start_log_ratio": group_difference(log_magnitude(first["memorized"]), log_magnitude(first["not memorized"])),
        "drop_memorized": mean_interval(drop[free, "memorized"]),
        "drop_not_memorized": mean_interval(drop[free, "not memorized"]),
        "drop_difference": group_difference(drop[free, "memorized"], drop[free, "not memorized"]),
    },
    "B4": {
        "log_ratio_after": mean_of_those(log_ratio_after(guided_pull, free_pull, transitions["memorized"])),
        "share_at_end": mean_of_those(share_at_end(guided_pull, transitions["memorized"])),
    },
    "B9": {
        "auc_first_step": auc_interval(first["memorized"][:, 0], first["not memorized"][:, 0]),
        "share_with_transition": share_interval(transitions["not memorized"] >= 0),
    },
}
page.judge({}, run, own=quantities);

# %% [markdown]
# ## Is it about memorization?
#
# Memorized prompts minus each of the other sets. Where the third set is there, it is of the memorized prompts' own kind: what
# remains against it is not a matter of wording.

# %%
contrast = {
    f"memorized minus {group.label}": {
        "log of the first step's magnitude": group_difference(log_magnitude(first["memorized"]), log_magnitude(first[group.label])).text(2),
        "drop without guidance": group_difference(drop[free, "memorized"], drop[free, group.label]).text(2),
        "drop with guidance": group_difference(drop[guided, "memorized"], drop[guided, group.label]).text(2),
    }
    for group in shown[1:]
}
pd.DataFrame(contrast)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
for name, label in (("mem", "memorized"), ("other", "not memorized")):
    page.glue({f"first_{name}": mean_interval(first[label]), f"drop_{name}": mean_interval(drop[free, label])})
    page.glue({f"drop_guided_{name}": mean_interval(drop[guided, label]), f"transition_{name}": median_step(transitions[label])})
    page.glue({f"none_{name}": f"{(transitions[label] < 0).sum()} of {transitions[label].size}"})
page.glue(quantities["B4"] | quantities["B9"])
page.glue({"auc_control": None if third is None else auc_interval(first["memorized"][:, 0], first[third.label][:, 0])})

# %% [markdown]
# On this substrate B1 {glue:text}`verdict_B1`, B4 {glue:text}`verdict_B4` and B9 {glue:text}`verdict_B9`. At the first step the
# magnitude is {glue:text}`first_mem` on memorized prompts and {glue:text}`first_other` on others. Without guidance a trace loses
# {glue:text}`drop_mem` of its height at its steepest on memorized prompts and {glue:text}`drop_other` on others; with guidance
# {glue:text}`drop_guided_mem` and {glue:text}`drop_guided_other`. Algorithm 1 finds its transition at step {glue:text}`transition_mem`
# (median and quartiles) on memorized prompts and none on {glue:text}`none_mem` traces; on others at {glue:text}`transition_other` and none on
# {glue:text}`none_other`. On memorized prompts with a transition, the natural logarithm of the pull with guidance over that without
# is {glue:text}`log_ratio_after` from there on, and at the end the pull with guidance is {glue:text}`share_at_end` of what it was before.
#
# The first step tells memorized from other prompts with an area of {glue:text}`auc_first_step`, and from prompts of the same kind
# seen once with {glue:text}`auc_control`.
#
# Two limits. Without guidance all prompts share the latents of their seed, so traces of one seed are not independent of each other; the
# intervals draw prompts and hold for these seeds. And a local minimum is not proof of a basin: whether switching guidance on
# there changes the picture is another test.

# %% tags=["hide-input"]
run.provenance()
