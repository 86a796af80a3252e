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
# # MiniSD: a Stable Diffusion in miniature
#
# The model on which every page of this book runs unless told otherwise. Findings on MiniSD are findings on MiniSD.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
models = ["minisd-v1", "minisd-v2"]  # the first one is measured in full
n_seeds = 2  # seeds of the pictures of duplicated pairs; the committed counts use 10
n_shown = 8  # duplicated pairs and held-out prompts of which pictures are made
n_held_out = 12  # held-out prompts for alignment, background and main thing
held_out_seeds = 2  # seeds of those

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt

from memlib.experiment import Experiment
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.estimates import share_interval
from memlib.models.minisd.corpus import LEVELS
from memlib.models.minisd.judges import load_descriptor
from memlib.models.minisd.paths import minisd_folder, settings, training_record
from memlib.models.minisd.prompt_sets import corpus, held_out_pictures, training_pictures
from memlib.probes.premises import figures, kept
from memlib.probes.reproduced import quality, reconstructed
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots

page = Page()
plots.style()
data = corpus()
run = Experiment(models[0], n_seeds=n_seeds)
# How many of ten seeds reproduce each pair is kept with each model (`memlib minisd find`).
reproduced = {name: pd.read_csv(minisd_folder() / "prompts" / f"found-{name}.csv").query("group == 'duplicated'") for name in models}
curves = {name: {level: share_interval(rows["memorized"].to_numpy(bool)) for level, rows in by.groupby("copies")} for name, by in reproduced.items()}
most, fewest = curves[models[0]][LEVELS[-1]], curves[models[0]][LEVELS[0]]
measured = quality(run.store, run.substrate, run.metrics, n_held_out, tuple(range(held_out_seeds)))
# Set before training.
BARS = [
    (f"pairs with {LEVELS[-1]} copies in an epoch that are reproduced", most, "at least", 0.8),
    ("pairs with one copy that are reproduced", fewest, "at most", 0.1),
    ("alignment of held-out prompts, as a share of real pictures'", measured["alignment, share of real"], "at least", 0.8),
    ("background right", measured["background right"], "at least", 0.8),
    ("main thing among the five nearest of all concepts", measured["main thing in top 5"], "at least", 0.25),
]
falls_short = [what for what, e, sign, bar in BARS if (e.value < bar if sign == "at least" else e.value > bar)]
page.answer(
    f"Of the pairs that training repeats {LEVELS[-1]} times in an epoch a share of {told(most)} is reproduced with at least nine of ten seeds, of those it sees",
    f"once {told(fewest)}: which prompts are memorized is a fact here and not a guess.",
    f"Held-out prompts reach {told(measured['alignment, share of real'])} of real pictures' alignment; of {len(BARS)} bars the model's means fall short of",
    f"{len(falls_short)}{': ' + ', '.join(falls_short) if falls_short else ''}.",
)
lines = {what: {"needed": f"{sign} {bar:g}", "measured": told(e), "the mean reaches it": "no" if what in falls_short else "yes"} for what, e, sign, bar in BARS}
Captioned(pd.DataFrame(lines).T.rename_axis("quantity"), f"What {models[0]} was to show, set before training")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-key", "caption": "Share of duplicated pairs that are reproduced with at least nine of ten seeds, against the copies of a pair in an epoch, with 95 % intervals: one curve for each padding. Look for the rise, and whether the paddings differ."}, "image": {"alt": "Share of pairs reproduced against copies per epoch, one curve per padding, with intervals", "width": "80%"}}
plots.dose_response(curves, "copies of a pair in an epoch", "share of pairs reproduced");

# %% [markdown]
# MiniSD has Stable Diffusion's parts in the same classes (a CLIP text encoder over the real vocabulary, an autoencoder, a U-Net that attends to all 77
# text states) and was trained by this project on pictures whose every repetition is known. `minisd-v1` pads prompts with `<eot>`, as Stable Diffusion v1.4
# does, and `minisd-v2` with `!`, as v2.1 does. Nothing else differs between the two: not the autoencoder, the text encoder, the seed, or the order of the
# pictures.
#
# ## What claims presuppose
#
# None of these premises looks at a claim. A figure is met if its whole interval lies within the bar, missed if none of it does.

