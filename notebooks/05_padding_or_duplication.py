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
# # Padding or de-duplication: a controlled training
#
# **Claims C4a and C4b** · `clip`, Section 4.1 {cite:p}`clip`
#
# Stable Diffusion v2.1 reproduces far fewer training pictures than v1.4. `clip` holds that its padding token is the reason: v1.4 fills
# prompts up with `<eot>`, v2.1 with `!`. But the two differ in more: v2.1 has another text encoder, and its training data were
# de-duplicated. To tell the causes apart one would train twice with one thing changed, which nobody has done with Stable
# Diffusion. MiniSD is small enough: here it is trained in all four combinations of *padding* (`<eot>` or `!`) and *data* (with the
# repeated pairs, or each of them once), everything else being the same.
#
# The four shipped models are one long training of each combination. An effect of training needs several trainings, so the whole
# square was trained again with three other seeds (initial weights, noise, order and fresh scenes), smaller and shorter; what
# each prompt gave is kept in `data/minisd/replicates.csv`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment.page import NOT_MEASURED, Page, at_hand
from memlib.experiment.scores import nearest_training
from memlib.judging.estimates import mean_interval, paired_difference, share_interval
from memlib.models.minisd.paths import settings
from memlib.prompts.embedding import PADDINGS, encode_prompts
from memlib.prompts.interventions import apply
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots
from memlib.results import trainings

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
models = None  # the models compared; None: the four of MiniSD, or sd14 and sd21, or the substrate alone
memorized = None  # prompt set, a name or file (csv, txt, jsonl); None: MiniSD's pairs with 64 and 128 copies, or the published memorized ones
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 12  # at most so many prompts of each set
n_seeds = 2  # seeds 0, 1, ...
n_other_seeds = 1  # of them, for prompts that are not memorized
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("C4a", "C4b")
plots.style()
run = page.experiment()
miniature = run.substrate.data.retrained
names = models or (list(trainings.CELLS.values()) if miniature else ["sd14", "sd21"] if substrate in ("sd14", "sd21") else [substrate])
runs = {run.substrate.name: run}
for name in names:
    try:
        if name != substrate:
            runs[name] = page.experiment(substrate=name)
    except InputError as missing:
        print(f"{name} is left out: {missing}")
runs = {name: runs[name] for name in names if name in runs} or runs
if memorized is None and miniature:
    pairs = load_prompts("minisd-duplicated")
    memorized = pairs.select((pairs.table["copies"] >= 64).to_numpy()).sample(n_prompts, seed=0)
known = {name: x.group(memorized or "memorized", n_prompts, "duplicated") for name, x in runs.items()}
other = {name: x.group(not_memorized, n_prompts, "not memorized").part(None, n_other_seeds) for name, x in runs.items()}
first, metric = known[run.substrate.name], run.metrics.copy

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(quantities=True)
print(page.claims["C4a"].reported_note)

# %% [markdown]
# ## The pictures
#
# The same prompts and the same noise in each model, above the training pictures. On MiniSD the prompts are drawn from the pairs with 64
# and 128 copies in the duplicated data, whether or not a model reproduces them.

# %% mystnb={"image": {"alt": "Prompts of repeated pairs: one row of pictures per model, and the training pictures below, one column per prompt", "width": "100%"}}
rows = {name: group.pictures()[:8, 0] for name, group in known.items()}
if first.training is not None:
    rows["training picture"] = np.stack([pictures[0] for pictures in first.training[:8]])
plots.montage(rows, first.prompts.prompts[:8], "Prompts of repeated pairs, first seed");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: one row of pictures per model, one column per prompt", "width": "100%"}}
shown = other[run.substrate.name].prompts.prompts[:8]
plots.montage({name: group.pictures()[:8, 0] for name, group in other.items()}, shown, "Prompts that are not memorized, first seed");

# %% [markdown]
# ## Dose and response
#
# Share of pairs reproduced against how often a pair comes in an epoch of the duplicated data. After de-duplicated training (broken
# lines) the same pairs are asked for, each of which came once. Left: the four shipped models, intervals over pairs. Right: the
# replicates, intervals over pairs and over seeds of training.

# %%
LABELS = dict(zip(trainings.CELLS.values(), ("<eot>, duplicated", "!, duplicated", "<eot>, de-duplicated", "!, de-duplicated")))
shipped = at_hand(trainings.main_models, what="shipped models") if miniature else None
replicated = at_hand(trainings.replicates, what="replicates") if miniature else None
squares = {} if shipped is None else {f"shipped models ({settings()['unet']['steps']:,} steps)": shipped}
if replicated is not None:
    squares[f"replicates ({len(replicated.seeds)} seeds, {settings()['replicates']['steps']:,} steps)"] = replicated
if not miniature:
    print("not measured: the training of this substrate can't be repeated here")

