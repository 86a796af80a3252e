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
# # The attraction basin, measured
#
# **Claim B10** · `basin`, Section 4, Definitions 1 to 3 {cite:p}`basin`
#
# `basin` explains memorization by an attraction basin: the states (latents and time) from which sampling with guidance ends at the
# memorized picture, more precisely in a perceptual ball around it. "Intuitively" the basin is a funnel, broad at the first step and
# narrower later, which is why sampling can be led out of it. The text defines the basin and does not measure it. Here it is measured.
#
# **The axis** is the trajectory under plain guidance: it lies in the basin at every step, since going on from any of its states gives the picture
# it ends at. (The trajectory under zero guidance is no axis: by the text's Definition 3 it leaves the basin. It is drawn for comparison.)
# **The cut**: at each of several steps the latents are moved off the axis by a growing distance, along one random ray for each prompt, seed and step,
# and denoised to the end with guidance. **The ball** is copy similarity to the training picture at or above the descriptor's threshold.
# **The width** is the half distance, at which half of the latents still end in the ball.
#
# Latents at step 0 are noise and later ones nearly a picture, so that "the same distance" needs a meaning. Three are used:
#
# - *noise*: noise is added; the unit is the norm of the noise that the latents hold at that step. The latents then hold more noise than
#   the schedule expects, and sampling takes out only what it expects, so that a part of it stays in the picture: at large distances a picture may
#   leave the ball for its grain, with the memorized composition still in it;
# - *mixed*: the latents are mixed with fresh noise, their norm kept; 0 is the axis, 1 fresh noise and nothing else;
# - *unguided*: the latents are mixed with those of another trajectory under zero guidance at the same step, so that both ends are states that occur
#   there. This one is shown and not judged.
#
# The criterion below was fixed in `data/claims.yml` before anything ran. Prompts that are **not** memorized have no training picture: for
# them the ball lies around the picture that the axis itself ends at.

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.estimates import share_interval
from memlib.probes.basin import KINDS, Basin
from memlib.probes.basin_width import widths
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 5  # at most so many memorized prompts
n_others = 4  # at most so many prompts that are not memorized
n_seeds = 1  # seeds 0, 1, ... for every prompt
n_cuts = 6  # steps at which the basin is cut, evenly from step 0 to four fifths of the schedule
radii_noise = [0.25, 0.5, 1.0, 2.0, 4.0]  # distances, in norms of the noise
radii_mixed = [0.2, 0.4, 0.6, 0.8, 1.0]  # distances as the share r that is replaced
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance
scheduler = "ddim"  # ddim, euler: the others cannot start in mid-run
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("B10")
plots.style()
run = page.experiment()
known, other = run.group(memorized, n_prompts, "memorized"), run.group(not_memorized, n_others, "not memorized")
cuts = sorted({int(k) for k in np.linspace(0, 0.8 * steps, n_cuts).round() if k < steps})
radii = {"noise": [0.0, *radii_noise], "mixed": [0.0, *radii_mixed], "unguided": [0.0, *radii_mixed]}
basins = {group.label: Basin(group, cuts) for group in (known, other)}
threshold = run.thresholds.get("copy_threshold")
# The other prompts are cut in one way only, and around their own pictures, since they have no training picture.
measured_on = [(known, "noise"), (known, "mixed"), (known, "unguided"), (other, "noise")]
balls = {known.label: "training" if known.training is not None else "original", other.label: "original"}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds, quantities=True)
print("cut at steps", cuts)

# %% [markdown]
# ## The pictures
#
# Where guidance leads from latents at growing distance from the axis, by the step at which they were moved: the first memorized prompt and the
# first of the others, first seed. The first column is the picture that the axis ends at.

# %%
def rows(group, kind):
    """One row per cut: pictures of the group's first prompt and seed along the radius."""
    return {f"step {k}": basins[group.label].pictures(k, kind, radii[kind])[:, 0, 0] for k in cuts}


def columns(kind):
    return [f"{r:g}" for r in radii[kind]]

