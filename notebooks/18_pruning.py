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
# # Does pruning cut a memory out, and does it find it in one place?
#
# Claims D1 and D4 of a summary of *Finding Dori* {cite:p}`dori`, on two methods that it prunes with {cite:p}`hintersdorf2024nemo,chavhan2024subspace`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 8  # at most so many memorized prompts, where they are measured now
n_seen_once = 4  # at most so many titles seen once
n_others = 6  # at most so many descriptions
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
n_together = 8  # memorized prompts whose finds are removed at once, and each alone while descriptions are drawn
n_damaged = 3  # descriptions drawn with what was found for each single memorized prompt removed
n_triggered = 3  # pictures whose triggers are compared
n_triggers = 2  # triggers from other prompts for each of these, beside its own prompt
attack_steps = 40  # steps of the attack that finds triggers
attack_samples = 4  # noised copies in each of its steps
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_change, student_mean, student_ratio
from memlib.mitigations import get
from memlib.mitigations.pruning import PrunedFor
from memlib.mitigations.weights.weight_sets import union
from memlib.probes.attack import Attack, Budget, targets
from memlib.probes.locality import CHANCE, COMPARED, REPEAT, SAME, agreement, found_for, removed, sizes
from memlib.probes.triggers import trigger_embedding
from memlib.prompts.embedding import encode_prompts
from memlib.results import edits as show
from memlib.results import figures as plots
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather, scoring
from memlib.results.table import join, matrix, rows_of

page = Page("D1", "D4")
plots.style()
run = page.experiment()
TRAINING, ORIGINAL, ALIGNMENT, UNITS, OVERLAP = "similarity to training", "similarity to original", "alignment with prompt", "units found", "overlap"
SCORES, KINDS = [TRAINING, ORIGINAL, ALIGNMENT, "quality"], ("activations", "nemo", "wanda")
own = {name: get(name) for name in ("nemo", "wanda")}
chance = {name: get(name, random=0) for name in own}
n_together = min(n_together, n_prompts or n_together)
known = run.group(memorized, n_together, MEMORIZED)
together = {name: get(name, scope="all", count=n_together) for name in own if memorized == "memorized"}
removing = {(name, prompt): PrunedFor(name, prompt) for prompt in known.prompts.prompts for name in own}


def triggered(group):
    """By prompt its own embedding and those that an attack from other prompts finds for its picture, where it finds any."""
    aims = targets(group)
    if aims is None or not run.metrics.copy.available:
        return {}
    found = Attack(run, Budget(attack_steps, attack_samples, every=10, sampling_steps=steps)).run(aims.first(n_triggered), "other", n_triggers)
    triggers = {p: (encode_prompts(run.substrate, p), trigger_embedding(run.substrate, found, row)) for row, p in enumerate(found.targets.prompts)
                if found.succeeded[row].any()}  # fmt: skip
    return {prompt: [first, *(others.select([i]) for i in range(len(others)))] for prompt, (first, others) in triggers.items()}


def overlaps(group):
    """Overlaps of what is found from the triggers of a picture, where something is."""
    triggers, rows = triggered(group), []
    for kind in KINDS if len(triggers) > 1 else ():
        found = agreement(run.substrate, list(triggers.values()), kind)
        usable = np.isfinite(found[SAME]) & np.isfinite(found[REPEAT])
        few = run.group(group.prompts.select([group.prompts.prompts.index(p) for p in triggers]), None, group.label)
        rows += [rows_of(few, f"{kind}: {what}", OVERLAP, np.where(usable, values, np.nan), n=1) for what, values in found.items()]
    return join(rows)


def counts(group, names=tuple(own)):
    return join(rows_of(group, own[name], UNITS, sizes(group, name), n=1) for name in names)


def everything(group):
    if group.label == MEMORIZED:
        rows = [scoring(["none", *own.values(), *chance.values()], SCORES)(group), scoring(together.values(), SCORES)(known)]
        return join([*rows, counts(group), overlaps(group)])
    rows = [scoring(["none", *own.values(), *([] if group.label == SEEN_ONCE else together.values())], SCORES)(group), counts(group)]
    return join([*rows, scoring(removing.values(), SCORES)(group.part(n_damaged, 1))] if group.label == DESCRIPTIONS else rows)


def anew(group):
    """What a search of seconds finds; NeMo's takes many times as long, and is looked at for one prompt."""
    cheap = ["none", own["wanda"], *([chance["wanda"]] if group.label == MEMORIZED else [])]
    return join([scoring(cheap, SCORES)(group), counts(group, ["wanda"]), *([counts(group.part(1), ["nemo"])] if group.label == MEMORIZED else [])])


def overlap(kind, what):
    return found.values(OVERLAP, f"{kind}: {what}")


def less(kind):
    """Overlap of two triggers minus that of one trigger found twice, and the first as a share of the second."""
    same, again = overlap(kind, SAME), overlap(kind, REPEAT)
    return (None, None) if same is None else (student_change(same, again, (0, 1)), student_ratio(same, again) if again.mean() > 0 else None)