# %% mystnb={"image": {"alt": "Share of pairs reproduced against copies per epoch for both paddings and both kinds of data, shipped models and replicates", "width": "100%"}}
if squares:
    figure, axes = plt.subplots(1, len(squares), figsize=(5 * len(squares), 3.9), sharey=True, squeeze=False)
    for axis, (title, square) in zip(axes[0], squares.items()):
        curves = {LABELS[cell]: square.pairs().by_level(cell) for cell in LABELS}
        plots.dose_response(curves, "copies of a pair in an epoch", "share of pairs reproduced", axis, dashed=list(curves)[2:])
        axis.set_title(title)
    for axis in axes[0][1:]:
        axis.set_ylabel("")
        axis.get_legend().remove()

# %%
levels = {
    (title, LABELS[cell]): {str(level): share.text(2) for level, share in square.pairs().by_level(cell).items()}
    for title, square in squares.items()
    for cell in LABELS
}
pd.DataFrame(levels).T.rename_axis(columns="copies")

# %% [markdown]
# ## Effects
#
# Over all pairs with more than one copy in the duplicated data (that is, over the four upper levels, each counting the same). A *main
# effect* is the mean of a factor's effect at both levels of the other; the *interaction* says how much larger the effect of padding is
# with duplicated data than without; *alone* means that one factor is changed from `<eot>` padding and duplicated data, as one would
# change v1.4. Templates (one caption with six colourings of one composition; any of them counts) are kept apart.

# %%
parts = {(title, kind): of for title, square in squares.items() for kind, of in (("exact", square.exact()), ("template", square.templates()))}
effects = {key: {name.replace("_", " "): e for name, e in part.effects().items()} for key, part in parts.items()}
pd.DataFrame({key: {name: e.text(2) for name, e in found.items()} for key, found in effects.items()})

# %% mystnb={"image": {"alt": "Main effects of padding and duplication, their interaction, and each factor changed alone, with intervals, exact and template memorization, shipped models and replicates", "width": "100%"}}
if effects:
    plots.forest({f"{kind}, {title}": found for (title, kind), found in effects.items()}, "difference in the share reproduced");

# %% [markdown]
# ## Training and inference apart
#
# What padding does while a model learns and what it does while it draws are different questions. Here each trained model draws with its
# own padding, with the *other* one, with the `<eot>` state set to zero, and with the padding states set to zero. The prompts are those of
# the pictures above; reproduced means a similarity to the training picture at or above the copy threshold, counted over prompts and seeds.

# %%
OTHER = {PADDINGS["eot"]: "!", PADDINGS["!"]: "eot"}


def drawn_with(group):
    """Pictures [N, S, H, W, 3] of a group's prompts under each way to use the padding, by name."""
    x = group.experiment
    other_padding = OTHER.get(group.embedding.tokens.pad_id, "!")
    ways = {
        "own padding": group.embedding,
        "other padding": encode_prompts(x.substrate, group.prompts.prompts, other_padding),
        "<eot> masked": apply("f", group.embedding),
        "padding masked": apply("h", group.embedding),
    }
    return {way: group.sample(embedding) for way, embedding in ways.items()}


crossed = {name: drawn_with(group) for name, group in known.items()}
ways = list(next(iter(crossed.values())))
to_training = {}
if metric.available and first.training is not None:
    to_training = {(name, way): nearest_training(metric, drawn[way], first.training) for name, drawn in crossed.items() for way in ways}
else:
    print("not measured: similarity to training needs the copy metric and the training pictures")
shares = {key: share_interval(similarity >= metric.threshold) for key, similarity in to_training.items()}
means = {key: mean_interval(similarity) for key, similarity in to_training.items()}
words = {(name, way): f"{shares[name, way].text(2)}; mean similarity {means[name, way].value:.2f}" for name, way in shares}
pd.DataFrame({way: {name: words[name, way] for name in crossed if (name, way) in words} for way in ways}).rename_axis("trained as")

# %% mystnb={"image": {"alt": "Share of pictures that reproduce the training picture, by trained model and by how it is sampled, as bars with intervals", "width": "100%"}}
if shares:
    plots.grouped_bars({name: {way: shares[name, way] for way in ways} for name in crossed}, "share reproduced", (0, 1));

# %% mystnb={"image": {"alt": "The prompt of one repeated pair in each model, drawn with own padding, other padding, eot masked and padding masked", "width": "60%"}}
one = {name: np.stack([drawn[way][0, 0] for way in ways]) for name, drawn in crossed.items()}
plots.montage(one, ways, f"“{first.prompts.prompts[0]}”", cell=1.2);

# %% [markdown]
# The same on prompts that are not memorized: similarity to the picture with the model's own padding, and alignment. It shows whether a
# condition takes away the memorized picture or any picture.

