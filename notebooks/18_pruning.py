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
# # Pruning, and what it finds
#
# **Claims D1 and D4** · `dori`, a summary of *Finding Dori* {cite:p}`dori`
#
# If the memory of a picture sat in a few weights, one could cut these out. Two published methods look for them:
#
# - **NeMo** {cite:p}`hintersdorf2024nemo` looks for *neurons*, output channels of the value projections of cross-attention. A memorized
#   prompt gives predictions of the noise that resemble each other whatever the noise; neurons whose activation by the prompt stands out are
#   blocked until they no longer do, and released again where they are not needed.
# - **Wanda**-type pruning {cite:p}`chavhan2024subspace` looks for *single weights* of the feed-forward layers: those whose size times the
#   norm of their input is among the highest of a row with the memorized prompt, and more than with other prompts, during the first fifth of
#   sampling.
#
# Published thresholds belong to Stable Diffusion 1. Elsewhere they are quantiles of prompts that are not memorized.
#
# - **D1** Removing the weights found stops the prompt from bringing up its training picture.
# - **D4** Weights found from different triggers of one picture disagree, and these triggers activate the model differently.
#
# A sceptic asks for two things more: whether as many weights *drawn at random* from the same layers do the same, and what
# removing the weights of all memorized prompts at once does to other prompts. The next page [attacks the pruned models](19_attack).
# The criteria were fixed in `data/claims.yml` before anything ran.

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.page import NOT_MEASURED, Page
from memlib.experiment.tables import summary
from memlib.judging.equivalence import relative_change
from memlib.judging.estimates import mean_interval
from memlib.mitigations import get
from memlib.mitigations.pruning import PrunedFor
from memlib.mitigations.weights.weight_sets import union
from memlib.probes.attack import Attack, Budget, targets
from memlib.probes.locality import agreement, found_for, removed, sizes
from memlib.probes.triggers import trigger_embedding
from memlib.prompts.embedding import encode_prompts
from memlib.results import edits as show
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 8  # at most so many memorized prompts
n_others = 6  # at most so many prompts that are not memorized
n_seeds = 2  # seeds 0, 1, ... for every prompt
n_damaged = 3  # of them, drawn with what was found for each single memorized prompt removed
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

# %%
page = Page("D1", "D4")
plots.style()
run = page.experiment()
known, other = run.group(memorized, n_prompts, "memorized"), run.group(not_memorized, n_others, "not memorized")
methods = {name: get(name) for name in ("nemo", "wanda")}
at_random = {name: get(name, random=0) for name in methods}
# All at once: the memorized prompts of this page, so that what is removed for them is what was found for each.
all_at_once = {name: get(name, scope="all", count=len(known)) for name in methods} if memorized == "memorized" else {}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds, quantities=True)

# %% [markdown]
# ## What is removed
#
# Neurons or weights found for each memorized prompt, and for prompts that are not memorized. NeMo leaves a prompt alone whose predictions
# resemble each other no more than those of ordinary prompts do; Wanda-type pruning always finds something.

# %%
sizes([known, other], list(methods))

# %% [markdown]
# A pruned model is the same model inside a context: the weights are zero there and are given back to the last bit after it. A set of weights can be
# kept as a small file, and the model pruned with it another time.

# %%
for name in methods:
    together = union(found_for(known, name))
    print(f"{name}: {removed(run.substrate, together) if len(together) else 'nothing was found'}")

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed: without pruning, with what was found for it removed, with as much removed at random, with what was
# found for all memorized prompts removed at once; the last row is the training picture where it is at hand.

