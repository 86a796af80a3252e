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
# # Is it the padding that makes a model memorize, or the duplicates?
#
# Claims C4a and C4b of Kim and No, Section 4.1 and Appendix B.1 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
models = None  # the models compared; None: the four of MiniSD, or sd14 and sd21, or the substrate alone
memorized = None  # prompt set, a name or file (csv, txt, jsonl); None: MiniSD's pairs with 64 and 128 copies, or the published memorized ones
not_memorized = "not memorized"  # descriptions, with the first seed alone: likewise
n_prompts = 12  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, at_hand, told
from memlib.judging.bounded import bounded_mean, student_contrast, student_mean
from memlib.judging.estimates import wilson
from memlib.judging.judge import judge
from memlib.models.minisd.paths import settings
from memlib.prompts.embedding import PADDINGS, encode_prompts
from memlib.prompts.interventions import apply
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots
from memlib.results import table, trainings
from memlib.results.evidence import DESCRIPTIONS, gather

page = Page("C4a", "C4b")
plots.style()
run = page.experiment()
miniature = run.substrate.data.retrained
squares, REPEATED, TRAINING, OWN = {}, "repeated prompts", "similarity to training", "similarity to own padding"
LABELS = dict(zip(trainings.CELLS.values(), ("<eot>, duplicated", "!, duplicated", "<eot>, de-duplicated", "!, de-duplicated")))
if miniature and (replicated := at_hand(trainings.replicates, what="replicates")) is not None:
    squares[f"replicates ({len(replicated.seeds)} trainings, {settings()['replicates']['steps']:,} steps)"] = replicated
if miniature and (shipped := at_hand(trainings.main_models, what="shipped models")) is not None:
    squares[f"shipped models ({settings()['unet']['steps']:,} steps)"] = shipped
several = next((square for square in squares.values() if len(square.seeds) > 1), None)


def parts(square, training=None):
    """The parts of both claims: over the trainings of a 2 x 2, or of one of them, over its pairs."""
    def less(first, second):
        if training is not None:
            return student_contrast(first[:, training], second[:, training], (0, 1))
        return student_mean(first.mean(0) - second.mean(0))

    v1, v2, v1_once = (square.values[name] for name in list(trainings.CELLS.values())[:3])
    most, partly = square.copies == 128, square.copies == 16
    share = student_mean(v2.mean(0)) if training is None else bounded_mean(v2[:, training])
    # (v1 - v2) - (v1 - v1 at 16 copies), both at 128, is v1 at 16 copies minus v2 at 128; likewise against full de-duplication.
    return {"C4a": [less(v1, v2), less(v1[partly], v2[most]), less(v1_once, v2)], "C4b": [less(v2, v1), share]}


OTHER = {PADDINGS["eot"]: "!", PADDINGS["!"]: "eot"}


def drawn(group):
    """Pictures [N, S, H, W, 3] of a group's prompts under each way to use the padding, by name."""
    other = encode_prompts(group.experiment.substrate, group.prompts.prompts, OTHER.get(group.embedding.tokens.pad_id, "!"))
    ways = {"own padding": group.embedding, "other padding": other, "<eot> zeroed": apply("f", group.embedding), "padding zeroed": apply("h", group.embedding)}
    return {way: group.sample(embedding) for way, embedding in ways.items()}


def ways_of(group):
    """Scores of the pictures under each way."""
    group = group.part(None, 1) if group.label == DESCRIPTIONS else group
    pictures, scores = drawn(group), {TRAINING: TRAINING, OWN: "similarity to original", "alignment": "alignment"}
    values = {(way, name): group.score_of(score, made) for way, made in pictures.items() for name, score in scores.items()}
    return table.join(table.rows_of(group, way, name, found) for (way, name), found in values.items() if found is not None)


