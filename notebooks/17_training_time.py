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
# # Can training itself keep a model from memorizing?
#
# Claim A4 of Ren and others, abstract {cite:p}`attn`; the filters as Jain and others describe them, Section 2.3.1 {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # the trainings are MiniSD's; with another substrate the page says what could be tested there
mitigations = None  # names of training-time mitigations; None: all that were trained with

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, at_hand, told
from memlib.judging.bounded import student_change, student_mean, student_ratio
from memlib.judging.judge import judge
from memlib.models.catalogue import source_of
from memlib.models.minisd.paths import settings
from memlib.models.minisd.prompt_sets import training_pictures
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots
from memlib.results import trainings
from memlib.results.trainings import PLAIN, SHOWN_HELD_OUT, read_strip, shown_prompts

page = Page("A4")
plots.style()
source = source_of(substrate)
retrained, substrate_name = source.data().retrained, source.name
methods = trainings.methods()
names = trainings.chosen(mitigations) if retrained else []
ENTROPY, TURNED = "entropy-filter", "concentration-filter"
pairs = {name: found for name in names if (found := at_hand(trainings.compared, name)) is not None}
qualities = {name: found for name in pairs if (found := at_hand(trainings.quality, name)) is not None}
shares = {name: found for name in pairs if (found := at_hand(trainings.marked, name)) is not None}
late = {name: {kind: next(iter(by.values())) for kind, by in trainings.marked(name, last_half=True).items()} for name in shares}


def over_trainings(name):
    """Share of repeated pairs reproduced with a mitigation minus plain, and alignment as a share of plain, with Student's interval over trainings."""
    exact, (before, after) = pairs[name].exact(), trainings.held_out(name)
    return [student_mean(exact.values[name].mean(0) - exact.values[PLAIN].mean(0)), student_mean(after.mean(0) / before.mean(0))]


def of_training(name, r):
    """The same of one training, over its pairs and prompts."""
    exact, (before, after) = pairs[name].exact(), trainings.held_out(name)
    return [student_change(exact.values[name][:, r], exact.values[PLAIN][:, r], (0, 1)), student_ratio(after[:, r], before[:, r])]


measured, several, why = {}, {}, "The training would have to be repeated with the filter."
if ENTROPY in pairs and ENTROPY in qualities:
    measured = {"A4": over_trainings(ENTROPY)}
    several = {f"seed {seed}": judge("A4", of_training(ENTROPY, r), substrate_name).verdict for r, seed in enumerate(pairs[ENTROPY].seeds)}
elif retrained:
    why = "The trainings with the entropy filter, or the plain ones beside them, are not at hand."
page.conclude(measured, substrate_name, {"A4": why}, {"A4": several})
if measured:
    reproduced = {kind: told(student_mean(pairs[ENTROPY].exact().values[kind].mean(0))) for kind in (PLAIN, ENTROPY)}
    sentences = [
        f"Plain training makes a share of {reproduced[PLAIN]} of the repeated pairs reproducible, training with the filter of high entropy",
        f"{reproduced[ENTROPY]} (intervals over {len(several)} trainings).",
    ]
    if TURNED in qualities:
        sentences += [f"The filter turned round changes the share by {told(over_trainings(TURNED)[0])} over {len(pairs[TURNED].seeds)}."]
    if ENTROPY in late:
        left = {kind: late[ENTROPY][kind].value for kind in ("128 copies", "seen once")}
        sentences += [f"In the second half of the training the filter leaves out a share of {left['128 copies']:.2f} of the samples with 128 copies,",
                      f"and {left['seen once']:.2f} of those seen once."]  # fmt: skip
    page.answer(*sentences)
print("Nothing is sampled here: tables and strips of data/minisd, made by `memlib minisd mitigated`." if pairs else "not measured: no trainings are at hand")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-key", "caption": "Share reproduced after training with each mitigation minus that after plain training of the same seeds: repeated pairs, and templates (one caption with six colourings of one composition, any of which counts). Below zero the mitigation helps. Intervals: bootstrap over pairs and trainings; the verdict's are over trainings."}, "image": {"alt": "Difference in the share reproduced between mitigated and plain training, one line per mitigation, for repeated pairs and for templates", "width": "100%"}}
parts = {"repeated pairs": lambda found: found.exact(), "templates": lambda found: found.templates()}
if pairs:
    plots.forest({title: {name: part(found).difference(name, PLAIN) for name, found in pairs.items()} for title, part in parts.items()},
                 "difference in the share reproduced")  # fmt: skip
