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
# # Two mitigations at inference
#
# **Claims C5a, C5b, C5c and C5e** · `clip`, Sections 4.1, 4.2 and A.4, Tables 4 and 5, Figures 7, 9 and 12 {cite:p}`clip`
#
# If repeated `<eot>` states carry memorized pictures, then there are two cheap ways to be rid of them: encode the prompt with another
# padding token, `!`, and set the one `<eot>` state left to zero; or set a part of the padding states to zero. `clip` claims:
#
# - **C5a** Each suppresses memorized pictures, and keeps alignment and quality.
# - **C5b** On prompts that are not memorized they do no harm.
# - **C5c** A memorized prompt gives different pictures under different seeds again.
# - **C5e** Setting 70 % of the padding to zero is enough; setting all of it spoils pictures.
#
# That no other mitigation costs less (C5d) is judged [beside all the others](16_all_mitigations).
#
# The criteria below were fixed in `data/claims.yml` before anything ran. "Does no harm" is tested for what it says: not that no
# difference was found, but that the difference is, with its whole interval, smaller than a margin fixed beforehand.
# `clip-news` says that the padding becomes `<sot>` and not `!`; that is tested too (`sot-pad`).
#
# In anyone's own pipeline each of these is one call: `memlib.mitigate(pipe, "pad-swap")`.

# %%
import numpy as np
import pandas as pd

from memlib.experiment.page import Page, listed, reported_at, told
from memlib.experiment.tables import summary
from memlib.judging.equivalence import equivalence, relative_change
from memlib.judging.estimates import mean_interval, paired_difference
from memlib.mitigations import REGISTRY, describe, get
from memlib.prompts.interventions import MASK_ORDERS
from memlib.results import edits as show
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
methods = ["pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"]  # mitigations in tables and pictures, by name; None: all that are registered
n_prompts = 18  # at most so many prompts of each set
n_seeds = 2  # seeds 0, 1, ... for every prompt
n_sweep = 6  # prompts of each set in the sweep over the share of padding set to zero, with the first seed
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("C5a", "C5b", "C5c", "C5e")
plots.style()
run = page.experiment()
known, other = run.pair(memorized, not_memorized, n_prompts)
edits = {"swap": get("pad-swap"), "swap_mask": get("pad-swap-eot-mask"), "mask": get("pad-mask")}  # by their names in the claims
chosen = [get(name) for name in (REGISTRY if methods is None else methods) if name != "none"]
MARGIN = 0.05  # that of C5a and C5b

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds)

# %% [markdown]
# The mitigations of this page, with what each does to a prompt so long that no padding is left. Those of `clip` leave the
# unconditional embedding as it is. All that are registered stand [side by side](16_all_mitigations) elsewhere.

# %%
for m in chosen:
    if remark := m.remark(run.substrate.tokenizer):
        print(remark)
