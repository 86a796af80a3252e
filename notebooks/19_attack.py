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
# # The attack: hidden or gone?
#
# **Claims D2 and D3** · `dori`, a summary of *Finding Dori* {cite:p}`dori`
#
# A prompt that no longer brings up its training picture says little about what the model still knows. `dori` searches the space of text
# embeddings itself: starting somewhere, all 77 states are moved by gradient until the model, conditioned on them, removes noise from the
# training picture as well as it can. If sampling from that embedding then gives the picture, it is still in the weights. Or is it? 77 states
# are thousands of free numbers, and may spell out any picture. So the same attack, with the same budget, is made on two controls, pictures
# that were seen *once* in training and pictures *never* seen, and on the model without any mitigation. Only the difference to these means
# memory.
#
# - **D2** After pruning, an embedding found by attack still brings the picture back.
# - **D3** Such triggers are found all over the embedding space.
#
# Beyond the text, **every mitigation** of this book is attacked, with knowledge of it: its edits of states and attention, its pruned weights
# and its schedule of guidance are part of what the gradient sees, wherever there is a gradient. Which of them hide a memorized picture, and
# which make it unreachable?
#
# Budget and success were fixed in `data/claims.yml` and in the parameters below before anything ran: Adam at 0.1, and a picture is back when
# its sampled copy is at or above the copy threshold at a test. The text at hand gives no settings.

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.experiment.tables import mean_of_those
from memlib.judging.estimates import mean_interval, share_interval
from memlib.mitigations import REGISTRY
from memlib.probes.attack import Attack, Budget, controls, targets
from memlib.probes.attack.outcomes import apart, excess, share, survival
from memlib.probes.attack.survey import outcome_table, survey
from memlib.probes.triggers import between, plane, spread
from memlib.prompts.embedding import encode_prompts
from memlib.results import figures as plots
from memlib.sampling.calibration import reference_prompts

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
n_prompts = 8  # at most so many memorized pictures
n_controls = 6  # at most so many pictures of each control
n_table = 3  # of them, attacked under every mitigation, and from elsewhere after pruning
# Mitigations attacked beside none and pruning, by name; None: all that are registered.
methods = ["pad-swap-eot-mask", "pad-mask", "ren", "static-transition", "dynamic-transition-opposite", "wen-3", "han-batch"]
restarts = 2  # runs begun at other prompts for each picture
attack_steps = 40  # steps of Adam
attack_samples = 4  # noised copies of the picture in each
attack_lr = 0.1  # its rate
attack_every = 10  # steps between tests
check_seeds = 1  # pictures sampled at a test, all of which must be copies
check_steps = 25  # denoising steps of each
guidance = 7.5  # classifier-free guidance
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("D2", "D3")
plots.style()
run = page.experiment(n_seeds=check_seeds, steps=check_steps)
known = run.group(memorized, n_prompts, "memorized")
budget = Budget(attack_steps, attack_samples, attack_lr, attack_every, check_seeds, check_steps)
own = targets(known) if run.metrics.copy.available else None
aims = {} if own is None else {"memorized": own, **controls(run, n_controls)}
names_of_others = [name for name in REGISTRY if name not in ("none", "nemo", "wanda")] if methods is None else methods
of_controls = [label for label in aims if label != "memorized"]
print({label: len(found) for label, found in aims.items()} or "No training pictures, or no copy descriptor: nothing can be attacked here.")
print(budget)

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds, quantities=True)

# %% [markdown]
# ## After pruning
#
# Started from each picture's own prompt: the unpruned model, the model with the neurons of that prompt blocked (NeMo), and with its
# weights removed (Wanda-type), for memorized pictures and both controls. *At once* are those that the prompt brings up without any
# attack.

# %%
models = ("none", "nemo", "wanda")
attacks = {name: Attack(run, budget, name) for name in models} if aims else {}
found = {(name, label): attacks[name].run(aim) for name in attacks for label, aim in aims.items()}


outcome_table(found, ["model", "pictures of"]) if found else NOT_MEASURED

# %% [markdown]
# Steps to success as survival curves (Kaplan-Meier, 95 % intervals): the share of pictures not yet brought up. Success shows at a test only, so
# that every curve falls at the tests.

# %% mystnb={"image": {"alt": "Share of pictures not yet brought up by steps of attack: memorized pictures, pictures seen once and never seen, in the unpruned model and after pruning with NeMo and Wanda", "width": "100%"}}
if found:
    titles = {"none": "no pruning", "nemo": "neurons blocked", "wanda": "weights removed"}
    plots.survival_curves({titles[name]: {label: survival(found[name, label].steps[:, 0], budget.steps) for label in aims} for name in models})