names = models or (list(LABELS) if miniature else ["sd14", "sd21"] if substrate in ("sd14", "sd21") else [substrate])
repeated = memorized or "memorized"
if memorized is None and miniature:
    pairs = load_prompts("minisd-duplicated")
    repeated = pairs.select((pairs.table["copies"] >= 64).to_numpy()).sample(n_prompts, seed=0)
sets, found, runs = {REPEATED: repeated, DESCRIPTIONS: not_memorized}, {}, {substrate: run}
for name in names:
    try:
        runs[name] = run if name == substrate else page.experiment(substrate=name)
    except InputError as missing:
        print(f"{name} is left out: {missing}")
for name, x in runs.items():
    found[name] = gather(page.name, x, sets, ways_of, profile, n_prompts, checked={REPEATED: 2, DESCRIPTIONS: 0})
measured, because, by_training = {}, {"C4a": "The training would have to be repeated with the padding or the data changed."}, {}
because["C4b"] = "It needs trainings that can be repeated, or sd14 and sd21 with the copy metric and the training pictures; not measured."
if several is not None:
    measured = parts(several.exact())
    judged = [(f"seed {seed}", several.exact(), i) for i, seed in enumerate(several.seeds)]
    judged += [(title, square.exact(), 0) for title, square in squares.items() if square is not several]
    by_training = {claim: {title: judge(claim, parts(square, i)[claim], substrate).verdict for title, square, i in judged} for claim in page.claims}
elif not miniature and all(name in found and found[name].values(TRAINING, "own padding", REPEATED) is not None for name in ("sd14", "sd21")):
    # Reproduced is a prompt with at least nine tenths of its seeds. A pair of models is one training of each, whatever the number of prompts.
    v1, v2 = (((found[n].values(TRAINING, "own padding", REPEATED) >= found[n].bounds["strict"]).mean(1) >= 0.9).astype(float) for n in ("sd14", "sd21"))
    measured = {"C4b": [replace(part, n_prompts=1) for part in (student_contrast(v2, v1, (0, 1)), wilson(int(v2.sum()), len(v2)))]}
page.conclude(measured, run, because, by_training)
if several is not None:
    share = {name: told(student_mean(values.mean(0))) for name, values in several.exact().values.items()}
    page.answer(
        f"Trained on the same repeated pairs, `<eot>` padding reproduces a share of {share['minisd-v1']} of them and `!` padding {share['minisd-v2']}"
        f" (intervals over {len(several.seeds)} trainings).",
        f"Of the very same pairs, each seen once an epoch, it is {share['minisd-v1-dedup']} and {share['minisd-v2-dedup']}:",
        "that contrast is duplication alone.",
    )
print(found[substrate].words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-key", "caption": "Share of pairs reproduced against how often a pair comes in an epoch of the duplicated data; broken lines: the same pairs after de-duplicated training, where each came once. Compare the distance between the two paddings with the rise from left to right. Intervals are a bootstrap over pairs, of the replicates over pairs and trainings."}, "image": {"alt": "Share of pairs reproduced against copies in an epoch for both paddings and both kinds of data, replicates and shipped models", "width": "100%"}}
if squares:
    figure, axes = plt.subplots(1, len(squares), figsize=(5 * len(squares), 3.9), sharey=True, squeeze=False)
    for axis, (title, square) in zip(axes[0], squares.items()):
        curves = {LABELS[cell]: square.pairs().by_level(cell) for cell in LABELS}
        plots.dose_response(curves, "copies of a pair in an epoch", "share of pairs reproduced", axis, dashed=list(curves)[2:])
        axis.set_title(title)
        axis.get_legend().remove()
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, ncols=4, loc="lower center", fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))