# %% mystnb={"image": {"alt": "A memorized prompt: pictures from latents moved off the guided trajectory by added noise, distance from left to right, step from top to bottom", "width": "70%"}}
plots.montage(rows(known, "noise"), columns("noise"), f"Memorized, {KINDS['noise']} (norms of the noise)");

# %% mystnb={"image": {"alt": "A memorized prompt: pictures from latents mixed with fresh noise, share from left to right, step from top to bottom", "width": "70%"}}
plots.montage(rows(known, "mixed"), columns("mixed"), f"Memorized, {KINDS['mixed']} (share r)");

# %% mystnb={"image": {"alt": "A memorized prompt: pictures from latents mixed with another trajectory under zero guidance, share from left to right, step from top to bottom", "width": "70%"}}
plots.montage(rows(known, "unguided"), columns("unguided"), f"Memorized, {KINDS['unguided']} (share r)");

# %% mystnb={"image": {"alt": "A prompt that is not memorized: pictures from latents moved off the guided trajectory by added noise, distance from left to right, step from top to bottom", "width": "70%"}}
plots.montage(rows(other, "noise"), columns("noise"), f"Not memorized, {KINDS['noise']} (norms of the noise)");

# %% [markdown]
# ## The shares
#
# Share of prompts and seeds that end in the ball, by step and distance. For memorized prompts the ball lies around the training picture where
# it is at hand; the table after the first has it around the picture that the axis ends at.

# %%
similarity = {
    (group.label, kind, to): basins[group.label].similarity(kind, radii[kind], to)
    for group, kind in measured_on
    for to in ("training", "original")
}
found = {
    key: widths(values >= threshold, radii[key[1]]) for key, values in similarity.items() if values is not None
}


def share_table(ball):
    """Shares by step and distance for each group and kind, ball around "training" or "original"."""
    parts = {}
    for group, kind in measured_on:
        measured = found.get((group.label, kind, ball))
        for i, k in enumerate(cuts):
            for j, r in enumerate(radii[kind]):
                share = NOT_MEASURED if measured is None else f"{measured.shares[i, j]:.2f}"
                parts.setdefault((group.label, kind, f"{r:g}"), {})[f"step {k}"] = share
    table = pd.DataFrame(parts).T
    return table[(table != NOT_MEASURED).any(axis=1)].rename_axis(["prompts", "kind", "distance"]) if found else NOT_MEASURED


share_table("training")

# %%
share_table("original")

# %% [markdown]
# ## The funnel
#
# The half distance by step with 95 % intervals by bootstrap over prompts (all steps and distances of a prompt are drawn together). An arrow, and
# "at least" in the table, mean that more than half still ended in the ball at the largest distance. The dashed line is how far the
# zero-guidance trajectory of the same noise is from the axis: where it lies outside the funnel, guidance comes too late.

# %%
apart = {group.label: basins[group.label].unguided_distance() for group in (known, other)}


def half_table():
    """Half distances by step for each group, kind and ball, and how far the zero-guidance trajectory is."""
    table = {}
    for (label, kind, ball), measured in found.items():
        table[f"{label}, {kind}, ball around {'training picture' if ball == 'training' else 'axis'}"] = {
            f"step {k}": ("at least " if measured.at_least[i] else "") + measured.half[i].text(2) for i, k in enumerate(cuts)
        }
    for label, distance in apart.items():
        table[f"{label}, zero guidance is this far"] = {f"step {k}": f"{distance[..., i].mean():.2f}" for i, k in enumerate(cuts)}
    return pd.DataFrame(table)


half_table()

# %% mystnb={"image": {"alt": "The funnel: half distance from the guided trajectory by step, drawn symmetrically, with the share that ends at the picture as shading, for three kinds of distance, memorized prompts", "width": "100%"}}
shown = {
    KINDS[kind]: (found[known.label, kind, balls[known.label]], cuts, radii[kind]) for kind in KINDS if (known.label, kind, balls[known.label]) in found
}
if shown and len(cuts) > 1:
    plots.funnels(shown, ["distance (norms of the noise)" if title == KINDS["noise"] else "distance (share r)" for title in shown],
            apart[known.label].mean((0, 1)), "zero guidance")  # fmt: skip