wanted = ((MEMORIZED, memorized, n_prompts), (SEEN_ONCE, control, n_seen_once), (DESCRIPTIONS, not_memorized, n_others))
groups = {label: run.control(prompts, None if profile == "check" else count, label) for label, prompts, count in wanted}
sets = {label: "none" if group is None else group.prompts for label, group in groups.items()}
found = gather(page.name, run, sets, everything, profile, None, {MEMORIZED: 4, SEEN_ONCE: 1, DESCRIPTIONS: 0}, anew)
shares = [share for kind in KINDS if (share := less(kind)[1]) is not None]
page.conclude(
    {
        "D1": [*(found.mean(TRAINING, own[name]) for name in own), *(found.change(TRAINING, own[name], chance[name]) for name in own)],
        "D4": [*(less(kind)[0] for kind in KINDS), max(shares, key=lambda share: share.value, default=None)],
    },
    run,
)
pair = {label: [told(found.mean(ORIGINAL, own[name], label)) for name in own] for label in (MEMORIZED, SEEN_ONCE)}
page.answer(
    f"Similarity of memorized pictures to training is {told(found.mean(TRAINING))} without pruning, {told(found.mean(TRAINING, own['nemo']))} with",
    f"the neurons found for each prompt blocked ({told(found.mean(TRAINING, chance['nemo']))} with as many at random) and",
    f"{told(found.mean(TRAINING, own['wanda']))} with the weights found removed ({told(found.mean(TRAINING, chance['wanda']))} at random).",
    "Of titles of the same kind that were seen once, with what is found for each removed, similarity to the original is",
    f"{pair[SEEN_ONCE][0]} (neurons) and {pair[SEEN_ONCE][1]} (weights), of memorized prompts {pair[MEMORIZED][0]} and {pair[MEMORIZED][1]}.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-key", "caption": "Similarity to the training picture by kind of pruning, one dot for each memorized prompt (mean over seeds), boxes for quartiles. Dots below the line are hidden from their prompt. Compare what was found with as much drawn at random from the same layers."}, "image": {"alt": "Similarity to the training picture by kind of pruning, one dot per memorized prompt, with the lax bound", "width": "100%"}}
rows = ["none", *own.values(), *chance.values(), *together.values()]
show.by_prompt(found, rows, TRAINING);

# %% [markdown]
# If the memory of a picture sat in a few weights, one could cut these out. Two published methods look for them:
#
# - **NeMo** {cite:p}`hintersdorf2024nemo` looks for *neurons*, output channels of the value projections of cross-attention. A memorized prompt gives
#   predictions of the noise that resemble each other whatever the noise; neurons whose activation by the prompt stands out are blocked until they no
#   longer do, and released again where they are not needed.
# - **Wanda**-type pruning {cite:p}`chavhan2024subspace` looks for *single weights* of the feed-forward layers: those whose size times the norm of their
#   input is among the highest of a row with the memorized prompt, and more than with other prompts, during the first fifth of sampling.
#
# Published thresholds belong to Stable Diffusion 1. Elsewhere they are quantiles of prompts that are not memorized. The text says that removing what is
# found hides a picture from its prompt (D1), and that from different triggers of one picture different weights are found (D4); its summary gives no
# figures that could stand beside ours. The next page [attacks the pruned models](19_attack).
#
# ## What is removed
#
# NeMo leaves a prompt alone whose predictions resemble each other no more than those of ordinary prompts do; Wanda-type pruning always finds something.

# %% tags=["hide-input"]
lines = {}
for label in found.rows:
    for name, method in own.items():
        if (n := found.values(UNITS, method, label)) is not None:
            words = {"unit": "neurons" if name == "nemo" else "weights", "median": f"{np.median(n):.0f}", "range": f"{n.min():.0f} to {n.max():.0f}"}
            lines[label, method.title] = words | {"nothing found for": f"{(n == 0).sum()} of {len(n)}"}
Captioned(pd.DataFrame(lines).T.rename_axis(["prompts", "method"]), "Units found for each prompt")

# %% [markdown]
# A pruned model is the same model inside a context: the weights are zero there and are given back to the last bit after it. A set of weights can be
# kept as a small file, and the model pruned with it another time.

# %% tags=["hide-input"]
few = found.groups[MEMORIZED]
shown = few if profile != "check" else few.part(1)  # NeMo's search takes ten seconds for a prompt
for name, group in (("nemo", shown), ("wanda", few)):
    print(f"{own[name].title}, {len(group)} memorized: {removed(run.substrate, weights) if len(weights := union(found_for(group, name))) else 'none found'}")

