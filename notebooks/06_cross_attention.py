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
# # Cross-attention by position
#
# **Claims C6a and C6b** · `clip`, Sections 3.2 and 4.2, Appendix D, Figures 5, 8, 15 and 16 {cite:p}`clip`
#
# In every cross-attention layer each pixel divides its attention among the 77 text positions. Earlier work found that at
# the end of denoising a memorized prompt draws unusual attention to `<eot>`, the "bright ending". `clip` says more:
#
# - **C6a** The padding positions next to `<eot>` are bright as well.
# - **C6b** The edits that suppress memorization lower attention on `<eot>` and padding and leave the prompt positions as
#   they were.
#
# Attention here is the conditional half's probability, averaged over heads and pixels. What is judged is the last step in
# the layers that `clip` shows: those at the finest resolution of the U-Net's down path that have cross-attention (in
# Stable Diffusion the two 64-pixel layers). All positions share a sum of one, so 1/77 = 0.013 is an even share. Prompts
# are aligned at `<eot>`. A prompt of fewer than five tokens has no value at the places it does not reach; `<sot>`, which
# draws attention whatever the prompt, is never counted among the prompt positions.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.page import Page
from memlib.judging.estimates import Estimate, group_difference, mean_interval
from memlib.prompts.embedding import PADDINGS, encode_prompts
from memlib.prompts.interventions import apply, mask_padding
from memlib.results import figures as plots
from memlib.sampling.attention.positions import aligned_at_eot, entropy, finest_down_layers, short_names, span_mean
from memlib.sampling.attention.runs import attention_of, last_maps
from memlib.sampling.attention.taps import cross_attention_layers

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 18  # at most so many prompts of each set
n_seeds = 1  # seeds 0, 1, ... for every prompt
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("C6a", "C6b")
plots.style()
run = page.experiment()
known, other = groups = run.pair(memorized, not_memorized, n_prompts)
third = run.control("auto", n_prompts)
shown = groups if third is None else (*groups, third)
layers = list(cross_attention_layers(run.substrate))
finest = finest_down_layers(layers)
offsets = list(range(-5, 6))
PROMPT, END, EOT, PAD = slice(0, 5), slice(5, 11), slice(5, 6), slice(6, 11)

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()
print("layers judged:", ", ".join(finest))

# %% [markdown]
# `clip` prints no numbers for either claim, only maps and a plot; there is nothing reported to set beside ours.
#
# ## Maps at the last step
#
# One row per prompt: its picture, then its maps at the positions around `<eot>`, averaged over heads and the layers
# judged, first seed. All maps of both figures share one scale, as in `clip`'s Figures 15 and 16; it ends at the 99th
# percentile, so that a few bright pixels do not leave the rest black.

# %%
def around_eot(maps, tokens):
    """Maps [N, h, w, 77] to maps [N, h, w, 11] at the positions around each prompt's <eot>."""
    return np.moveaxis(aligned_at_eot(np.moveaxis(maps, 0, 2), tokens), 2, 0)


first = {group.label: group.embedding.select(slice(0, 5)) for group in groups}
maps = {label: around_eot(last_maps(run, embedding, finest), embedding.tokens) for label, embedding in first.items()}
limits = 0, np.nanpercentile(np.concatenate([m.ravel() for m in maps.values()]), 99)
columns = ["eot" if o == 0 else f"{o:+d}" for o in offsets]


def show(group):
    pictures = group.sample(first[group.label])[:, 0]
    plots.attention_maps(maps[group.label], pictures, group.prompts.prompts[:5], columns, f"Prompts that are {group.label}", limits)

# %% mystnb={"image": {"alt": "Memorized prompts, one row each: the picture, and its attention maps at the last step for five positions before the end token, the end token and five padding positions after it", "width": "100%"}}
show(known)

# %% mystnb={"image": {"alt": "Prompts that are not memorized, one row each: the picture, and its attention maps at the last step for five positions before the end token, the end token and five padding positions after it", "width": "100%"}}
show(other)

# %% [markdown]
# ## Attention around `<eot>`
#
# The same without the pixels: mean over prompts and seeds, with 95 % intervals by bootstrap over prompts. Memorized
# captions may differ from the others in kind, not only in being memorized. Where the training set is known (MiniSD), a
# third line shows captions of the very same kind whose pictures were seen once; it is shown, not judged.

# %%
recorded = {group.label: attention_of(run, group.embedding) for group in shown}  # [steps, layers, prompts, seeds, 77]


