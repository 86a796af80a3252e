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
# # Does a memorized prompt draw attention to its end and padding?
#
# Claims C6a and C6b of Kim and No, Sections 3.2 and 4.2, Appendix D, Figures 5, 8, 15 and 16 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "none"  # a second contrast, of another kind of caption: likewise
n_prompts = None  # at most so many prompts of each set, where they are measured now; None: all
n_seeds = 1  # seeds 0, 1, ... for every prompt, where they are measured now
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_contrast, student_mean
from memlib.judging.estimates import Estimate
from memlib.mitigations import get
from memlib.prompts.embedding import PADDINGS
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.edits import name_of
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather
from memlib.sampling.attention.positions import aligned_at_eot, entropy, finest_down_layers, short_names, span_mean
from memlib.sampling.attention.runs import attention_of, last_maps
from memlib.sampling.attention.taps import cross_attention_layers

page = Page("C6a", "C6b")
plots.style()
run = page.experiment()
layers = list(cross_attention_layers(run.substrate))
finest, offsets = finest_down_layers(layers), list(range(-5, 6))
EDITS = [get("pad-swap"), get("pad-swap-eot-mask"), get("pad-mask", which="even")]
EOT, PAD, PROMPT, END = (f"attention to {place}" for place in ("<eot>", "padding", "the prompt", "<eot> and padding"))
SPANS = {EOT: slice(5, 6), PAD: slice(6, 11), PROMPT: slice(0, 5), END: slice(5, 11)}  # of the eleven positions around <eot>
AT = {offset: f"attention at {offset:+d}" for offset in offsets}
ENTROPY = {"entropy at the first step": slice(0, 1), "entropy over the last ten steps": slice(-10, None)}


def aligned(values, group):
    """Attention [..., P, S, 77] at the eleven positions around <eot>, [..., P, S, 11]; NaN where a prompt does not reach."""
    return np.moveaxis(aligned_at_eot(np.moveaxis(values, -2, 0), group.embedding.tokens), 0, -2)


def at_last_step(group, unedited=None):
    """Attention per position at the last step in the layers judged, unedited and under each edit, by span and by position."""
    rows = []
    for edit in ("none", *EDITS):
        known = unedited is not None and edit == "none"
        recorded = unedited if known else attention_of(group.experiment, group.embedding if edit == "none" else group.edited(edit), "last")
        values = aligned(recorded[-1, [layers.index(name) for name in finest]].mean(0), group)
        found = {name: span_mean(values, span) for name, span in SPANS.items()} | {name: values[..., i] for i, name in enumerate(AT.values())}
        rows += [table.rows_of(group, edit, name, value) for name, value in found.items()]
    return table.join(rows)


def everything(group):
    """The same; entropy over all positions; and means over the group by layer and step."""
    recorded = attention_of(group.experiment, group.embedding)  # [T, L, P, S, 77]
    flat = entropy(recorded.reshape(*recorded.shape[:2], -1, recorded.shape[-1])).reshape(len(recorded), *recorded.shape[2:4])
    rows = [at_last_step(group, recorded), *(table.rows_of(group, "none", name, flat[part].mean(0)) for name, part in ENTROPY.items())]
    around = aligned(recorded, group)
    for place in (EOT, PAD):
        means = np.nanmean(span_mean(around, SPANS[place]), (2, 3))
        rows += [table.rows_of(group, f"{name}, step {k}", f"{place} by layer and step", value)
                 for k, line in enumerate(means) for name, value in zip(short_names(layers), line)]  # fmt: skip
    return table.join(rows)


def change(metric, edit, of=MEMORIZED):
    """A span's or position's attention under an edit minus that without, [P, S], or None."""
    pair = found.values(metric, edit, of), found.values(metric, "none", of)
    return None if pair[0] is None or pair[1] is None else pair[0] - pair[1]