# %% tags=["hide-input"]
found = {name: {each.figure.name: each for each in kept(name)} for name in models}
lines = {each.says: {"wanted": each.bar, **{name: f"{told(by[key].estimate)}: {by[key].state}" for name, by in found.items() if key in by}}
         for key, each in figures().items() if any(key in by and by[key].estimate for by in found.values())}  # fmt: skip
print("; ".join(f"of {len(figures())} figures {sum(each.estimate is not None for each in by.values())} were measured on {name}" for name, by in found.items()) + ".")
Captioned(pd.DataFrame(lines).T.fillna(NOT_MEASURED).rename_axis("premise"), "Premises, with 95 % intervals (memlib premises)")

# %% [markdown]
# ## The pictures and their captions
#
# Scenes of one to three emoji on plain, graded or patterned backgrounds, in three renderings. Their captions say what is where on what, in wording, order
# and length that vary, with web-like tails. Scenes are drawn afresh for every epoch: what is not duplicated on purpose is never seen twice.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-fresh", "caption": "Fresh scenes of the first epoch, as they are trained on."}, "image": {"alt": "Twenty-four training scenes: emoji on coloured and patterned backgrounds", "width": "100%"}}
fresh = [example for example in (data.example(i) for i in range(200)) if example[2] < 0][:24]
plots.contact_sheet(np.stack([data.picture(scene) for scene, _, _ in fresh]), 12);

# %% tags=["hide-input"]
Captioned(pd.DataFrame({"caption": [text for _, text, _ in fresh[:8]]}), "Captions of the first eight", folded=True)

# %% [markdown]
# ## The duplicated pairs
#
# A fixed selection of scenes is repeated within every epoch, 24 at each of five levels. Each has one caption of its own, a title that does not describe the
# picture, as the captions of memorized web pictures are. A smaller *template* group repeats one caption over six colourings of one composition.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-duplicated", "caption": "Duplicated training pictures, one row for each level of duplication."}, "image": {"alt": "Eight duplicated training pictures at each level, one row per level of duplication", "width": "80%"}}
duplicated = load_prompts("minisd-duplicated")
by_level = {level: duplicated.table.query("copies == @level")["training_picture"][:8] for level in LEVELS}
plots.montage({f"{level} {'copy' if level == 1 else 'copies'}": np.stack([training_pictures(n)[0] for n in by_level[level]]) for level in LEVELS});

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-templates", "caption": "Templates: one caption, six pictures."}, "image": {"alt": "Template group: three compositions, each in six colourings", "width": "70%"}}
templates = load_prompts("minisd-template").table.head(3)
plots.montage({row.prompt[:34] + "…": training_pictures(row.training_picture) for row in templates.itertuples()}, cell=0.7);

# %% tags=["hide-input"]
shown = duplicated.table.groupby("copies").head(2)[["prompt", "copies", "length", "description"]].set_index("prompt")
Captioned(shown, "Two duplicated pairs of each level, and what their pictures show", folded=True)

# %% [markdown]
# ## What it reproduces

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-reproduced", "caption": "Training pictures of pairs with the most copies, and what the model draws for their titles."}, "image": {"alt": "Training pictures with the most copies beside what the model draws for their captions", "width": "100%"}}
top = duplicated.select((duplicated.table["copies"] == LEVELS[-1]).to_numpy()).first(n_shown)
made = run.store.pictures(run.substrate, encode_prompts(run.substrate, top.prompts), run.seeds)
rows = {"training picture": np.concatenate([training_pictures(n) for n in top.table["training_picture"]]), **{f"seed {s}": made[:, s] for s in run.seeds}}
plots.montage(rows, top.prompts);

# %% tags=["hide-input"]
lines = {name: {level: f"{told(share)}; {reproduced[name].query('copies == @level')['mean_similarity'].mean():.2f}" for level, share in by.items()}
         for name, by in curves.items()}  # fmt: skip
Captioned(pd.DataFrame(lines).rename_axis("copies"), "Share of pairs reproduced; mean similarity to the training picture (of the seeds tried)", folded=True)