# %%
tests = {
    (name, f"memorized against {label}"): apart(found[name, "memorized"].steps[:, 0], found[name, label].steps[:, 0], budget.steps)
    for name in attacks for label in of_controls
}  # fmt: skip
tests = {key: "not to be told" if np.isnan(value) else f"{value:.3f}" for key, value in tests.items()}
pd.Series(tests, name="p of the log-rank test", dtype=str).rename_axis(["model", "pictures"]) if tests else NOT_MEASURED

# %% [markdown]
# The same in the pruned models from elsewhere: searches begun at prompts that are not memorized and at random points (each state of the length
# of the prompt's own). What is pruned stays what was found for the picture's own prompt.

# %%
elsewhere = {
    (name, label, start): attacks[name].run(aims[label].first(n_table), start)
    for name in ("nemo", "wanda") for label, start in (("memorized", "other"), ("memorized", "random"), ("never seen", "other")) if label in aims
}  # fmt: skip
outcome_table(elsewhere, ["model", "pictures of", "start"]) if elsewhere else NOT_MEASURED

# %% mystnb={"image": {"alt": "Memorized pictures: the training picture, what the prompt gives after pruning, and what the embedding found by attack gives", "width": "100%"}}
def drawn(name, one, states):
    """What the model gives under a mitigation for the first run of the first pictures' embeddings."""
    some = encode_prompts(run.substrate, list(one.targets.prompts[:8]))
    return attacks[name].pictures(torch.from_numpy(states[:8, 0]), some)[:, 0]


if found:
    strips = {"training picture": aims["memorized"].pictures[:8]}
    for name in ("nemo", "wanda"):
        one = found[name, "memorized"]
        strips |= {f"{name}: its prompt": drawn(name, one, one.starts), f"{name}: after attack": drawn(name, one, one.states)}
    plots.montage(strips, aims["memorized"].prompts[:8], "Memorized pictures, pruned models")

# %% mystnb={"image": {"alt": "Control pictures: those seen once and never seen, with what the embeddings found by attack give in the unpruned model", "width": "100%"}}
strips = {}
for label in of_controls:
    one = found["none", label]
    strips |= {label: one.targets.pictures[:8], f"{label}: after attack": drawn("none", one, one.states)}
if strips:
    plots.montage(strips, None, "Controls, no mitigation")

# %% [markdown]
# ## Every mitigation
#
# The same attack, from the pictures' own prompts, with each mitigation in place. *What the attacker sees* says which part of it the gradient
# goes through; the rest acts when a test samples the picture. A mitigation that rewrites prompts is gone around, and gives what no mitigation
# gives.
#
# What knowledge adds is told by an attacker who has none: triggers found in the model *without* the mitigation, from another prompt, are
# given to the model with it. The share is over the pictures that had such a trigger.

# %%
every = survey(run, budget, ["none", "nemo", "wanda", *names_of_others], aims["memorized"].first(n_table)) if aims else None
for name, why in every.left_out.items() if every else ():
    print(f"{name}: {why}")
lines = every.shares() if every else {}
every.table(guidance) if every else NOT_MEASURED

# %% mystnb={"image": {"alt": "Share of memorized pictures brought up by their prompt, by an attack and by triggers found without the mitigation, one line per mitigation, with intervals", "width": "90%"}}
if lines:
    labelled = {REGISTRY[name].label: [*pair, every.unaware.get(name)] for name, pair in lines.items()}
    plots.hidden_or_removed(labelled, ["by the prompt", "after attack", "triggers found without it"], "share of memorized pictures")

# %% [markdown]
# *By the prompt* and *after attack* together at the left end: the pictures could not be reached within this budget. The first at the left and
# the second far to the right: the mitigation only hides them. Where the triggers found without it stay at the left as well, the attacker had
# to know the mitigation. With so few pictures the intervals are wide; `-p n_table 24` narrows them.

# %% [markdown]
# ## Where the triggers lie
#
# In the unpruned model, runs begun at prompts that are not memorized and at random points (each state of the length of the prompt's own).
# Distances are Euclidean over all 77 states, in units of the mean distance among prompts that are not memorized. From starts far apart a
# search that moves little ends far apart whatever the model; that triggers are found there at all is what counts, and for pictures never seen
# too it is shown how often.

# %%
quantities = page.unmeasured()
wide = {}
if aims:
    wide = {("memorized", start): attacks["none"].run(aims["memorized"], start, restarts if start == "other" else 1) for start in ("other", "random")}
    if "never seen" in aims:
        wide["never seen", "other"] = attacks["none"].run(aims["never seen"], "other", 1)
    ordinary = encode_prompts(run.substrate, list(reference_prompts(run.substrate)[:32])).states
    spreads = {key: spread(one.states, one.starts, one.succeeded, ordinary) for key, one in wide.items()}


pd.DataFrame(
    {
        key: {
            "runs": one.succeeded.size, "share that end at a trigger": share_interval(one.succeeded).text(2),
            "distance among triggers": told(mean_of_those(spreads[key].triggers)), "distance among their starts": told(mean_of_those(spreads[key].starts)),
            "distance from start to trigger": told(mean_of_those(spreads[key].moved)),
        }
        for key, one in wide.items()
    }
).T if wide else NOT_MEASURED  # fmt: skip