def fall(edit, of=MEMORIZED):
    """Fall per position at <eot> and padding less twice the absolute change per prompt position, [P, S], or None."""
    end, prompt = change(END, edit, of), change(PROMPT, edit, of)
    return None if end is None or prompt is None else -end - 2 * np.abs(prompt)


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, everything, profile, n_prompts, anew=at_last_step)
idle = run.substrate.pad_id == PADDINGS["!"]
falls = {edit: None if idle or (values := fall(edit)) is None else student_mean(values) for edit in EDITS}
because = {"C6b": "This model pads with ! already, so that two of the three edits do not change the padding."} if idle else {}
page.conclude({"C6a": [found.contrast(EOT), found.contrast(PAD)], "C6b": list(falls.values())}, run, because)
at = {(metric, of): told(found.mean(metric, "none", of), 4) for metric in (EOT, PAD) for of in (MEMORIZED, SEEN_ONCE)}
left = {(metric, of): told(found.share(metric, EDITS[1], of=of)) for metric in (END, PROMPT) for of in (MEMORIZED, SEEN_ONCE)}
page.answer(
    f"At the last step `<eot>` draws {at[EOT, MEMORIZED]} of the attention on memorized prompts and a padding position next to it {at[PAD, MEMORIZED]}",
    f"(an even share is {1 / 77:.3f}); under `!` for padding and `<eot>` zeroed, {left[END, MEMORIZED]} of what was there is left at `<eot>` and padding, and",
    f"{left[PROMPT, MEMORIZED]} at the prompt.",
    f"On titles of the same kind that were seen once it is {at[EOT, SEEN_ONCE]} and {at[PAD, SEEN_ONCE]}, then {left[END, SEEN_ONCE]} and",
    f"{left[PROMPT, SEEN_ONCE]}: only what differs between the two belongs to memorization.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-key", "caption": "Attention at the last step by position from `<eot>`: left, unedited, a line for each kind of prompt; then its change under three edits, for memorized prompts and for titles seen once. Bands are 95 % intervals over prompts. Compare the lines on the left, and on the right what falls at and behind `<eot>` with what moves before it."}, "image": {"alt": "Attention by position around the end token for memorized prompts and titles seen once, and its change under three edits", "width": "100%"}}
def at_positions(values):
    """An estimate for each position of values by position; NaN where no prompt reaches it."""
    return [Estimate(np.nan, np.nan, np.nan, 0, 0) if value is None else student_mean(value) for value in values]


figure, axes = plt.subplots(1, 1 + len(found.rows), figsize=(4.2 * (1 + len(found.rows)), 3.6))
curves = {f"{of} ({found.count(of)})": at_positions([found.values(name, "none", of) for name in AT.values()]) for of in found.rows}
plots.by_position(curves, offsets, "attention per position", "unedited", axes[0])
for axis, of in zip(axes[1:], found.rows):
    curves = {name_of(edit): at_positions([change(name, edit, of) for name in AT.values()]) for edit in EDITS}
    plots.by_position(curves, offsets, "change of attention per position", of, axis)
    axis.axhline(0, color="black", linewidth=0.8)
figure.tight_layout();

# %% [markdown]
# In every cross-attention layer each pixel divides its attention among the 77 text positions. Earlier work found that at the end of denoising a memorized
# prompt draws unusual attention to `<eot>`, the "bright ending". Kim and No say more: the padding positions next to `<eot>` are bright as well (C6a), and
# the edits that suppress memorization lower attention on `<eot>` and padding and leave the prompt positions as they were (C6b).
#
# Attention here is the conditional half's probability, averaged over heads and pixels, at the last step, in the layers that the text shows: those at the
# finest resolution of the U-Net's down path that have cross-attention (in Stable Diffusion the two 64-pixel layers). Prompts are aligned at `<eot>`. A
# prompt of fewer than five tokens has no value at the places it does not reach; `<sot>`, which draws attention whatever the prompt, is never counted among
# the prompt positions.
#
# The edits: padding replaced by `!` when the prompt is encoded; the same with the `<eot>` state set to zero; and 70 % of the padding states set to zero,
# spread evenly (the text does not say which; evenly treats near and far positions alike). A state set to zero still has its place in the softmax.
#
# ## Reported beside measured
#
# Kim and No print no number for either claim, only maps and a plot: their Figures 15 and 16 can be set beside the maps below, their Figure 8 beside the
# figure above. In passing they say that memorized prompts show *lower* attention entropy; the public code of Ren and others {cite:p}`attn` scores *higher*
# entropy as memorized. Measured as that code does (mean over heads, pixels and layers, then $-\sum p \ln p$ over the 77 positions), not judged:

# %% tags=["hide-input"]
others = [of for of in found.rows if of != MEMORIZED]
lines = {name: {of: told(found.mean(name, "none", of), 3) for of in found.rows} for name in ENTROPY}
for name, line in lines.items():
    line |= {f"memorized minus {of}": told(found.contrast(name, against=of), 3) for of in others}
Captioned(pd.DataFrame(lines).T.rename_axis("nats"), "Attention entropy without edits")

