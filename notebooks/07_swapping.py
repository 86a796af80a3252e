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
# # Exchanging `<eot>` and padding between prompts
#
# **Claim C7** · `clip`, Appendix A.3, Figure 11 {cite:p}`clip`
#
# If padding carries the picture, then a prompt that is given another prompt's padding should give that prompt's picture.
# `clip` shows it for two prompts: exchanging the `<eot>` states does nothing, exchanging `<eot>` and padding exchanges the
# pictures. Here it is done for **all ordered pairs** of a set of prompts, memorized ones and, for contrast, others.
#
# The text does not say what happens where two prompts differ in length. The rule taken (`memlib.prompts.interventions.swap`):
# positions are counted from `<eot>`. The other prompt's `<eot>` state goes to the own `<eot>` position, its padding states from
# left to right to the own padding positions; what is left over of a longer padding is dropped, a shorter one starts again at its
# first state. Start and prompt states stay the prompt's own.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.page import Page, told
from memlib.judging.equivalence import pair_interval
from memlib.prompts.interventions import swap
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 18  # at most so many prompts of each set are drawn, as in the other notebooks
n_exchanged = 7  # the first so many of them are exchanged, each with every other
n_seeds = 2  # seeds 0, 1, ... of the unedited pictures
n_seeds_exchanged = 1  # the first so many of them for the exchanges
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("C7")
plots.style()
run = page.experiment()
known, other = groups = [group.part(n_exchanged, n_seeds_exchanged) for group in run.pair(memorized, not_memorized, n_prompts)]
exchanges = {"eot": "<eot> exchanged", "eot+pad": "<eot> and padding exchanged"}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds)

# %% [markdown]
# ## All ordered pairs
#
# Row $i$, column $j$ of a table is the prompt $i$ with states of the prompt $j$, under the same seed.

# %%
def exchanged(group, what):
    """Pictures [P, P, S, H, W, 3] of every prompt with every other prompt's states; the diagonal is the unedited picture."""
    count, own = len(group), group.pictures()
    pictures = np.stack([own] * count, axis=1)
    for shift in range(1, count):
        partners = [(row + shift) % count for row in range(count)]
        made = group.sample(swap(group.embedding, partners, what))
        for row, partner in enumerate(partners):
            pictures[row, partner] = made[row]
    return pictures


pictures = {(group.label, what): exchanged(group, what) for group in groups for what in exchanges}

# %% mystnb={"image": {"alt": "Memorized prompts exchanged in pairs: own picture, other prompt's picture, picture with the end state exchanged, picture with end and padding states exchanged", "width": "100%"}}
def rows(group):
    count = len(group)
    partners = np.array([(row + 1) % count for row in range(count)])
    own = np.arange(count)
    return {
        "own picture": group.pictures()[:, 0],
        "other's picture": group.pictures()[partners, 0],
        **{f"{label}": pictures[group.label, what][own, partners, 0] for what, label in exchanges.items()},
    }


plots.montage(rows(known), known.prompts.prompts, "Memorized prompts, each with the states of the next");

# %% mystnb={"image": {"alt": "Prompts that are not memorized, exchanged in pairs in the same way", "width": "100%"}}
plots.montage(rows(other), other.prompts.prompts, "Prompts that are not memorized, each with the states of the next");

# %% [markdown]
# ## The figures
#
# Similarity of each exchanged picture to the picture of its own prompt and to that of the other one, means over ordered pairs. The
# pairs of one prompt are not independent; the intervals (95 %) come from a bootstrap that draws prompts, and with
# them all pairs between those drawn.

# %%
def similarities(group, what):
    """Similarity to the own and to the other prompt's picture, two arrays [P, P, S]; None where the copy metric is not at hand."""
    metric, count = run.metrics.copy, len(group)
    if not metric.available or count < 2:
        return None
    vectors, originals = metric(pictures[group.label, what]), metric(group.pictures())
    return np.einsum("ijsd,isd->ijs", vectors, originals), np.einsum("ijsd,jsd->ijs", vectors, originals)


measured = {(group.label, what): similarities(group, what) for group in groups for what in exchanges}


def estimate(label, what, which):
    """Interval over pairs of the similarity to the own picture, to the other's, or of a difference."""
    found = measured[label, what]
    if found is None:
        return None
    own, others = found
    return pair_interval({"own": own, "other": others, "own - other": own - others, "other - own": others - own}[which])


table = pd.DataFrame(
    [
        {
            "prompts": f"{group.label} ({len(group)})", "exchange": label,
            **{f"similarity to {which} picture": told(estimate(group.label, what, which)) for which in ("own", "other")},
        }
        for group in groups
        for what, label in exchanges.items()
    ]
).set_index(["prompts", "exchange"])
table

# %% [markdown]
# `clip` reports no figures for this, only pictures of two prompts (Figure 11, *reported*).

# %% mystnb={"image": {"alt": "Similarity to the own picture against similarity to the other prompt's picture, one dot per ordered pair, by exchange and kind of prompt", "width": "100%"}}
if measured["memorized", "eot"] is not None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), sharex=True, sharey=True)
    for axis, (what, label) in zip(axes, exchanges.items()):
        for colour, group in zip(plots.COLOURS, groups):
            own, others = (values.mean(-1)[~np.eye(len(group), dtype=bool)] for values in measured[group.label, what])
            axis.plot(own, others, "o", ms=3.5, alpha=0.7, color=colour, label=group.label)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axis.set(title=label, xlabel="similarity to own picture", ylabel="similarity to other's picture" if what == "eot" else "")
    axes[0].legend(frameon=False)
    figure.tight_layout()

# %% [markdown]
# Below the diagonal the prompt's own picture is the nearer one, above it the other prompt's.
#
# ## Verdict

# %%
quantities = {
    "own_minus_other_eot": estimate("memorized", "eot", "own - other"),
    "other_minus_own_both": estimate("memorized", "eot+pad", "other - own"),
    "similarity_own_eot": estimate("memorized", "eot", "own"),
    "similarity_other_both": estimate("memorized", "eot+pad", "other"),
}
page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"pairs": str(len(known) * (len(known) - 1))})
page.glue(
    {
        f"{short}_{which}_{name}": estimate(group.label, what, which)
        for name, group in (("mem", known), ("other", other))
        for short, what in (("eot", "eot"), ("both", "eot+pad"))
        for which in ("own", "other")
    }
)

# %% [markdown]
# On this substrate C7 {glue:text}`verdict_C7`, over {glue:text}`pairs` ordered pairs of memorized prompts. With `<eot>` exchanged, the
# similarity to the own picture is {glue:text}`eot_own_mem` and to the other's {glue:text}`eot_other_mem`; with padding as well it is
# {glue:text}`both_own_mem` and {glue:text}`both_other_mem`. On prompts that are not memorized: {glue:text}`eot_own_other` and
# {glue:text}`eot_other_other`, then {glue:text}`both_own_other` and {glue:text}`both_other_other`. Where both kinds behave alike, the
# experiment says where a picture's content is kept, and nothing about memorization.

# %% tags=["hide-input"]
run.provenance()