def aligned(values, group):
    """Attention [..., prompts, seeds, 77] at the eleven positions around <eot>, [..., prompts, seeds, 11]."""
    return np.moveaxis(aligned_at_eot(np.moveaxis(values, -2, 0), group.embedding.tokens), 0, -2)


def judged(values, group):
    """Attention at the last step in the layers judged, [prompts, seeds, 11]."""
    return aligned(values[-1, [layers.index(name) for name in finest]].mean(0), group)


def curve(values):
    """One estimate per position of [prompts, seeds, positions]; NaN marks prompts that do not reach a position."""
    nowhere = Estimate(np.nan, np.nan, np.nan, 0, 0)
    return [mean_interval(v, missing="drop") if np.isfinite(v).any() else nowhere for v in np.moveaxis(values, -1, 0)]


before = {group.label: judged(recorded[group.label], group) for group in shown}

# %% mystnb={"image": {"alt": "Attention at the last step by position from the end token, five before to five after, one line for each set of prompts, with intervals over prompts", "width": "80%"}}
plots.by_position({label: curve(values) for label, values in before.items()}, offsets, "attention per position");

# %%
places = {"prompt (last five)": PROMPT, "<eot>": EOT, "padding (first five)": PAD}
contrast = {
    place: {label: mean_interval(span_mean(values, part), missing="drop") for label, values in before.items()}
    | {
        f"memorized minus {group.label}": group_difference(span_mean(before["memorized"], part), span_mean(before[group.label], part), missing="drop")
        for group in shown[1:]
    }
    for place, part in places.items()
}
pd.DataFrame({place: {label: e.text(4) for label, e in row.items()} for place, row in contrast.items()})

# %% [markdown]
# ## By layer and step
#
# The last step of one layer is one cell of many. Here are all layers, from the first that runs (top) to the last, at all
# steps: mean attention to `<eot>` and to one of the five padding positions after it.

# %% mystnb={"image": {"alt": "Heat maps of attention by layer and denoising step: end token and neighbouring padding, memorized and not memorized prompts", "width": "100%"}}
panels = {}
for place in ("<eot>", "padding (first five)"):
    for group in groups:
        by_layer = np.nanmean(span_mean(aligned(recorded[group.label], group), places[place]), (2, 3))
        panels[f"{place}, {group.label}"] = by_layer.T
plots.heat_maps(panels, short_names(layers), "step (0 is the noisiest)", "attention per position");

# %% [markdown]
# ## Is the entropy of memorized prompts lower or higher?
#
# `clip` says in passing that memorized prompts show lower attention entropy; the public code of `attn` scores higher
# entropy as memorized. The figures below follow that code (mean over heads, pixels and layers, then $-\sum p \ln p$ over
# the 77 positions, here averaged over the last ten steps and at the first). They are shown, not judged.

# %%
entropies = {}
for group in shown:
    values = recorded[group.label]
    flat = entropy(values.reshape(*values.shape[:2], -1, values.shape[-1])).reshape(len(values), *values.shape[2:4])
    entropies[group.label] = {"first step": flat[0], "last ten steps": flat[-10:].mean(0)}
entropy_table = {
    when: {group.label: mean_interval(entropies[group.label][when]).text(3) for group in shown}
    | {
        f"memorized minus {group.label}": group_difference(entropies["memorized"][when], entropies[group.label][when]).text(3)
        for group in shown[1:]
    }
    for when in ("first step", "last ten steps")
}
pd.DataFrame(entropy_table)

# %% [markdown]
# ## Under the edits of Section 4.2
#
# Three edits of the embedding: padding replaced by `!` when the prompt is encoded; the same with the `<eot>` state set to
# zero; and 70 % of the padding states set to zero, spread evenly (`clip` does not say which; evenly treats near and far
# positions alike). A state set to zero still has its place in the softmax. The unconditional embedding stays as it is.
# Changes are paired by prompt and seed.

# %%
edits = {
    "swap": ("padding !", lambda group: encode_prompts(run.substrate, group.prompts.prompts, padding="!")),
    "swap_mask": ("padding !, <eot> ← 0", lambda group: apply("f", encode_prompts(run.substrate, group.prompts.prompts, padding="!"))),
    "partial": ("70 % of padding ← 0", lambda group: mask_padding(group.embedding, 0.7, "even")),
}
change = {
    (key, group.label): judged(attention_of(run, make(group), "last"), group) - before[group.label]
    for key, (_, make) in edits.items()
    for group in groups
}