pd.DataFrame(describe()).set_index("mitigation").loc[["none", *(m.name for m in chosen)]]

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed, under each mitigation and with all padding set to zero; the last row is the
# training picture where it is at hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, pictures under each mitigation, with all padding masked, and training pictures, one column per prompt", "width": "100%"}}
all_masked = get("pad-mask", fraction=1.0)
shown = ["none", *chosen, all_masked]
show.pictures(known, shown, "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and pictures under each mitigation, one column per prompt", "width": "100%"}}
show.pictures(other, shown, "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Alignment* is with a description of the picture where
# the prompt set has one (MiniSD's memorized captions are titles that do not say what their picture shows, and their descriptions
# describe the training picture), *alignment with prompt* with the prompt itself, as in `clip`. *Diversity* is taken across seeds.

# %%
columns = ("similarity to original", "similarity to training", "alignment", "alignment with prompt", "quality", "diversity")
summary([known, other], shown, columns)

# %% [markdown]
# `clip`'s own figures, *reported*: another model and other metrics, so compare directions and order, not values.

# %%
keys = ["none", *(key for m in chosen for key in m.reported)]
listed(reported_at("clip", ("Table 4", "Table 5", "Section 4.2"), keys))

# %% mystnb={"image": {"alt": "Similarity to the original picture by mitigation, one dot per prompt, memorized beside not memorized, with the copy threshold", "width": "100%"}}
show.dots([known, other], shown[1:], labels={m.title: m.label for m in chosen} | {all_masked.title: "all pad ← 0"});

# %% [markdown]
# ## Does it hurt?
#
# Changes of alignment and quality on prompts that are **not** memorized, paired by prompt and seed, as a share of the unedited
# mean. *Equivalent* means that the whole interval lies within the margin, *lower* or *higher* that it lies wholly
# beyond it, *open* that more prompts would be needed to tell.

# %%
base = {score: other.mean(score) for score in ("alignment with prompt", "quality")}


def relative(group, score, edit):
    """Change of a score as a share of its mean on unedited pictures of prompts that are not memorized; None if not measured."""
    first, second = group.score(score, edit), group.score(score)
    if first is None or base[score] is None or base[score].value <= 0:
        return None
    return relative_change(first, second, base[score].value)


harm = {(score, m.title): relative(other, score, m) for score in base for m in shown[1:]}
pd.DataFrame(
    {
        score: {m.title: "not measured" if (e := harm[score, m.title]) is None else equivalence(e, MARGIN).text() for m in shown[1:]}
        for score in base
    }
)

# %% [markdown]
# ## How much of the padding, and which
#
# The share of padding set to zero from 0 to 100 % in steps of 10, for the four ways to choose the positions that the text leaves open.
# Left: similarity to the original on memorized prompts. Right: fidelity, the mean of alignment and quality, each as a share of its
# mean without mitigation, on prompts that are not memorized, last positions first. The dashed line is the copy threshold.

# %%
shares = [round(0.1 * i, 1) for i in range(11)]
few_known, few_other = known.part(n_sweep, 1), other.part(n_sweep, 1)


def fidelity(group, edit):
    """Mean of alignment and quality per prompt and seed, each as a share of its unedited mean on `other`; None if not measured."""
    parts = [group.score(score, edit) for score in base]
    if any(p is None for p in parts) or any(b is None or b.value <= 0 for b in base.values()):
        return None
    return np.mean([p / b.value for p, b in zip(parts, base.values())], axis=0)


def at(share, which="last"):
    return get("pad-mask", fraction=share, which=which)


def interval(values):
    return None if values is None else mean_interval(values)


few_known.make(at(s, which) for which in MASK_ORDERS for s in shares)
few_other.make(at(s) for s in shares)
curves = {which: {s: few_known.mean("similarity to original", at(s, which)) for s in shares} for which in MASK_ORDERS}
kept = {s: interval(fidelity(few_other, at(s))) for s in shares}
pd.DataFrame(
    {f"similarity, {which}": {f"{s:.0%}": told(e) for s, e in points.items()} for which, points in curves.items()}
    | {"fidelity, last (not memorized)": {f"{s:.0%}": told(e) for s, e in kept.items()}}
)

# %% mystnb={"image": {"alt": "Similarity to the original against the share of padding set to zero for four choices of positions, and fidelity on prompts that are not memorized against the same share", "width": "100%"}}
drawn = {f"similarity to original, memorized ({len(few_known)})": curves, f"fidelity, not memorized ({len(few_other)})": {"last": kept}}
drawn = {title: {label: {100 * s: e for s, e in points.items()} for label, points in found.items()} for title, found in drawn.items() if found["last"][0.0]}
if drawn:
    figure = plots.bands(drawn, "padding set to zero (%)", "similarity, fidelity", width=4.8)
    if curves["last"][0.0]:
        figure.axes[0].axhline(run.thresholds["copy_threshold"], color="black", linestyle="--", linewidth=1)

# %% mystnb={"image": {"alt": "One memorized and one other prompt: pictures with 0 to 100 per cent of the padding set to zero, for four choices of positions", "width": "100%"}}
strips = {f"memorized, {w}": np.stack([few_known.pictures(at(s, w))[0, 0] for s in shares]) for w in MASK_ORDERS}
strips["not memorized, last"] = np.stack([few_other.pictures(at(s))[0, 0] for s in shares])
plots.montage(strips, [f"{s:.0%}" for s in shares], "Share of padding set to zero");

# %% [markdown]
# ## Verdicts

# %%
original = "similarity to original"
parts = (("alignment", "alignment with prompt"), ("quality", "quality"))
own = {
    name: {f"{part}_{short}": relative(group, score, m) for short, m in edits.items() for part, score in parts}
    for name, group in (("C5a", known), ("C5b", other))
}
full = {share: fidelity(other, at(share)) for share in (0.0, 0.7, 1.0)}
quantities = {
    **{f"similarity_{short}": known.mean(original, m) for short, m in edits.items()},
    **{f"diversity_gain_{short}": known.change("diversity", m) for short, m in edits.items()},
    "similarity_70": known.mean(original, at(0.7)),
    "fall_70_to_100": None if full[0.7] is None else paired_difference(full[0.7], full[1.0]),
    "knee": None if full[0.7] is None else mean_interval((full[0.7] - full[1.0]) / 3 - (full[0.0] - full[0.7]) / 7),
}
page.judge(quantities, run, own);

# %% [markdown]
# ## `!` or `<sot>`?
#
# `clip-news` has the start token where `clip` has `!`. Memorized prompts, `<eot>` set to zero in both; difference paired by prompt and seed.

# %%
sot = get("sot-pad")
pd.DataFrame(
    {
        f"{sot.name} minus {edits['swap_mask'].name}": {
            score: told(known.change(score, sot, edits["swap_mask"]))
            for score in ("similarity to original", "similarity to training", "alignment", "quality", "diversity")
        }
    }
)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue(show.numbers(known, other, edits))
page.glue({f"train_{short}": known.mean("similarity to training", m) for short, m in edits.items()})
page.glue({f"harm_{short}": own["C5b"][f"alignment_{short}"] for short in edits}, digits=3)
page.glue({"diversity_none": known.mean("diversity"), "diversity_swap": known.mean("diversity", edits["swap"])})

# %% [markdown]
# On this substrate C5a {glue:text}`verdict_C5a`, C5b {glue:text}`verdict_C5b`, C5c {glue:text}`verdict_C5c`
# and C5e {glue:text}`verdict_C5e`. Similarity to the original on memorized prompts (and on others): `!`
# padding {glue:text}`sim_swap_mem` ({glue:text}`sim_swap_other`); the same with `<eot>` zeroed {glue:text}`sim_swap_mask_mem`
# ({glue:text}`sim_swap_mask_other`); 70 % of the padding zeroed {glue:text}`sim_mask_mem` ({glue:text}`sim_mask_other`). Similarity to
# training: {glue:text}`train_swap`, {glue:text}`train_swap_mask`, {glue:text}`train_mask`. Alignment of prompts that are not memorized
# changes by these shares: {glue:text}`harm_swap`, {glue:text}`harm_swap_mask`, {glue:text}`harm_mask`. Diversity of memorized prompts
# across seeds is {glue:text}`diversity_none` without mitigation and {glue:text}`diversity_swap` with `!` padding.
#
# A low similarity alone says little: a mitigation that spoils every picture has it too. MiniSD was trained with one padding only, and
# its captions are simpler than those of the web, so that what `!` padding does to prompts that are not memorized need not be
# what it does to Stable Diffusion.

# %% tags=["hide-input"]
run.provenance()
