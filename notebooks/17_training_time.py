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
# # Mitigation while training
#
# **Claim A4** · `attn`, abstract {cite:p}`attn`; the filters as `basin`, Section 2.3.1, describes them {cite:p}`basin`
#
# If the training data cannot be cleaned, training itself may keep a model from memorizing. Two kinds of methods have been proposed, and
# here MiniSD is trained with each:
#
# - **filters** score every sample while it is trained on and leave those out of the mini-batch that look memorized: by the magnitude of
#   what the text adds to the predicted noise {cite:p}`wen2024detecting`, or by the entropy of cross-attention {cite:p}`attn`;
# - **changes of captions**, so that a picture does not always come with the same words: now and then a random caption, added random words,
#   repeated words, or several captions per picture {cite:p}`somepalli2023copying`.
#
# Each training has the data, initial weights, noise and order of a plain one (those of [](05_padding_or_duplication), `<eot>` padding,
# duplicated data) and differs in the mitigation alone. The published thresholds of the filters are numbers for Stable Diffusion's latents.
# Here a filter's threshold is the 95th percentile of the scores of the last 512 samples that training shows once, so that all filters give
# up the same share of those. MiniSD knows which these are; whoever filters web data has to guess a threshold instead. Samples
# whose caption is dropped for training without text are never left out.
#
# What each run gave is kept in tables under `data/minisd`, made by `memlib minisd mitigated`; this page reads them.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.page import NOT_MEASURED, Page, at_hand
from memlib.models.catalogue import source_of
from memlib.models.minisd.paths import settings
from memlib.models.minisd.prompt_sets import training_pictures
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots
from memlib.results import trainings
from memlib.results.trainings import PLAIN, SHOWN_HELD_OUT, read_strip, shown_prompts

# %% tags=["parameters"]
substrate = "minisd-v1"  # the trainings are MiniSD's; with another substrate the page says what could be tested there
mitigations = None  # names of training-time mitigations; None: all that were trained with

# %%
page = Page("A4")
plots.style()
pd.set_option("display.max_colwidth", None)
source = source_of(substrate)
retrained, substrate_name = source.data().retrained, source.name
names = []
if retrained:
    names = trainings.chosen(mitigations)
else:
    print("not measured: the training of this substrate can't be repeated here")

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(quantities=True)
print(page.claims["A4"].reported_note)

# %% [markdown]
# ## The methods
#
# All that are registered.

# %%
methods = trainings.methods()
WORDS = {"summary": "what it does", "source": "source", "cost": "extra cost of a step"}
pd.DataFrame({name: {title: of[key] for key, title in WORDS.items()} for name, of in methods.items()}).T.rename_axis("mitigation")

# %%
pairs = {}
for name in names:
    if (found := at_hand(trainings.compared, name)) is not None:
        pairs[name] = found
if retrained and not names:
    print("not measured: no training with a mitigation is in data/minisd yet; run memlib minisd mitigated")
if pairs:
    seeds = "; ".join(f"{name} {', '.join(map(str, found.seeds))}" for name, found in pairs.items())
    print(f"{settings()['replicates']['steps']:,} steps; seeds of training: {seeds}")

# %% [markdown]
# ## The pictures
#
# The same prompts and the same noise after each training with the first seed. First prompts of repeated pairs, two each with 16, 64 and 128
# copies in an epoch, above the training pictures; then held-out prompts.

# %%
strips = {name: strip for name in [PLAIN, *pairs] if (strip := read_strip(name)) is not None} if retrained else {}
if not strips:
    print("not measured: no pictures of these trainings are at hand")
labels = {PLAIN: "plain training"} | {name: methods[name]["label"] for name in pairs}

# %% mystnb={"image": {"alt": "Prompts of repeated pairs after plain training and after training with each mitigation, one row each, training pictures in the last row", "width": "100%"}}
if strips:
    repeated = shown_prompts()
    rows = {labels[name]: strip[0] for name, strip in strips.items()}
    rows["training picture"] = np.stack([training_pictures(name)[0] for name in repeated.table["training_picture"]])
    plots.montage(rows, [f"{n} copies" for n in repeated.table["copies"]], "Prompts of repeated pairs, first seed");

# %% mystnb={"image": {"alt": "Held-out prompts after plain training and after training with each mitigation, one row each", "width": "75%"}}
if strips:
    held_out = load_prompts("minisd-heldout").first(SHOWN_HELD_OUT)
    plots.montage({labels[name]: strip[1] for name, strip in strips.items()}, held_out.prompts, "Prompts that are not memorized, first seed");

# %% [markdown]
# ## Dose and response
#
# Share of pairs reproduced against how often a pair comes in an epoch, after training with each mitigation (whole line) and after the plain
# trainings of the same seeds (broken). Intervals over pairs and seeds of training.