# %% mystnb={"image": {"alt": "The same for prompts that are not memorized, around the picture that the guided trajectory ends at, and for memorized prompts likewise", "width": "85%"}}
pair = {
    f"{group.label}, ball around the axis": (found[group.label, "noise", "original"], cuts, radii["noise"])
    for group in (known, other)
    if (group.label, "noise", "original") in found
}
if pair and len(cuts) > 1:
    plots.funnels(pair, ["distance (norms of the noise)"] * len(pair), apart[known.label].mean((0, 1)), "zero guidance (memorized)")

# %% [markdown]
# ## Without the trajectory
#
# How much of the space at each step belongs to the basin: the share of *fresh noise* (of the norm of the latents there), and of states that *zero
# guidance* passes from other noise, from which guidance ends at the picture. At step 0 both are fresh noise, and this is the share of seeds
# that reproduce the picture. Similarity is to the training picture where it is at hand.

# %%
def occupancy(kind):
    """Share [K] of the states at distance 1 that end in the ball, as text."""
    values = similarity[known.label, kind, balls[known.label]]
    if values is None:
        return {f"step {k}": NOT_MEASURED for k in cuts}
    last = values[..., radii[kind].index(1.0)] >= threshold
    return {f"step {k}": share_interval(last[..., i] if n_seeds > 1 else last[:, 0, i]).text(2) for i, k in enumerate(cuts)}


if radii_mixed[-1:] == [1.0]:
    display(pd.DataFrame({"fresh noise": occupancy("mixed"), "a state that zero guidance passes": occupancy("unguided")}))

# %% [markdown]
# ## Verdict

# %%
quantities = page.unmeasured()
for kind in ("noise", "mixed"):
    measured = found.get((known.label, kind, "training"))
    if measured is not None:
        quantities[f"half_{kind}_first"], quantities[f"half_{kind}_last"] = measured.half[0], measured.half[-1]
        quantities[f"narrowing_{kind}"], quantities[f"order_{kind}"] = measured.narrowing, measured.order
page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"b10_{name}": value for name, value in quantities.items()})
page.glue({"b10_last": str(cuts[-1])})
unguided = found.get((known.label, "unguided", balls[known.label]))
for name, i in (("first", 0), ("last", -1)):
    around_axis = {short: found.get((group.label, "noise", "original")) for group, short in ((known, "mem"), (other, "other"))}
    page.glue({f"b10_axis_{name}_{short}": measured and measured.half[i] for short, measured in around_axis.items()})
    page.glue({f"b10_unguided_{name}": unguided and ("at least " if unguided.at_least[i] else "") + told(unguided.half[i])})

# %% [markdown]
# On this substrate B10 {glue:text}`verdict_B10`. In norms of the noise the half distance is {glue:text}`b10_half_noise_first` at step 0 and
# {glue:text}`b10_half_noise_last` at step {glue:text}`b10_last` (narrowing {glue:text}`b10_narrowing_noise`, order of the steps
# {glue:text}`b10_order_noise`); as a share of fresh noise {glue:text}`b10_half_mixed_first` and {glue:text}`b10_half_mixed_last` (narrowing
# {glue:text}`b10_narrowing_mixed`, order {glue:text}`b10_order_mixed`); towards another trajectory under zero guidance
# {glue:text}`b10_unguided_first` and {glue:text}`b10_unguided_last`.
#
# Around the picture that the axis itself ends at, memorized prompts have {glue:text}`b10_axis_first_mem` and {glue:text}`b10_axis_last_mem` norms
# of the noise, others {glue:text}`b10_axis_first_other` and {glue:text}`b10_axis_last_other`. A picture that is nearly done may stay what it is
# whatever the prompt, so that a wide basin at a late step alone would be no sign of memorization.
#
# The mixed distance replaces a share of the whole latents, of which less and less is noise: a basin that had the same width in norms of the noise at
# every step would narrow in this measure all the same. That is why the claim has to hold in both.

# %% tags=["hide-input"]
run.provenance()
