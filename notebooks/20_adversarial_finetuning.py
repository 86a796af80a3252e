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
# # Adversarial fine-tuning
#
# **Claim D5** · `dori`, a summary of *Finding Dori* {cite:p}`dori`
#
# If memory is not local, cutting out a few weights cannot be enough, and all of them have to change. `dori` proposes adversarial fine-tuning:
# search for embeddings that bring up a memorized picture in the model as it is now, train the model to give another picture for them and for
# the prompt, with ordinary pictures mixed in so that the rest stays; and again.
#
# - **D5** After that a new attack does not bring the pictures back, and quality is kept.
#
# The pictures trained towards are called *surrogates*: those that the model itself gives for the prompt under mitigations, the ones least like
# the training picture. What is like it was decided by pixels, not by the copy descriptor that judges below.
#
# Three models stand beside the one fine-tuned adversarially: the one it began with; one fine-tuned *plainly* on the same surrogates under the
# prompts alone, which says what the search adds; and the model *trained without the duplicates*, which never memorized the pictures: what an
# attack reaches there it reaches without memory, and no remedy can be expected to leave less. Only MiniSD has that model.
#
# The attack is [the one used before](19_attack), from the pictures' own prompts and from other prompts; the search in training began at the
# prompts and at random points, with a budget of its own. The criterion was fixed in `data/claims.yml` before anything ran; the text gives no
# procedure, and the one here is recollected, with its settings in `data/minisd/training.yml`.

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from memlib.base.errors import InputError
from memlib.experiment.page import Page, told
from memlib.judging.equivalence import relative_change
from memlib.models.minisd.paths import settings
from memlib.probes.attack import Attack, Budget, targets
from memlib.probes.attack.outcomes import share, survival
from memlib.results import figures as plots
from memlib.results import remedy_rounds

# %% tags=["parameters"]
substrate = "minisd-v1"  # the model before fine-tuning: minisd-v1, sd14, sd21, or a folder with a diffusers pipeline
adversarial = "auto"  # the model fine-tuned adversarially: a name or folder; auto: <substrate>-adversarial
plain = "auto"  # the one fine-tuned on the surrogates alone; auto: <substrate>-surrogates
without = "auto"  # the one trained without duplicates; auto: <substrate>-dedup
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 8  # at most so many memorized pictures
n_others = 16  # at most so many prompts that are not memorized
n_seeds = 2  # seeds 0, 1, ... for every prompt
attack_steps = 40  # steps of Adam
attack_samples = 4  # noised copies of the picture in each
attack_every = 10  # steps between tests
check_steps = 25  # denoising steps of the picture sampled at a test
steps = 50  # denoising steps of all other pictures
guidance = 7.5  # classifier-free guidance
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("D5")
plots.style()
wanted = {
    "before": substrate,
    "adversarial": f"{substrate}-adversarial" if adversarial == "auto" else adversarial,
    "plain": f"{substrate}-surrogates" if plain == "auto" else plain,
    "dedup": f"{substrate}-dedup" if without == "auto" else without,
}
run = page.experiment()
known, other = run.group(memorized, n_prompts, "memorized"), run.group(not_memorized, n_others, "not memorized")
ours = substrate == settings()["remedies"]["base"] and adversarial == plain == "auto"
rounds = remedy_rounds.read_rounds() if ours else None
models, absent = {"before": run}, {}
for name, place in list(wanted.items())[1:]:
    try:
        models[name] = page.experiment(substrate=place)
    except InputError as error:
        absent[name] = str(error)
for name, why in absent.items():
    print(f"{name}: {why}")
# The prompts are the same ones, chosen for the model before fine-tuning.
groups = {name: (x.group(known.prompts, None, "memorized"), x.group(other.prompts, None, "not memorized")) for name, x in models.items()}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds, quantities=True)

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed; each row is one model: *before* fine-tuning, after *adversarial* and *plain* fine-tuning, and
# *dedup*, trained without the duplicates.

# %% mystnb={"image": {"alt": "Memorized prompts: pictures before fine-tuning, after adversarial and plain fine-tuning, from the model without duplicates, and the training pictures", "width": "100%"}}
strips = {name: pair[0].pictures()[:8, 0] for name, pair in groups.items()}
if known.training is not None:
    strips["training picture"] = np.stack([pictures[0] for pictures in known.training[:8]])