# %% mystnb={"image": {"alt": "Share of pairs reproduced against copies per epoch, one panel per mitigation, with the plain training in each", "width": "100%"}}
if pairs:
    columns = min(4, len(pairs))
    lines = -(-len(pairs) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.3 * columns, 2.9 * lines), sharex=True, sharey=True, squeeze=False)
    for axis, (name, found) in zip(axes.flat, pairs.items()):
        plain, mitigated = (found.pairs().by_level(kind) for kind in (PLAIN, name))
        plots.dose_response({"mitigated": mitigated, "plain": plain}, "copies of a pair in an epoch", "share reproduced", axis, dashed=["plain"])
        axis.set_title(name, fontsize=10)
        if axis is not axes.flat[0]:
            axis.get_legend().remove()
    for axis in axes.flat[len(pairs):]:
        axis.set_axis_off()
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")

# %%
levels = {}
for name, found in pairs.items():
    plain, mitigated = (found.pairs().by_level(kind) for kind in (PLAIN, name))
    levels[name, "plain"] = {str(level): share.text(2) for level, share in plain.items()}
    levels[name, "mitigated"] = {str(level): share.text(2) for level, share in mitigated.items()}
pd.DataFrame(levels).T.rename_axis(columns="copies")

# %% [markdown]
# ## Did the filters find the repeated ones?
#
# Share of samples that a filter left out, by how often their caption comes in an epoch, over the training. A filter that does what it is meant
# to leaves out few of the samples seen once (one in twenty, by its threshold) and many of the repeated ones, once they are about to be
# memorized; since a sample that is left out is not learned, the shares settle where leaving out and learning balance. Bands span the trainings.

# %%
filters = [name for name in names if methods[name]["acts"] == "filter"]
acted = {name: shares for name in filters if (shares := at_hand(trainings.marked, name)) is not None}
late = {name: {kind: next(iter(shares.values())) for kind, shares in trainings.marked(name, last_half=True).items()} for name in acted}
if retrained and not acted:
    print("not measured: no training with a filter is recorded yet")

# %% mystnb={"image": {"alt": "Share of samples left out by each filter against the step of training, one curve per number of copies", "width": "100%"}}
KINDS = ("seen once", "16 copies", "64 copies", "128 copies")
if acted:
    plots.bands({name: {kind: shares[kind] for kind in KINDS if kind in shares} for name, shares in acted.items()},
                "step of training", "share left out", (-0.02, 1.02));

# %% [markdown]
# In the second half of the training, mean over trainings and the smallest and largest of them; caption changes act on all samples alike, with
# the probability that they have.

# %%
changed = {name: shares for name in names if name not in filters and (shares := at_hand(trainings.marked, name, True)) is not None}
changed = {name: {kind: next(iter(values.values())) for kind, values in shares.items()} for name, shares in changed.items()}
pd.DataFrame({name: {kind: share.text(2) for kind, share in shares.items()} for name, shares in (late | changed).items()}).T

# %% [markdown]
# ## Effect
#
# Share of pairs reproduced after mitigated training minus that after plain training of the same seed: for pairs with 16 to 128 copies, and for
# templates (one caption with six colourings of one composition; any of them counts). Below zero the mitigation helps.

# %%
effects = {name: {"16 to 128 copies": found.pairs(trainings.JUDGED_LEVELS), "templates": found.templates()} for name, found in pairs.items()}
effect_table = {}
for name, parts in effects.items():
    for kind, part in parts.items():
        effect_table[name, kind] = {"plain": part.share(PLAIN).text(2), "mitigated": part.share(name).text(2), "difference": part.difference(name, PLAIN).text(2)}
pd.DataFrame(effect_table).T

# %% mystnb={"image": {"alt": "Difference in the share reproduced between mitigated and plain training, one line per mitigation, for pairs with 16 to 128 copies and for templates", "width": "100%"}}
if effects:
    plots.forest({kind: {name: parts[kind].difference(name, PLAIN) for name, parts in effects.items()} for kind in ("16 to 128 copies", "templates")},
                 "difference in the share reproduced");

# %% [markdown]
# ## Price
#
# On held-out prompts, none of which is memorized: alignment with the prompt by the evaluator CLIP, as a share of what the real pictures reach, and
# the share of pictures with the right background; one picture a prompt, paired with plain training by prompt, noise and seed of training.
# A filter may also *gain* here: what it leaves out makes room for samples seen once.

# %%
qualities = {name: found for name in names if (found := at_hand(trainings.quality, name)) is not None}
pd.DataFrame({name: {what: estimate.text(2) for what, estimate in found.items()} for name, found in qualities.items()}).T

# %% mystnb={"image": {"alt": "Change of alignment and of right backgrounds on held-out prompts against plain training, one line per mitigation", "width": "100%"}}
if qualities:
    plots.forest({what: {name: found[what] for name, found in qualities.items()} for what in ("change of alignment", "change of background")},
                 "change against plain training");

# %% [markdown]
# What a training step takes, in time: loss and gradient of one batch as a ratio to the plain step, all methods in turns in one process; median, and the
# range of the middle half of the turns.