else:
    print(f"trainings: {NOT_MEASURED}")

# %% [markdown]
# If the training data cannot be cleaned, training itself may keep a model from memorizing. Two kinds of methods have been proposed, and MiniSD is trained
# with each:
#
# - **filters** score every sample while it is trained on and leave those out of the mini-batch that look memorized: by the magnitude of what the text adds
#   to the predicted noise {cite:p}`wen2024detecting`, or by the entropy of cross-attention {cite:p}`attn`;
# - **changes of captions**, so that a picture does not always come with the same words: now and then a random caption, added random words, repeated words,
#   or several captions per picture {cite:p}`somepalli2023copying`.
#
# Each training has the data, initial weights, noise and order of a plain one (those of [](05_padding_or_duplication), `<eot>` padding, duplicated data)
# and differs in the mitigation alone. The published thresholds of the filters are numbers for Stable Diffusion's latents. Here a filter's threshold is the
# 95th percentile of the scores of the last 512 samples that training shows once, so that all filters give up the same share of those. MiniSD knows which
# these are; whoever filters web data has to guess a threshold instead. Samples whose caption is dropped for training without text are never left out.
#
# A4 is judged on the filter that leaves out high entropy, as it is described; the same filter with the other sign is shown beside it. The text's abstract
# gives no figure for training that could stand beside ours.
#
# ## The methods

# %% tags=["hide-input"]
WORDS = {"summary": "what it does", "source": "source", "cost": "extra cost of a step"}
seeds = {name: ", ".join(map(str, pairs[name].seeds)) if name in pairs else "none" for name in methods}
lines = {name: {**{title: of[key] for key, title in WORDS.items()}, "seeds of its trainings": seeds[name]} for name, of in methods.items()}
Captioned(pd.DataFrame(lines).T.rename_axis("mitigation"), f"All that are registered; trainings of {settings()['replicates']['steps']:,} steps")

# %% [markdown]
# ## The pictures
#
# The same prompts and the same noise after each training with the first seed.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-repeated", "caption": "Prompts of repeated pairs, two each with 16, 64 and 128 copies in an epoch: after plain training, after training with each mitigation, and the training pictures."}, "image": {"alt": "Prompts of repeated pairs after plain training and after training with each mitigation, one row each, training pictures in the last row", "width": "100%"}}
strips = {name: strip for name in [PLAIN, *pairs] if (strip := read_strip(name)) is not None} if retrained else {}
labels = {PLAIN: "plain training"} | {name: methods[name]["label"] for name in pairs}
if strips:
    repeated = shown_prompts()
    rows = {labels[name]: strip[0] for name, strip in strips.items()}
    rows["training picture"] = np.stack([training_pictures(name)[0] for name in repeated.table["training_picture"]])
    plots.montage(rows, [f"{n} copies" for n in repeated.table["copies"]])
else:
    print(f"pictures of these trainings: {NOT_MEASURED}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-held-out", "caption": "Held-out prompts, none of which is memorized, after plain training and after training with each mitigation."}, "image": {"alt": "Held-out prompts after plain training and after training with each mitigation, one row each", "width": "75%"}}
if strips:
    plots.montage({labels[name]: strip[1] for name, strip in strips.items()}, load_prompts("minisd-heldout").first(SHOWN_HELD_OUT).prompts)

# %% [markdown]
# ## Dose and response

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-dose", "caption": "Share of pairs reproduced against how often a pair comes in an epoch, after training with each mitigation (whole line) and after the plain trainings of the same seeds (broken). Intervals over pairs and seeds of training."}, "image": {"alt": "Share of pairs reproduced against copies per epoch, one panel per mitigation, with the plain training in each", "width": "100%"}}
if pairs:
    columns = min(4, len(pairs))
    lines = -(-len(pairs) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.3 * columns, 2.9 * lines), sharex=True, sharey=True, squeeze=False)
    for place, (axis, (name, found)) in enumerate(zip(axes.flat, pairs.items())):
        curves = {"mitigated": found.pairs().by_level(name), "plain": found.pairs().by_level(PLAIN)}
        plots.dose_response(curves, "copies of a pair in an epoch", "" if place % columns else "share reproduced", axis, dashed=["plain"])
        axis.set_title(name, fontsize=10)
        if place:
            axis.get_legend().remove()
    for axis in axes.flat[len(pairs):]:
        axis.set_axis_off()
    figure.tight_layout()