# %% [markdown]
# ## The pictures
#
# One row per prompt: its picture, then its maps at the positions around `<eot>`, averaged over heads and the layers judged, first seed, made now.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-maps", "caption": "Pictures with their attention maps at the last step, five positions before `<eot>` to five behind it; first memorized prompts, then titles that were seen once. One scale for all, up to the 99th percentile, so that a few bright pixels do not leave the rest black; grey where a prompt does not reach. Look for brightness at eot and to the right of it that the last rows lack."}, "image": {"alt": "One row per prompt: the picture, and its attention maps for five positions before the end token, the end token and five padding positions; memorized prompts, then titles seen once", "width": "100%"}}
shown = [group.part(4, 1) for group in found.groups.values()]
maps = [np.moveaxis(aligned_at_eot(np.moveaxis(last_maps(group.experiment, group.embedding, finest), 0, 2), group.embedding.tokens), 2, 0) for group in shown]
maps, pictures = np.concatenate(maps), np.concatenate([group.pictures()[:, 0] for group in shown])
limits = 0.0, float(np.nanpercentile(maps, 99))
print(f"Black to pale yellow: 0 to {limits[1]:.3f} or more of a pixel's attention; an even share is {1 / 77:.3f}. Layers: {', '.join(short_names(finest))}.")
columns = ["eot" if offset == 0 else f"{offset:+d}" for offset in offsets]
plots.attention_maps(maps, pictures, [prompt for group in shown for prompt in group.prompts.prompts], columns, limits=limits);

# %% [markdown]
# ## By layer and step
#
# The last step of the layers judged is one cell of many. Layers stand in the order in which they run: `down`, `mid` and `up` are the paths of the U-Net,
# the numbers that follow count its blocks and the layers of a block from 0, the finest blocks of a path being the first down and the last up.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-layers", "caption": "Mean attention to `<eot>` and to one of the five padding positions behind it, by layer (from the first that runs, above) and step. Compare left and right."}, "image": {"alt": "Heat maps of attention by layer and denoising step: end token and neighbouring padding, memorized prompts and titles seen once", "width": "100%"}}
by_cell = {(of, metric): found.rows[of][found.rows[of]["metric"] == f"{metric} by layer and step"].set_index("method")["value"]
           for metric in (EOT, PAD) for of in found.rows}  # fmt: skip
panels = {f"{metric}, {of}": np.array([[values[f"{name}, step {k}"] for k in range(len(values) // len(layers))] for name in short_names(layers)])
          for (of, metric), values in by_cell.items()}  # fmt: skip
plots.heat_maps(panels, short_names(layers), "step (0 is the noisiest)", "attention per position", columns=len(found.rows));

# %% [markdown]
# ## Is it about memorization?
#
# For C6a the contrast with titles seen once, captions of the very same kind, is the claim itself. For C6b it is not: where an interval holds zero, the edit
# moves attention alike on both kinds of prompt.

# %% tags=["hide-input"]
def apart(edit, of):
    pair = fall(edit), fall(edit, of)
    return None if pair[0] is None or pair[1] is None else student_contrast(*pair)


lines = {("unedited", metric): {f"minus {of}": told(found.contrast(metric, against=of), 4) for of in others} for metric in (EOT, PAD, PROMPT)}
lines |= {(name_of(edit), "fall less twice the change at the prompt"): {f"minus {of}": told(apart(edit, of), 4) for of in others} for edit in EDITS}
Captioned(pd.DataFrame(lines).T.rename_axis(["edit", "quantity"]), "Memorized prompts minus others") if others else print(f"other prompts: {NOT_MEASURED}")

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
# Attention is a share: what one position gains another loses. And a change of attention under an edit says where the model looked, not what it did with it.
# What a miniature cannot say stands under [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
lines = []
for of in found.rows:
    for edit in ("none", *EDITS):
        line = {"prompts": f"{of} ({found.count(of)})", "edit": name_of(edit)} | {name: told(found.mean(name, edit, of), 4) for name in (EOT, PAD, PROMPT)}
        for name in (EOT, PAD, PROMPT) if edit != "none" else ():
            line[f"{name}, share left"] = told(found.share(name, edit, of=of))
        line["fall less twice the change at the prompt"] = "" if edit == "none" or (values := fall(edit, of)) is None else student_mean(values).text(4)
        lines.append(line)
caption = "Attention per position at the last step: means with 95 % intervals, by prompts and edit"
Captioned(pd.DataFrame(lines).set_index(["prompts", "edit"]), caption, folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"entropy_{tag}": found.contrast(name) for tag, name in zip(("first", "last"), ENTROPY)}, 3)

# %% tags=["remove-input"]
run.provenance()