# %% mystnb={"image": {"alt": "Change of attention at the last step by position from the end token under three edits, memorized prompts on the left, others on the right, with intervals over prompts", "width": "100%"}}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for axis, group in zip(axes, groups):
    lines = {label: curve(change[key, group.label]) for key, (label, _) in edits.items()}
    plots.by_position(lines, offsets, "change of attention per position", group.label, axis)
    axis.axhline(0, color="black", linewidth=0.8)

# %%
def fall_less_change(key, group):
    """Fall at <eot> and padding less the absolute change at the prompt positions, per position; [prompts, seeds]."""
    moved = change[key, group.label]
    return -span_mean(moved, END) - np.abs(span_mean(moved, PROMPT))


def relative(key, group, part):
    """Change of a span as a part of its attention before."""
    return mean_interval(span_mean(change[key, group.label], part) / span_mean(before[group.label], part), missing="drop")


rows = {
    (group.label, label): {place: relative(key, group, part).text(2) for place, part in places.items()}
    | {"fall at <eot> and padding less change at prompt": mean_interval(fall_less_change(key, group), missing="drop").text(4)}
    for group in groups
    for key, (label, _) in edits.items()
}
pd.DataFrame(rows).T.rename_axis(["prompts", "edit"])

# %% [markdown]
# The first three columns are changes relative to the attention before (-0.50 is half of it lost).
#
# ## Verdicts

# %%
against = "memorized minus not memorized"
quantities = {
    "C6a": {"eot_difference": contrast["<eot>"][against], "pad_difference": contrast["padding (first five)"][against]},
    "C6b": {f"excess_{key}": mean_interval(fall_less_change(key, known), missing="drop") for key in edits}
    | {f"prompt_change_{key}": relative(key, known, PROMPT) for key in edits},
}
idle = {"C6b": "This model pads with ! already, so two of the three edits change nothing."} if run.substrate.pad_id == PADDINGS["!"] else {}
page.judge({}, run, own=quantities, not_testable_because=idle);

# %% [markdown]
# ## Is it about memorization?
#
# For C6a the contrast is the claim itself. For C6b: the same quantities on prompts that are not memorized stand in the
# table above; here is the difference of the two groups.

# %%
apart = {
    label: group_difference(*(fall_less_change(key, group) for group in groups), missing="drop").text(4)
    for key, (label, _) in edits.items()
}
pd.DataFrame({"fall less change at prompt, memorized minus not memorized": apart})

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
glued = {f"entropy_{tag}": entropy_table[when][against] for when, tag in (("first step", "first"), ("last ten steps", "last"))}
for name, group in (("mem", known), ("other", other)):
    glued[f"length_{name}"] = f"{group.embedding.tokens.lengths.float().mean():.0f}"
    for (place, part), tag in zip(places.items(), ("prompt", "eot", "pad"), strict=True):
        glued[f"att_{tag}_{name}"] = contrast[place][group.label].text(4)
        glued |= {f"change_{key}_{tag}_{name}": relative(key, group, part) for key in edits}
page.glue(glued)

# %% [markdown]
# On this substrate C6a {glue:text}`verdict_C6a` and C6b {glue:text}`verdict_C6b`. At the last step `<eot>` draws
# {glue:text}`att_eot_mem` on memorized prompts and {glue:text}`att_eot_other` on others; a padding position next to it
# {glue:text}`att_pad_mem` and {glue:text}`att_pad_other`; a prompt position {glue:text}`att_prompt_mem` and
# {glue:text}`att_prompt_other`. With `!` padding and `<eot>` set to zero, memorized prompts' attention changes by
# {glue:text}`change_swap_mask_prompt_mem` of what it was at the prompt positions, by {glue:text}`change_swap_mask_eot_mem`
# at `<eot>` and by {glue:text}`change_swap_mask_pad_mem` at the padding; on other prompts by
# {glue:text}`change_swap_mask_prompt_other`, {glue:text}`change_swap_mask_eot_other` and
# {glue:text}`change_swap_mask_pad_other`. Memorized minus not memorized, the entropy differs by
# {glue:text}`entropy_first` nats at the first step and by {glue:text}`entropy_last` over the last ten.
#
# Two limits. Attention is a share: what one position gains another loses, and the two sets of prompts differ in wording
# and length ({glue:text}`length_mem` and {glue:text}`length_other` tokens on average), so a difference between them need
# not come from memorization; the third line of the plot, where there is one, helps to tell. And a change of
# attention under an edit says where the model looked, not what it did with it.

# %% tags=["hide-input"]
run.provenance()