# %% [markdown]
# ## Is it about memorization?
#
# A filter that does what it is meant to leaves out few of the samples seen once (one in twenty, by its threshold) and many of the repeated ones, once they
# are about to be memorized; since a sample that is left out is not learned, the shares settle where leaving out and learning balance.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-left-out", "caption": "Share of samples left out by each filter against the step of training, by how often their caption comes in an epoch; bands span the trainings. Compare samples seen once with the repeated ones."}, "image": {"alt": "Share of samples left out by each filter against the step of training, one curve per number of copies", "width": "100%"}}
KINDS = ("seen once", "16 copies", "64 copies", "128 copies")
filters = [name for name in shares if methods[name]["acts"] == "filter"]
if filters:
    panels = {name: {kind: shares[name][kind] for kind in KINDS if kind in shares[name]} for name in filters}
    plots.bands(panels, "step of training", "share left out", (-0.02, 1.02))
else:
    print(f"shares left out: {NOT_MEASURED}")

# %% tags=["hide-input"]
acted = pd.DataFrame({name: {kind: share.text(2) for kind, share in by.items()} for name, by in late.items()}).T.rename_axis("mitigation")
Captioned(acted, "Share of samples acted on in the second half: mean over trainings, with the smallest and the largest", folded=True)

# %% [markdown]
# ## Price
#
# On held-out prompts, one picture a prompt, paired with plain training by prompt, noise and seed of training: alignment by the evaluator CLIP, as a share
# of what the real pictures reach, and the share of pictures with the right background. A filter may also *gain*: what it leaves out makes room for samples
# seen once. The time of a step is a ratio to the plain one, all methods in turns in one process: median, and the range of the middle half of the turns.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-price", "caption": "Change of alignment and of right backgrounds on held-out prompts against plain training; below zero the mitigation costs quality. Intervals: bootstrap over prompts and trainings."}, "image": {"alt": "Change of alignment and of right backgrounds on held-out prompts against plain training, one line per mitigation", "width": "100%"}}
CHANGES = ("change of alignment", "change of background")
if qualities:
    plots.forest({what: {name: found[what] for name, found in qualities.items()} for what in CHANGES}, "change against plain training")
else:
    print(f"quality: {NOT_MEASURED}")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). Speed, which the text also names, has no part of its own: the time of a
# step stands below.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# What a miniature cannot say: the filters were published for *fine-tuning* a model that draws well already, on data of which a small part is repeated. Here a
# model learns from nothing on data most of which is repeated, and high and low noise share one threshold, as in the published program. The share of
# samples seen once that a filter gives up is known here and guessed elsewhere. That the training code of the entropy filter is not public leaves open at
# which times and over which layers its authors take the entropy; here it is every layer, at each sample's own time.
#
# ## All numbers

# %% tags=["hide-input"]
times, table = (at_hand(trainings.costs) or {}) if retrained else {}, {}
for name, found in pairs.items():
    kinds = {"plain": PLAIN, "mitigated": name}
    table[name] = {"trainings": len(found.seeds)}
    table[name] |= {f"{title}: {what}": told(part(found).share(kind)) for title, part in parts.items() for what, kind in kinds.items()}
    table[name] |= {what: told(value) for what, value in qualities.get(name, {}).items()} | {"time of a step, to plain": told(times.get(name))}
    table[name] |= {f"reproduced at {level} copies": told(share) for level, share in found.pairs().by_level(name).items()}
Captioned(pd.DataFrame(table).T.rename_axis("mitigation"), "Shares reproduced, quality and time, with 95 % intervals", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"share_difference": measured["A4"][0] if measured else None})

# %% tags=["remove-input"]
page.provenance({"substrate": f"{substrate_name} (nothing of it was loaded)",
                 "trainings": "; ".join(f"{name}: {len(p.seeds)}" for name, p in pairs.items()) or "none",
                 "pictures": "none sampled here: tables and strips of data/minisd"})