# %% [markdown]
# ## The pictures
#
# Without pruning, with what was found for the prompt removed, and with as much at random; made now, neurons for the first prompt alone in a check.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-pictures", "caption": "Memorized prompts, first seed: original, weights or neurons removed, as many at random, and the training picture. Look for columns that change with what was found and not with what was drawn."}, "image": {"alt": "Memorized prompts: original pictures, pictures with weights or neurons removed, the same number at random, and training pictures, one column per prompt", "width": "100%"}}
strips = few.rows(["none", own["wanda"], chance["wanda"]])
strips |= {title: made for title, made in shown.rows([own["nemo"], chance["nemo"]]).items() if title not in strips}
plots.montage({title: strips[title] for title in sorted(strips, key=lambda title: title.startswith("training"))}, few.prompts.prompts[:8]);

# %% [markdown]
# ## Picture by picture
#
# Each memorized prompt on its own: the size of what was found for it, and similarity to its training picture before and after. Then the collateral
# damage of that one removal: descriptions drawn with what was found for this one memorized prompt removed. Their similarity to their own unedited
# pictures is 1 where nothing changes; the change of alignment is a share of the unedited mean.

# %% tags=["hide-input"]
def single(metric, method, prompt, digits="{:.2f}"):
    values = matrix(found.rows[MEMORIZED][found.rows[MEMORIZED]["prompt"] == prompt], metric, method)
    return NOT_MEASURED if values is None else digits.format(values.mean())


base, by_picture, damage = found.values(ALIGNMENT, "none", DESCRIPTIONS), {}, {name: [] for name in own}
for prompt in dict.fromkeys(known.prompts.prompts):
    line = by_picture.setdefault(prompt, {"before": single(TRAINING, "none", prompt)})
    for name, method in own.items():
        likeness, aligned = (found.values(metric, removing[name, prompt], DESCRIPTIONS) for metric in (ORIGINAL, ALIGNMENT))
        line |= {f"{name}: units": single(UNITS, method, prompt, "{:,.0f}"), f"{name}: after": single(TRAINING, method, prompt)}
        line[f"{name}: others stay"] = NOT_MEASURED if likeness is None else f"{likeness.mean():.2f}"
        if aligned is not None and (before := base[: len(aligned), :1]).mean() > 0:
            damage[name].append(float((aligned - before).mean() / before.mean()))
        line[f"{name}: others' alignment"] = NOT_MEASURED if aligned is None else f"{damage[name][-1]:+.3f}"
print(*(f"What {name} finds for one changes others' alignment by {told(student_mean(v) if v else None, 3)}." for name, v in damage.items()), sep="\n")
Captioned(pd.DataFrame(by_picture).T.rename_axis("memorized prompt"), "Similarity to training before and after, and what one removal does to descriptions")

# %% [markdown]
# ## Triggers of one picture
#
# Embeddings that bring a picture up in the *unpruned* model are looked for from other prompts (the attack is described on [the next page](19_attack));
# the picture's own prompt is one trigger more. From each trigger the weights are found anew, twice: the second time with other noise, which says how far
# the search agrees with itself. Activations are the tenth of the inputs of each feed-forward layer that are most active in the first fifth of sampling.
# Two baselines stand beside them: triggers of different pictures, and sets of the same size drawn at random from the same layers.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-overlap", "caption": "Overlap (intersection over union) of what is found: from one trigger twice, from two triggers of one picture, from triggers of two pictures, and by chance. Compare the second bar with the first: a search that does not agree with itself gives low overlaps too."}, "image": {"alt": "Overlap of active inputs, of neurons and of weights: from one trigger found twice, from two triggers of one picture, from triggers of two pictures, and by chance", "width": "80%"}}
whole = [kind for kind in KINDS if all(overlap(kind, what) is not None for what in COMPARED)]
bars = {kind: {what: student_mean(overlap(kind, what), (0, 1)) for what in COMPARED} for kind in whole}
told_of = [f"{kind}: {told(by[SAME])} of two triggers of one picture, {told(by[CHANCE])} by chance" for kind, by in bars.items()]
print("; ".join(told_of) or f"overlaps: {NOT_MEASURED}")
if bars:
    plots.grouped_bars(bars, "overlap (intersection over union)", (0, 1))

# %% [markdown]
# ## Is it about memorization?
#
# What is found for titles that were seen once is removed for each of *these* titles. Where an interval holds zero, pruning treats both kinds of prompt alike.

# %% tags=["hide-input"]
show.contrasts(found, list(own.values()))

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). "More different than alike" is judged on the largest share of the three.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# MiniSD has three value projections and a few feed-forward layers where Stable Diffusion has seven and sixteen, so that "local" means less here. The two
# methods look into different layers, so that their own choices cannot be compared.
#
# ## All numbers
#
# Of descriptions and titles, pruning removes what was found for each of *these* prompts; with scope `all`, what was found for memorized ones.

# %% tags=["hide-input"]
show.all_numbers(found, rows, SCORES)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d1_{name}": found.mean(TRAINING, method) for name, method in own.items()})

# %% tags=["remove-input"]
run.provenance()