# %%
rows = ["none", *methods.values(), *at_random.values(), *all_at_once.values()]

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, pictures with neurons or weights removed, the same number at random, and all at once, one column per prompt", "width": "100%"}}
show.pictures(known, rows, "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and pictures with neurons or weights removed for each prompt, and all those of memorized prompts at once", "width": "100%"}}
show.pictures(other, ["none", *methods.values(), *all_at_once.values()], "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. In the second table, prompts that are not memorized, `nemo` and
# `wanda` remove what was found for each of *these* prompts; with scope `all`, what was found for the memorized ones.

# %%
display(summary([known], rows, ("similarity to training", "similarity to original", "alignment", "quality")))
summary([other], ["none", *methods.values(), *all_at_once.values()], ("similarity to original", "alignment", "quality"))

# %% mystnb={"image": {"alt": "Similarity to the training picture by kind of pruning, one dot per memorized prompt, with the copy threshold", "width": "100%"}}
show.dots([known], rows, "similarity to training");

# %% [markdown]
# ### Picture by picture
#
# Each memorized prompt on its own: the size of what was found for it, and similarity to its training picture before and after. Then the collateral
# damage of that one removal: prompts that are not memorized, first seed, drawn with what was found for this one memorized prompt
# removed. Their similarity to their own unedited pictures is 1 where nothing changes; the change of alignment is a share of the unedited mean.

# %%
training, few = "similarity to training", other.part(n_damaged, 1)
aligned, damage, by_picture = few.score("alignment with prompt"), {}, {}
for name, method in methods.items():
    sets, after = found_for(known, name), {m: known.score(training, m) for m in ("none", method)}
    for row, prompt in enumerate(known.prompts.prompts):
        line, alone = by_picture.setdefault(prompt, {}), PrunedFor(name, prompt)
        likeness, changed = few.score("similarity to original", alone), few.score("alignment with prompt", alone)
        if changed is not None and aligned.mean() > 0:
            damage.setdefault(name, []).append((changed - aligned).mean(1) / aligned.mean())
        if after["none"] is not None:
            line["", "similarity before"] = f"{after['none'][row].mean():.2f}"
            line[name, "similarity after"] = f"{after[method][row].mean():.2f}"
        line[name, "weights"] = f"{len(sets[row]):,}"
        line[name, "others: similarity to original"] = NOT_MEASURED if likeness is None else f"{likeness.mean():.2f}"
        line[name, "others: change of alignment"] = f"{damage[name][-1].mean():+.3f}" if name in damage else NOT_MEASURED
damage = {name: mean_interval(np.stack(values)) for name, values in damage.items()}
pd.DataFrame(by_picture).T.rename_axis("memorized prompt")

# %%
quantities = page.unmeasured()
for name, method in methods.items():
    quantities[f"similarity_{name}"] = known.mean(training, method)
    quantities[f"{name}_minus_random"] = known.change(training, method, at_random[name])
    if name in all_at_once:
        quantities[f"similarity_{name}_all"] = known.mean(training, all_at_once[name])
        after, before = other.score("alignment with prompt", all_at_once[name]), other.score("alignment with prompt")
        if after is not None and before.mean() > 0:
            quantities[f"alignment_others_{name}"] = relative_change(after, before, float(before.mean()))

# %% [markdown]
# ## Triggers of one picture
#
# For the first pictures, embeddings that bring them up in the *unpruned* model are looked for from other prompts (the attack is described on
# [the next page](19_attack)); the picture's own prompt is one trigger more. From each trigger the weights are found anew, twice: the second
# time with other noise, which says how far the search agrees with itself. Activations are the tenth of the inputs of each feed-forward layer
# that are most active in the first fifth of sampling.
#
# Two baselines stand beside them: triggers of different pictures, that is, triggers dealt out at random, and sets of the same size drawn at
# random from the same layers.

# %%
budget = Budget(attack_steps, attack_samples, every=10, sampling_steps=steps)
triggers, reason = [], ""
try:
    attack, aims = Attack(run, budget), targets(known)
    if aims is None:
        raise NotMeasured("The training pictures of these prompts are not at hand, so that no trigger can be looked for.")
    attacked = attack.run(aims.first(n_triggered), "other", n_triggers)
    for row in range(len(attacked.targets)):
        own = encode_prompts(run.substrate, attacked.targets.prompts[row])
        found = trigger_embedding(run.substrate, attacked, row) if attacked.succeeded[row].any() else None
        if found is not None:
            triggers.append([own, *(found.select([i]) for i in range(len(found)))])
except (NotMeasured, InputError) as error:
    reason = str(error)
print(reason or f"{sum(map(len, triggers))} triggers of {len(triggers)} pictures (own prompts among them)")

# %% mystnb={"image": {"alt": "Pictures that the triggers found from other prompts give in the unpruned model, beside the training picture", "width": "70%"}}
if triggers:
    shown = {}
    for own in triggers:
        label = own[0].tokens.prompts[0]
        made = [attack.pictures(one.states, one)[0, 0] for one in own]
        shown[label[:28]] = np.stack([aims.pictures[aims.prompts.index(label)], *made])
    plots.montage(shown, ["training", "own prompt", *(f"trigger {i + 1}" for i in range(n_triggers))], "Triggers of one picture")

# %%
lines = {}
for kind in ("activations", "nemo", "wanda") if len(triggers) > 1 else ():
    found = agreement(run.substrate, triggers, kind)
    quantities |= found.quantities
    lines[kind] = found.lines
pd.DataFrame({kind: {what: "nothing found" if e is None else e.text(2) for what, e in line.items()} for kind, line in lines.items()}).T

# %% mystnb={"image": {"alt": "Overlap of active inputs, of neurons and of weights: from one trigger found twice, from two triggers of one picture, from triggers of two pictures, and by chance", "width": "80%"}}
drawn = {kind: line for kind, line in lines.items() if all(e is not None for e in line.values())}
if drawn:
    plots.grouped_bars(drawn, "overlap (intersection over union)", (0, 1))

# %% [markdown]
# ## Verdicts

# %%
page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d14_{name}": value for name, value in quantities.items()})
page.glue({f"d14_damage_{name}": damage.get(name) for name in methods}, digits=3)
page.glue({f"d14_chance_{kind}": lines.get(kind, {}).get("as many at random") for kind in ("activations", "nemo", "wanda")})
page.glue({"d14_before": known.mean(training), "d14_pictures": str(len(triggers))})
page.glue({f"d14_random_{name}": known.mean(training, method) for name, method in at_random.items()})

# %% [markdown]
# On this substrate D1 {glue:text}`verdict_D1` and D4 {glue:text}`verdict_D4`. Similarity to training is {glue:text}`d14_before` without
# pruning, {glue:text}`d14_similarity_nemo` with the neurons of each prompt blocked ({glue:text}`d14_random_nemo` with as many at random) and
# {glue:text}`d14_similarity_wanda` with its weights removed ({glue:text}`d14_random_wanda` at random). With all removed at once it is
# {glue:text}`d14_similarity_nemo_all` and {glue:text}`d14_similarity_wanda_all`, and the alignment of prompts that are not memorized changes
# by these shares: {glue:text}`d14_alignment_others_nemo` and {glue:text}`d14_alignment_others_wanda`. What was found for a single memorized
# prompt changes it, on average over these prompts, by {glue:text}`d14_damage_nemo` and {glue:text}`d14_damage_wanda`.
#
# From {glue:text}`d14_pictures` pictures with at least two triggers, two triggers of one picture share {glue:text}`d14_overlap_activations`
# of their most active inputs, {glue:text}`d14_overlap_nemo` of the neurons and {glue:text}`d14_overlap_wanda` of the weights found. That
# exceeds triggers of different pictures by {glue:text}`d14_excess_activations`, {glue:text}`d14_excess_nemo` and
# {glue:text}`d14_excess_wanda`; by chance it would be {glue:text}`d14_chance_activations`, {glue:text}`d14_chance_nemo` and
# {glue:text}`d14_chance_wanda`. The two methods look into different layers, so that their own choices cannot be compared. A low overlap alone
# is no proof that memory is spread: a search that does not agree with itself gives one too, which is why the bound is half of that.
#
# MiniSD has three value projections and a few feed-forward layers where Stable Diffusion has seven and sixteen, so that "local" means less here.

# %% tags=["hide-input"]
run.provenance()