# %% [markdown]
# Stable Diffusion 2.1 reproduces far fewer training pictures than 1.4. Kim and No hold that its padding token is the reason: 1.4 fills prompts up with
# `<eot>`, 2.1 with `!`. But the two differ in more: 2.1 has another text encoder, and its training data were de-duplicated. To tell the causes apart
# one would train twice with one thing changed, which nobody has done with Stable Diffusion. MiniSD is small enough: it is trained in all four
# combinations of *padding* and *data* (with the repeated pairs, or each of them once), everything else being the same. The shipped models are one long
# training of each combination. An effect of training needs several trainings, so the whole square was trained again with other seeds (initial
# weights, noise, order and fresh scenes), smaller and shorter; what each prompt gave is kept in `data/minisd/replicates.csv`.
#
# ## Reported beside measured

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-beside", "caption": "What Kim and No count (diamonds: Stable Diffusion 1.4 and 2.1, each on a list of prompts that were found to be memorized in that model) beside shares of the same pairs after trainings that differ in the padding alone (dots, 95 % intervals over the trainings). The reported difference holds de-duplication and another text encoder as well."}, "image": {"alt": "Reported and measured share of exact copies with ! padding, and its difference from that with eot padding, on one axis with intervals", "width": "100%"}}
about = page.verdicts["C4b"].parts
named = {part.part: part.quantity.replace("`", "").replace(" minus", ",\nminus") for part in about}
told_of = {named[part.part]: part.reported for part in about if part.reported is not None}
plots.beside(told_of, {"trainings of this substrate": {named[part.part]: part.estimate for part in about}}, "share of exact copies");

# %% [markdown]
# ## Effects
#
# Over all pairs with more than one copy in the duplicated data, the levels of copies counting the same. A *main effect* is the mean of a factor's effect
# at both levels of the other; the *interaction* says how much larger the effect of padding is with duplicates than without; *alone* means that one
# factor is changed from `<eot>` padding and duplicates, as one would change 1.4. Templates (one caption with six colourings of one composition; any
# of them counts) are kept apart.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-effects", "caption": "Each effect on the share reproduced; right of zero, padding with `<eot>` or duplication raises it. Of the replicates the intervals are Student's over trainings, of the shipped models over pairs of one training, which say nothing of another training."}, "image": {"alt": "Main effects of padding and duplication, their difference, interaction, and each factor changed alone, with intervals, exact and template memorization, replicates and shipped models", "width": "100%"}}
halves = {f"{kind}, {title}": of for title, square in squares.items() for kind, of in (("exact", square.exact()), ("templates", square.templates()))}
effects = {title: {name.replace("_", " "): effect for name, effect in half.effects().items()} for title, half in halves.items()}
if effects:
    plots.forest(effects, "difference in the share reproduced");

# %% [markdown]
# The trainings one by one: how far one differs from the next with the same data shows why a single pair of models, such as 1.4 and 2.1, could not
# have settled it.

# %% tags=["hide-input"]
lines = {}
for title, square in squares.items():
    for i, seed in enumerate(square.seeds):
        shares = {LABELS[cell]: values[:, i].mean() for cell, values in square.exact().values.items()}
        lines[f"{title.split(' (')[0]}, seed {seed}"] = {f"reproduced: {cell}": f"{value:.2f}" for cell, value in shares.items()} | {
            f"{name.replace('_', ' ')}": f"{values[:, i].mean():+.2f}" for name, values in square.exact().contrasts().items() if name.endswith("alone")
        }
caption = "Each training by itself: shares of repeated pairs reproduced, and each factor changed alone"
Captioned(pd.DataFrame(lines).T.rename_axis("training"), caption) if lines else print(NOT_MEASURED)