# %%
others = {}
for name, group in other.items():
    metrics, drawn = runs[name].metrics, drawn_with(group)
    for way, pictures in drawn.items():
        alike = mean_interval(metrics.copy.similarity(pictures, drawn["own padding"])).text(2) if metrics.copy.available else NOT_MEASURED
        aligned = mean_interval(metrics.alignment(pictures, group.descriptions)).text(2) if metrics.alignment.available else NOT_MEASURED
        others[name, way] = {"similarity to own padding": alike, "alignment": aligned}
pd.DataFrame(others).T.rename_axis(["trained as", "drawn with"])

# %% [markdown]
# ## Verdicts

# %%
why, found = {}, {}
if replicated is not None:
    square = replicated.exact()
    found = square.effects() | {"share_v1": square.share("minisd-v1"), "share_v2": square.share("minisd-v2"),
                                "share_v2_minus_v1": square.difference("minisd-v2", "minisd-v1")}  # fmt: skip
elif miniature:
    why = dict.fromkeys(page.claims, "The replicated trainings are not at hand.")
else:
    why = {"C4a": "The training would have to be repeated with the padding or the data changed."}
    if {"sd14", "sd21"} <= set(runs) and to_training:
        # Reproduced is a prompt with at least nine tenths of its seeds.
        v1, v2 = (((to_training[name, "own padding"] >= metric.threshold).mean(1) >= 0.9).astype(float) for name in ("sd14", "sd21"))
        found = {"share_v1": share_interval(v1), "share_v2": share_interval(v2), "share_v2_minus_v1": paired_difference(v2, v1)}
    else:
        why["C4b"] = "It needs sd14 and sd21, the copy metric and the training pictures."
page.judge(found, run, not_testable_because=why);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({name: found.get(name) for each in page.claims.values() for name in each.quantities})
WAYS = {"own padding": "own", "other padding": "other", "<eot> masked": "eot", "padding masked": "pad"}
page.glue({f"{short}_{key}": shares.get((f"minisd-{short}", way)) for short in ("v1", "v2") for way, key in WAYS.items()})
templates = replicated.templates().effects() if replicated is not None else {}
page.glue({f"template_{name}": templates.get(name) for name in ("effect_of_padding", "effect_of_duplication")})
PLAINLY = {
    "holds": "the padding decides, and more than the duplication, as `clip` says",
    "does not hold": "the duplication decides, and not the padding",
    "not testable here": "nothing can be said, because the trainings are not at hand",
}
without, by_training = None, None
if replicated is not None:
    values = np.stack([values for name, values in square.values.items() if name.endswith("-dedup")])
    without = f"{values.sum():.0f} of {values.size}"
    by_training = ", ".join(f"{d:+.2f}" for d in (square.values["minisd-v1"] - square.values["minisd-v2"]).mean(0))
plainly = PLAINLY.get(page.verdicts["C4a"].verdict, "the trainings do not tell the two causes apart")
page.glue({"n_pairs": page.verdicts["C4a"].n_prompts, "plainly": plainly, "without_duplicates": without, "by_training": by_training})

# %% [markdown]
# ## What it says, and what it can't
#
# C4a {glue:text}`verdict_C4a` and C4b {glue:text}`verdict_C4b` on this substrate. Over {glue:text}`n_pairs` repeated pairs and the replicated
# trainings the effect of padding is {glue:text}`effect_of_padding` and that of duplication {glue:text}`effect_of_duplication`; their interaction is
# {glue:text}`interaction`. Changed alone, padding moves the share by {glue:text}`padding_alone`, de-duplication by
# {glue:text}`duplication_alone`. For templates the effects are {glue:text}`template_effect_of_padding` and
# {glue:text}`template_effect_of_duplication`. Trained on the same duplicated data, `<eot>` padding reproduces a share of {glue:text}`share_v1` and
# `!` padding {glue:text}`share_v2`; the first minus the second, training by training: {glue:text}`by_training`. After de-duplicated
# training {glue:text}`without_duplicates` pairs are reproduced, both paddings and all trainings taken together.
#
# Plainly: in these trainings {glue:text}`plainly`. How far one training differs from the next with the same data shows why a single pair of
# models, such as v1.4 and v2.1, could not have settled it.
#
# Drawing is another matter. The model trained with `<eot>` padding reproduces {glue:text}`v1_own` of the pictures with its own padding,
# {glue:text}`v1_other` with the other one, {glue:text}`v1_eot` with `<eot>` masked and {glue:text}`v1_pad` with the padding masked; the one trained with
# `!` {glue:text}`v2_own`, {glue:text}`v2_other`, {glue:text}`v2_eot` and {glue:text}`v2_pad`.
#
# What a miniature can't say: whether padding matters at hundreds of millions of parameters and billions of pictures, with web captions,
# with a text encoder trained on other pictures than the U-Net, or through the encoder itself, which here is the same for both paddings and in
# Stable Diffusion v2.1 is another one. It can say that padding with `!` does not by itself prevent memorization in a model of
# this construction, or that it does, and how much duplication does beside it.

# %% tags=["hide-input"]
run.provenance()