# %% mystnb={"image": {"alt": "Plane by t-SNE of embeddings: prompts that are not memorized, memorized prompts, and the triggers of each of some pictures found from other prompts", "width": "80%"}}
if wide:
    one = wide["memorized", "other"]
    groups = {"not memorized": ordinary.numpy(), "memorized prompts": found["none", "memorized"].starts[:, 0]}
    for row in np.flatnonzero(one.succeeded.any(1))[:5]:
        groups[f"triggers: {one.targets.prompts[row]}"] = one.states[row, one.succeeded[row]]
    if places := plane(groups):
        plots.trigger_map(places, "t-SNE of all 77 states")

# %% [markdown]
# Is the straight line between two triggers of one picture a trigger too? Copy similarity to the training picture along it.

# %%
line = between(attacks["none"], wide["memorized", "other"]) if wide else None
if line is not None:
    display(
        pd.DataFrame(
            {
                f"{part:.0%} of the second": {"similarity": mean_interval(line[:, i]).text(2),
                    "share that trigger": share((line[:, i] >= attacks["none"].threshold).all(1)).text(2)}
                for i, part in enumerate((0.0, 0.25, 0.5, 0.75, 1.0))
            }
        )
    )  # fmt: skip
else:
    print("No picture has two triggers from other prompts.")

# %% [markdown]
# ## Verdicts

# %%
for name in ("nemo", "wanda") if found else ():
    # Of the pictures that the prompt alone does not bring up, which may be none.
    hidden = {label: found[name, label].brought_back[~found[name, label].at_once[:, 0]] for label in aims}
    quantities[f"share_{name}"] = share(hidden["memorized"])
    if "never seen" in hidden:
        quantities[f"excess_{name}"] = excess(hidden["memorized"], hidden["never seen"])
for label in of_controls:
    quantities[f"share_{label.replace(' ', '_')}"] = share(found["none", label].brought_back)
if wide:
    others = wide["memorized", "other"]
    quantities["share_other"] = share_interval(others.succeeded)
    quantities["share_random"] = share_interval(wide["memorized", "random"].succeeded[:, 0])
    quantities["distance_ratio"] = mean_of_those(spreads["memorized", "other"].triggers)
    quantities["moved"] = mean_of_those(spreads["memorized", "other"].moved)
    if ("never seen", "other") in wide:
        quantities["excess_other"] = excess(others.succeeded[:, 0], wide["never seen", "other"].succeeded[:, 0])
page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d23_{name}": value for name, value in quantities.items()})
for what, chosen in (("hides", lambda pair: pair[1].value > 0.5 >= pair[0].value), ("removes", lambda pair: pair[1].value <= 0.5)):
    page.glue({f"d23_{what}": ", ".join(name for name, pair in lines.items() if chosen(pair)) or "none"})
begun = {name: elsewhere.get((name, "memorized", "other")) for name in ("nemo", "wanda")}
page.glue({f"d23_{name}_other": one and share(one.brought_back) for name, one in begun.items()})
page.glue({"d23_rows": f"{run.cost.evaluations:,}" if run.cost.evaluations else "no new"})

# %% [markdown]
# On this substrate D2 {glue:text}`verdict_D2` and D3 {glue:text}`verdict_D3`. Of the pictures that pruning had suppressed the attack brings
# back {glue:text}`d23_share_nemo` (neurons blocked) and {glue:text}`d23_share_wanda` (weights removed), which exceeds pictures never seen by
# {glue:text}`d23_excess_nemo` and {glue:text}`d23_excess_wanda`. In the unpruned model it brings up {glue:text}`d23_share_seen_once` of the
# pictures seen once and {glue:text}`d23_share_never_seen` of those never seen. Begun at other prompts, it brings
# {glue:text}`d23_nemo_other` and {glue:text}`d23_wanda_other` of some of the memorized pictures up in the pruned models.
#
# Of the mitigations attacked, these hide more than half of the pictures from their prompts and give more than half back to the attack:
# {glue:text}`d23_hides`. These still hold more than half within this budget: {glue:text}`d23_removes`; where a part of a mitigation has no
# gradient, a cleverer attacker may get further.
#
# From other prompts {glue:text}`d23_share_other` of the runs end at a trigger, from random points {glue:text}`d23_share_random`; for pictures
# never seen it is less by {glue:text}`d23_excess_other`. Triggers of one picture lie {glue:text}`d23_distance_ratio` times as far apart as
# prompts do, having moved by {glue:text}`d23_moved`.
#
# This run computed {glue:text}`d23_rows` U-Net rows (a row through which a gradient goes back counts twice); what was there before came from
# the store.

# %% tags=["hide-input"]
run.provenance()