# %% [markdown]
# ## The pictures
#
# What padding does while a model learns and what it does while it draws are different questions. Here each trained model draws with its own padding, with
# the other one, with the `<eot>` state set to zero, and with the padding states set to zero. On MiniSD the prompts are drawn from the pairs with the
# most copies, whether or not a model reproduces them.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-pictures", "caption": "Repeated prompts with the same noise, a row for each trained model, a column for each prompt and way to draw; the training pictures last. Look down a column for what training did, along a row for what drawing does."}, "image": {"alt": "Pictures of repeated prompts, one row per trained model, columns for own padding, other padding, eot zeroed and padding zeroed; training pictures in the last row", "width": "100%"}}
shown = {name: e.groups[REPEATED].part(2, 1) for name, e in found.items()}
rows = {LABELS.get(name, name): np.concatenate(list(zip(*(made[:, 0] for made in drawn(group).values())))) for name, group in shown.items()}
first, ways = shown[substrate], ["own padding", "other padding", "<eot> zeroed", "padding zeroed"]
if first.training is not None:
    rows["training picture"] = np.concatenate([np.stack([pictures[0]] * len(ways)) for pictures in first.training])
plots.montage(rows, ways * len(first));

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-ways", "caption": "Share of prompts whose pictures are copies of the training picture (mean similarity over seeds at or above the strict bound), by trained model and by how it draws. Wilson's intervals over prompts."}, "image": {"alt": "Share of prompts that reproduce the training picture, by trained model and by how it draws, as bars with intervals", "width": "100%"}}
copies = {LABELS.get(name, name): {way: e.above(TRAINING, way, "strict", REPEATED) for way in ways} for name, e in found.items()}
if all(share is not None for bars in copies.values() for share in bars.values()):
    plots.grouped_bars(copies, "share of prompts reproduced", (0, 1));
else:
    print("not measured: similarity to training needs the copy metric and the training pictures")

# %% [markdown]
# ## Is it about memorization?
#
# The matched contrast of this page is de-duplicated training: the same prompts and the same pictures, each seen once an epoch. Descriptions, another kind
# of caption, show whether a way to draw takes away the memorized picture or any picture.

# %% tags=["hide-input"]
columns = [(REPEATED, TRAINING), (REPEATED, OWN), (REPEATED, "alignment"), (DESCRIPTIONS, OWN), (DESCRIPTIONS, "alignment")]
lines = {
    (LABELS.get(name, name), way): {f"{metric}, {label} ({e.count(label)})": told(e.mean(metric, way, label)) for label, metric in columns}
    for name, e in found.items() for way in ways
}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis(["trained with", "drawn with"]), "Means with 95 % intervals, by trained model and by how it draws", folded=True)

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). The third part compares padding with perfect de-duplication; its
# contrast then equals minus one share by algebra, whatever padding does. De-duplication of a web collection is partial, so the second part
# compares padding with bringing 128 copies down to 16.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# What a miniature cannot say: whether padding matters at hundreds of millions of parameters and billions of pictures, with web captions, with a text
# encoder trained on other pictures than the U-Net, or through the encoder itself, which here is the same for both paddings and in Stable Diffusion
# 2.1 is another one. It can say whether padding with `!` by itself prevents memorization in a model of this construction, and how much duplication does
# beside it. C4b as the text states it compares two models with different data; here both see the duplicated data.
#
# ## All numbers

# %% tags=["hide-input"]
levels = {
    (title, LABELS[cell]): {f"{level} copies": share.text(2) for level, share in square.pairs().by_level(cell).items()}
    for title, square in squares.items() for cell in LABELS
}  # fmt: skip
caption = "Share of pairs reproduced by copies in an epoch"
Captioned(pd.DataFrame(levels).T.rename_axis(["trainings", "trained with"]), caption, folded=True) if levels else print(NOT_MEASURED)

# %% tags=["hide-input"]
lines = {title: {name: told(effect) for name, effect in half.items()} for title, half in effects.items()}
Captioned(pd.DataFrame(lines).rename_axis("effect"), "Effects on the share reproduced, with intervals", folded=True) if lines else print(NOT_MEASURED)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
main = several.exact().effects() if several is not None else dict.fromkeys(("effect_of_padding", "effect_of_duplication"))
page.glue({name: main[name] for name in ("effect_of_padding", "effect_of_duplication")})

# %% tags=["remove-input"]
run.provenance()