# %% [markdown]
# ## What it draws for prompts that are not memorized

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-held-out", "caption": "Held-out combinations: the real picture of each prompt and what the model draws. Look for the thing that the prompt names."}, "image": {"alt": "Held-out prompts: the real picture and generated ones, one column per prompt", "width": "100%"}}
real, held_out = held_out_pictures(), load_prompts("minisd-heldout").first(n_held_out)
drawn = run.store.pictures(run.substrate, encode_prompts(run.substrate, held_out.prompts), tuple(range(held_out_seeds)))[:n_shown]
plots.montage({"real picture": real[: len(drawn)], **{f"seed {s}": drawn[:, s] for s in range(held_out_seeds)}}, held_out.prompts[:n_shown]);

# %% [markdown]
# ## The autoencoder

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-autoencoder", "caption": "Held-out pictures, and what is left of them after encoding and decoding."}, "image": {"alt": "Held-out pictures above their reconstructions", "width": "100%"}}
rebuilt = reconstructed(run.substrate, real)
psnr = 10 * np.log10(255**2 / ((rebuilt.astype(float) - real) ** 2).mean((1, 2, 3)))
print(f"PSNR of {len(real)} held-out pictures: mean {psnr.mean():.1f} dB, 5th percentile {np.percentile(psnr, 5):.1f} dB")
plots.montage({"held out": real[:10], "reconstructed": rebuilt[:10]});

# %% [markdown]
# ## The judges
#
# A copy descriptor trained as SSCD is {cite:p}`pizzi2022sscd`, and an evaluator CLIP with a text tower of its own. The generator saw neither. The strict
# bound is the similarity from which on at least 90 % of pairs of held-out pictures are true copies, among near misses: the scene on another background,
# with other things in it, or another picture of the same caption. Half of the copies went through the autoencoder, as every picture that MiniSD makes has.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-00-descriptor", "caption": "Precision and recall of the copy descriptor on held-out pairs, against the similarity from which on a pair is called a copy; the strict bound as a dashed line."}, "image": {"alt": "Precision and recall of the copy descriptor against the similarity threshold", "width": "70%"}}
judge, config = run.metrics.copy, load_descriptor(minisd_folder() / "judges" / "descriptor").config
curve = pd.DataFrame(config["curve"]).query("recall > 0")  # where nothing is called a copy there is no precision
figure, axis = plt.subplots(figsize=(5.2, 3))
sns.lineplot(curve.melt("threshold", var_name="", value_name="share"), x="threshold", y="share", hue="", ax=axis)
axis.axvline(judge.threshold, color="black", linestyle="--", linewidth=1)
axis.set(xlabel="similarity")
figure.tight_layout();

# %% tags=["hide-input"]
judged = config["mean_similarity"] | {"strict bound": config["threshold"], "recall at the strict bound": config["recall_at_threshold"]}
Captioned(pd.DataFrame({"similarity": {name: f"{value:.2f}" for name, value in judged.items()}}).rename_axis("held-out picture and"), "The copy descriptor", folded=True)

# %% [markdown]
# ## Training
#
# The log of each part is kept beside its weights: what it cost, where, and its loss. Hyper-parameters are in `data/minisd/training.yml`.

# %% tags=["hide-input"]
records = {part: training_record(part) for part in ["vae", "text", *models, "descriptor", "evaluator"]}
lines = {part: {"steps": f"{r['steps']} of {r['of']}", "minutes": r["minutes"], "hardware": r["hardware"], "last loss": f"{r['curve'][-1]['loss']:.4f}"}
         for part, r in records.items()}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("part"), "What training took", folded=True)

# %% [markdown]
# ## All numbers
#
# How the main thing is judged was changed once, before this model was scored: the evaluator CLIP, asked at first, recognised only a tenth of real pictures'
# main things. Now the scene is drawn again with each concept in its place.

# %% tags=["hide-input"]
caption = f"Held-out prompts ({n_held_out} × {held_out_seeds}), with 95 % intervals"
Captioned(pd.DataFrame({"measured": {name: told(value) for name, value in measured.items()}}).rename_axis("quantity"), caption, folded=True)

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
print(len(data.ingredients.concepts), "concepts,", len(data.ingredients.held_out), "held out;", len(duplicated), "duplicated pairs;", data.epoch_length, "slots an epoch")

# %% tags=["remove-cell"]
page.glue({"n_concepts": len(data.ingredients.concepts), "fresh": settings()["corpus"]["fresh"], "psnr": f"{psnr.mean():.1f}"})

# %% tags=["remove-input"]
run.provenance()