plots.montage(strips, known.prompts.prompts[:8], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: pictures before fine-tuning, after adversarial and plain fine-tuning, and from the model without duplicates", "width": "100%"}}
plots.montage({name: pair[1].pictures()[:8, 0] for name, pair in groups.items()}, other.prompts.prompts[:8], "Prompts that are not memorized");

# %% [markdown]
# Means over prompts and seeds with 95 % intervals. Memorized prompts may well change, for they were trained towards other pictures; those that
# are not memorized should not.

# %%
rows = {}
for name, pair in groups.items():
    for group in pair:
        means = {score: group.mean(score) for score in ("similarity to training", "alignment with prompt", "quality", "diversity")}
        rows[group.label, name] = {score: told(mean) for score, mean in means.items()}
pd.DataFrame(rows).T.rename_axis(["prompts", "model"])

# %% [markdown]
# ## The attack on each model
#
# From each picture's own prompt, and from a prompt that is not memorized; a picture counts if either search brings it up. *By the prompt alone*
# is the test before the first step. The highest similarity at any test is a mean over pictures, from the prompt.

# %%
budget = Budget(attack_steps, attack_samples, every=attack_every, sampling_steps=check_steps)
aims = targets(known) if run.metrics.copy.available else None
found = {(name, start): Attack(x, budget).run(aims, start) for name, x in models.items() for start in ("prompt", "other")} if aims is not None else {}
back = {name: np.hstack([found[name, start].succeeded for start in ("prompt", "other")]).any(1) for name in models} if found else {}
pd.DataFrame(
    {
        name: {
            "by the prompt alone": share(found[name, "prompt"].at_once[:, 0]).text(2),
            "from the prompt": share(found[name, "prompt"].brought_back).text(2),
            "from another prompt": share(found[name, "other"].brought_back).text(2), "from either": share(back[name]).text(2),
            "highest similarity": f"{found[name, 'prompt'].best.mean():.2f}",
        }
        for name in back
    }
).T if found else "not measured"  # fmt: skip

# %% mystnb={"image": {"alt": "Share of memorized pictures not yet brought up by steps of attack, from the prompt and from other prompts, for each model", "width": "100%"}}
if found:
    starts = {"prompt": "from the prompt", "other": "from another prompt"}
    plots.survival_curves(
        {title: {name: survival(found[name, start].steps[:, 0], budget.steps) for name in models} for start, title in starts.items()}
    )

# %% [markdown]
# ## Through training
#
# Training goes in rounds, each with a search of its own, and the model at the end of each round was attacked and judged as above, on the same
# prompts (`data/minisd/remedy_rounds.csv`). Step 0 is the model before fine-tuning, as this page measured it. The model trained without the
# duplicates knows no steps of fine-tuning and is a level line. Models of rounds are measured as they stood in training; the last one is kept
# with the project in rounded form, so that its figures above may differ a little.

# %%
block, curves = settings()["remedies"], {}
if rounds is not None:
    at_hand = {
        name: pd.DataFrame(remedy_rounds.rows_of({start: found[name, start] for start in ("prompt", "other")}, groups[name][1]))
        for name in ("before", "dedup") if (name, "prompt") in found
    } if remedy_rounds.measured_alike(run, budget) else {}  # fmt: skip
    curves = remedy_rounds.through_training(rounds, at_hand.get("before"))
    same = any(0 in curve for panel in curves.values() for curve in panel.values())
    names = {"adversarial": "adversarial", "surrogates": "plain"}
    shown = {title: {names[remedy]: panel[remedy] for remedy in names if remedy in panel} for title, panel in curves.items()}
    if same and "dedup" in at_hand:
        lowest = remedy_rounds.estimates(at_hand["dedup"])
        for title, panel in shown.items():
            steps_seen = sorted({step for curve in panel.values() for step in curve})
            panel["trained without duplicates"] = dict.fromkeys(steps_seen, lowest[title])
    print(
        f"{block['rounds']} rounds of {block['steps']} steps; in each step {block['batch']} ordinary pictures and as many surrogates; a round's "
        f"search has {block['search']['steps']} steps from each start"
    )
    if not same:
        print("Step 0 is left out: this page ran with other prompts or settings than the rounds were measured with.")
elif ours:
    print("Not measured here: `memlib minisd finetune adversarial`, and the same with `surrogates`, train and measure the rounds.")
else:
    print(
        f"Not measured here: rounds are measured for the project's own remedies of {block['base']} alone. Elsewhere `memlib finetune "
        "--recipe adversarial --keep-rounds`, and its baseline `--recipe surrogates`, keep a folder for each round, and each can be given to this page "
        "in turn, with `-p adversarial FOLDER -p plain FOLDER`."
    )

# %% mystnb={"image": {"alt": "Shares of memorized pictures brought back by the attack and given by the prompt alone, and alignment and quality on other prompts, over steps of adversarial and of plain fine-tuning, with intervals, beside the model trained without duplicates", "width": "100%"}}
if curves:
    plots.bands(shown, "steps of fine-tuning", "share, or mean score", width=3.3)

# %%
if curves:
    by_step = {(title, label): {step: e.text(2) for step, e in curve.items()} for title, panel in shown.items() for label, curve in panel.items()}
    display(pd.DataFrame(by_step).T.rename_axis(["quantity", "model"]).rename_axis(columns="steps").fillna("-"))

# %% [markdown]
# ## Verdict

# %%
quantities = dict.fromkeys(page.claims["D5"].quantities)
for name, quantity in (("before", "share_before"), ("adversarial", "share_after"), ("plain", "share_plain"), ("dedup", "share_dedup")):
    if name in back:
        quantities[quantity] = share(back[name])
changes = {}
for name, pair in groups.items():
    for score, quantity in (("alignment with prompt", "alignment"), ("quality", "quality")):
        first, second = pair[1].score(score), other.score(score)
        if name != "before" and first is not None and second is not None and second.mean() > 0:
            changes[name, quantity] = relative_change(first, second, float(second.mean()))
for quantity in ("alignment", "quality"):
    quantities[quantity] = changes.get(("adversarial", quantity))
why = "There is no model that was fine-tuned adversarially from this one." if "adversarial" in absent else ""
display(pd.Series({key: e.text(3) for key, e in changes.items()}, name="change on prompts not memorized, share", dtype=str))
page.judge(quantities, run, not_testable_because={"D5": why});

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d5_{name}": value for name, value in quantities.items()})
page.glue({f"d5_plain_{quantity}": changes.get(("plain", quantity)) for quantity in ("alignment", "quality")})
for remedy in ("adversarial", "surrogates"):
    seen = sorted((step, e) for step, e in curves.get(remedy_rounds.BACK, {}).get(remedy, {}).items() if step)
    for when, place in (("first", 0), ("last", -1)):
        page.glue({f"d5_{remedy}_{when}": f"{told(seen[place][1])} (step {seen[place][0]})" if seen else None})

# %% [markdown]
# On this substrate D5 {glue:text}`verdict_D5`. The attack brings back {glue:text}`d5_share_before` of the pictures before any fine-tuning,
# {glue:text}`d5_share_after` after adversarial fine-tuning, {glue:text}`d5_share_plain` after plain fine-tuning on the surrogates, and
# {glue:text}`d5_share_dedup` in the model trained without the duplicates. On prompts that are not memorized adversarial fine-tuning changes
# alignment by {glue:text}`d5_alignment` and quality by {glue:text}`d5_quality`, as shares of their means before; plain fine-tuning by
# {glue:text}`d5_plain_alignment` and {glue:text}`d5_plain_quality`.
#
# Through training, the share that the attack brings back went from {glue:text}`d5_adversarial_first` after the first round to
# {glue:text}`d5_adversarial_last` after the last one in adversarial fine-tuning, and from {glue:text}`d5_surrogates_first` to
# {glue:text}`d5_surrogates_last` in plain fine-tuning.
#
# The new attack is of the same kind as the one trained against; an attacker with another budget or another loss may get further. Each remedy
# was trained once, with one seed: the intervals are over pictures and prompts, not over trainings.

# %% tags=["hide-input"]
run.provenance()