# %%
ratios = (at_hand(trainings.costs) or {}) if retrained else {}
pd.DataFrame({"time of a step, to plain": {name: ratio.text(2) for name, ratio in ratios.items()}}).rename_axis("mitigation")

# %% [markdown]
# ## Verdict
#
# A4 is judged on the filter that leaves out high entropy, as it is described. The same filter with the other sign is reported beside it.

# %%
LEAST = 0.1  # with less to be memorized there is nothing to mitigate
found, why = {}, ""
if "entropy-filter" in effects and "entropy-filter" in qualities:
    judged = effects["entropy-filter"]["16 to 128 copies"]
    found = {"share_plain": judged.share(PLAIN), "share_filtered": judged.share("entropy-filter"),
             "share_difference": judged.difference("entropy-filter", PLAIN), "share_difference_concentrated": None,
             "alignment_difference": qualities["entropy-filter"]["change of alignment"],
             "background_difference": qualities["entropy-filter"]["change of background"]}  # fmt: skip
    if "concentration-filter" in effects:
        found["share_difference_concentrated"] = effects["concentration-filter"]["16 to 128 copies"].difference("concentration-filter", PLAIN)
    if found["share_plain"].value < LEAST:
        why = f"Plain training reproduces {found['share_plain'].text(2)} of the pairs, less than a tenth."
elif retrained:
    why = "The trainings with the entropy filter, or the plain ones beside them, are not at hand."
else:
    why = "The training would have to be repeated with the filter."
page.judge(found, substrate_name, not_testable_because={"A4": why});

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({name: found.get(name) for name in page.claims["A4"].quantities})
CHANGES = {"magnitude-filter": "magnitude", "random-caption": "random", "several-captions": "several", "random-words": "words", "repeated-words": "repeated"}
for name, key in CHANGES.items():
    page.glue({f"effect_{key}": effects[name]["16 to 128 copies"].difference(name, PLAIN) if name in effects else None,
               f"change_{key}": qualities[name]["change of alignment"] if name in qualities else None})  # fmt: skip
for name, key in (("entropy-filter", "entropy"), ("magnitude-filter", "magnitude")):
    left = {short: late[name].get(kind) if name in late else None for kind, short in (("seen once", "once"), ("128 copies", "128"))}
    page.glue({f"left_{key}_{short}": NOT_MEASURED if e is None else f"{e.value:.2f}" for short, e in left.items()})
    page.glue({f"cost_{key}": f"{ratios[name].value:.2f}" if name in ratios else NOT_MEASURED})
page.glue({"n_trainings": len(pairs["entropy-filter"].seeds) if "entropy-filter" in pairs else 0})

# %% [markdown]
# ## What it says, and what it can't
#
# A4: {glue:text}`verdict_A4`, over {glue:text}`n_trainings` seeds of training. Of the pairs with 16 to 128 copies plain training makes
# {glue:text}`share_plain` reproducible and training with the entropy filter {glue:text}`share_filtered`, a difference of
# {glue:text}`share_difference`; with the other sign the difference is {glue:text}`share_difference_concentrated`. In the second half of the training
# the entropy filter leaves out a share of {glue:text}`left_entropy_128` of the samples with 128 copies and {glue:text}`left_entropy_once` of those seen once.
# Alignment on held-out prompts changes by {glue:text}`alignment_difference`, the share of right backgrounds by {glue:text}`background_difference`. A step
# takes {glue:text}`cost_entropy` of the plain time.
#
# Beside it, not judged: the magnitude filter leaves out {glue:text}`left_magnitude_128` and {glue:text}`left_magnitude_once`, changes the share reproduced by
# {glue:text}`effect_magnitude` and alignment by {glue:text}`change_magnitude`, and its step takes {glue:text}`cost_magnitude` of the plain time. Changes of
# the captions, and what they cost:
#
# | captions | change of the share reproduced | change of alignment |
# |---|---|---|
# | one in ten replaced by four random tokens | {glue:text}`effect_random` | {glue:text}`change_random` |
# | twenty for a repeated picture | {glue:text}`effect_several` | {glue:text}`change_several` |
# | two random tokens added to one in ten | {glue:text}`effect_words` | {glue:text}`change_words` |
# | two words repeated in one in ten | {glue:text}`effect_repeated` | {glue:text}`change_repeated` |
#
# What a miniature can't say: the filters were published for *fine-tuning* a model that draws well already, on data of which a small part is
# repeated. Here a model learns from nothing on data most of which is repeated, and high and low noise share one threshold, as in the published
# program. The share of samples seen once that a filter gives up is known here and guessed elsewhere. That the training code of the entropy filter is not
# public leaves open at which times and over which layers its authors take the entropy; here it is every layer, at each sample's own time.

# %% tags=["hide-input"]
page.provenance({"substrate": f"{substrate_name} (nothing of it was loaded)",
                 "trainings": "; ".join(f"{name}: {len(p.seeds)}" for name, p in pairs.items()) or "none",
                 "pictures": "none sampled here: tables and strips of data/minisd"})
