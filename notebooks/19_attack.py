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
from myst_nb import glue
from sklearn.manifold import TSNE

from memlib.results import figures as plots
from memlib.probes.attack import Attack, Budget, Targets, controls
from memlib.probes.attack import reach, targets
from memlib.probes.attack.outcomes import apart, excess, share, survival
from memlib.experiment.parameters import refuse_unknown
from memlib.sampling.calibration import reference_prompts
from memlib.judging.claims import claim, judge
from memlib.prompts.embedding import encode_prompts
from memlib.base.errors import InputError, NotMeasured
from memlib.experiment import Experiment
from memlib.mitigations import REGISTRY, get
from memlib.judging.estimates import mean_interval, share_interval
from memlib.probes.triggers import between, spread

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
refuse_unknown()
plots.style()
run = Experiment(
    substrate, n_seeds=check_seeds, steps=check_steps, guidance=guidance, scheduler=scheduler, device=device, dtype=dtype, batch_size=batch_size
)
known = run.group(memorized, n_prompts, "memorized")
budget = Budget(attack_steps, attack_samples, attack_lr, attack_every, check_seeds, check_steps)
aims: dict[str, Targets] = {}
if (own := targets(known)) is not None and run.metrics.copy.available:
    aims = {"memorized": own, **controls(run, n_controls)}
names_of_others = [name for name in REGISTRY if name not in ("none", "nemo", "wanda")] if methods is None else methods
print({label: len(found) for label, found in aims.items()} or "No training pictures, or no copy descriptor: nothing can be attacked here.")
print(
    f"A run that never succeeds: {budget.steps} steps of {budget.samples} rows, forward and backward, and {len(budget.tests)} tests of "
    f"{check_seeds} picture(s) in {check_steps} steps; {budget.rows} U-Net rows"
)

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
names = ("D2", "D3")
for name in names:
    c = claim(name)
    print(f"{c.id}  {c.statement}\n     holds if: {c.criterion}\n     refuted if: {c.refuted_if.words}")
    for quantity, words in c.quantities.items():
        print(f"     {quantity}: {words}")
print({k: round(v, 3) for k, v in run.thresholds.items()})

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


def outcome_row(one):
    """What a table says of one set of attacks."""
    back = share(one.brought_back[~one.at_once[:, 0]])
    steps = one.steps[one.steps > 0]
    return {
        "pictures": len(one.targets), "at once": int(one.at_once.sum()), "brought back": int((one.steps > 0).sum()),
        "share of the others brought back": "-" if back is None else back.text(2),
        "median steps": f"{np.median(steps):.0f}" if len(steps) else "-", "highest similarity": f"{one.best.mean():.2f}",
    }  # fmt: skip


pd.DataFrame({key: outcome_row(one) for key, one in found.items()}).T.rename_axis(["model", "pictures of"]) if found else "not measured"

# %% [markdown]
# Steps to success as survival curves (Kaplan-Meier, 95 % intervals): the share of pictures not yet brought up. Success shows at a test only, so
# that every curve falls at the tests.

# %% mystnb={"image": {"alt": "Share of pictures not yet brought up by steps of attack: memorized pictures, pictures seen once and never seen, in the unpruned model and after pruning with NeMo and Wanda", "width": "100%"}}
if found:
    titles = {"none": "no pruning", "nemo": "neurons blocked", "wanda": "weights removed"}
    plots.survival_curves({titles[name]: {label: survival(found[name, label].steps[:, 0], budget.steps) for label in aims} for name in models})

# %%
tests = {}
for name in attacks:
    for label in [label for label in aims if label != "memorized"]:
        value = apart(found[name, "memorized"].steps[:, 0], found[name, label].steps[:, 0], budget.steps)
        tests[name, f"memorized against {label}"] = "not to be told" if value != value else f"{value:.3f}"
pd.Series(tests, name="p of the log-rank test", dtype=str).rename_axis(["model", "pictures"]) if tests else "not measured"

# %% [markdown]
# The same in the pruned models from elsewhere: searches begun at prompts that are not memorized and at random points (each state of the length
# of the prompt's own). What is pruned stays what was found for the picture's own prompt.

# %%
elsewhere = {
    (name, label, start): attacks[name].run(aims[label].first(n_table), start)
    for name in ("nemo", "wanda") for label, start in (("memorized", "other"), ("memorized", "random"), ("never seen", "other")) if label in aims
}  # fmt: skip
columns = ["model", "pictures of", "start"]
pd.DataFrame({key: outcome_row(one) for key, one in elsewhere.items()}).T.rename_axis(columns) if elsewhere else "not measured"

# %% mystnb={"image": {"alt": "Memorized pictures: the training picture, what the prompt gives after pruning, and what the embedding found by attack gives", "width": "100%"}}
strips = {}
if found:
    strips["training picture"] = aims["memorized"].pictures[:8]
    for name in ("nemo", "wanda"):
        one = found[name, "memorized"]
        some = encode_prompts(run.substrate, list(one.targets.prompts[:8]))
        for what, states in (("its prompt", one.starts), ("after attack", one.states)):
            strips[f"{name}: {what}"] = attacks[name].pictures(torch.from_numpy(states[:8, 0]), some)[:, 0]
    plots.montage(strips, aims["memorized"].prompts[:8], "Memorized pictures, pruned models")

# %% mystnb={"image": {"alt": "Control pictures: those seen once and never seen, with what the embeddings found by attack give in the unpruned model", "width": "100%"}}
strips = {}
for label in [label for label in aims if label != "memorized"]:
    one = found["none", label]
    some = encode_prompts(run.substrate, list(one.targets.prompts[:8]))
    strips[label] = one.targets.pictures[:8]
    strips[f"{label}: after attack"] = attacks["none"].pictures(torch.from_numpy(one.states[:8, 0]), some)[:, 0]
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
few = aims["memorized"].first(n_table) if aims else None
under, left_out = {}, {}
for name in ["none", "nemo", "wanda", *names_of_others] if aims else ():
    try:
        under[name] = Attack(run, budget, name).run(few)
    except (InputError, NotMeasured) as error:
        left_out[name] = str(error)
for name, why in left_out.items():
    print(f"{name}: {why}")
lines = {name: [share(one.at_once[:, 0]), share(one.brought_back)] for name, one in under.items()}
unaware, blind = {}, attacks["none"].run(few, "other") if aims else None
if blind is not None and blind.brought_back.any():
    blind = blind.of(blind.brought_back)
    given = encode_prompts(run.substrate, list(blind.targets.prompts))
    for name in under:
        attack = Attack(run, budget, name)
        unaware[name] = share((attack.similarities(torch.from_numpy(blind.states[:, 0]), given, blind.targets.pictures) >= attack.threshold).all(1))
pd.DataFrame(
    {
        name: {
            "without attack": share(one.at_once[:, 0]).text(2),
            "triggers found without it": unaware[name].text(2) if name in unaware else "-", "after attack": share(one.brought_back).text(2),
            "median steps": f"{np.median(one.steps[one.steps > 0]):.0f}" if (one.steps > 0).any() else "-",
            "highest similarity": f"{one.best.mean():.2f}", "what the attacker sees": reach(get(name), guidance).words,
        }
        for name, one in under.items()
    }
).T  # fmt: skip

# %% mystnb={"image": {"alt": "Share of memorized pictures brought up by their prompt, by an attack and by triggers found without the mitigation, one line per mitigation, with intervals", "width": "90%"}}
if under:
    labelled = {REGISTRY[name].label: [pair[0], pair[1], unaware.get(name)] for name, pair in lines.items()}
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
quantities = dict.fromkeys([*claim("D2").quantities, *claim("D3").quantities])
wide, places = {}, {}
if aims:
    wide = {("memorized", start): attacks["none"].run(aims["memorized"], start, restarts if start == "other" else 1) for start in ("other", "random")}
    if "never seen" in aims:
        wide["never seen", "other"] = attacks["none"].run(aims["never seen"], "other", 1)
    ordinary = encode_prompts(run.substrate, list(reference_prompts(run.substrate)[:32])).states
    spreads = {key: spread(one.states, one.starts, one.succeeded, ordinary) for key, one in wide.items()}


def mean_of(values):
    """Mean with its interval over the pictures that have a value, as text."""
    return "-" if np.isnan(values).all() else mean_interval(values, missing="drop").text(2)


pd.DataFrame(
    {
        key: {
            "runs": one.succeeded.size, "share that end at a trigger": share_interval(one.succeeded).text(2),
            "distance among triggers": mean_of(spreads[key].triggers), "distance among their starts": mean_of(spreads[key].starts),
            "distance from start to trigger": mean_of(spreads[key].moved),
        }
        for key, one in wide.items()
    }
).T if wide else "not measured"  # fmt: skip

# %% mystnb={"image": {"alt": "Plane by t-SNE of embeddings: prompts that are not memorized, memorized prompts, and the triggers of each of some pictures found from other prompts", "width": "80%"}}
if wide:
    one = wide["memorized", "other"]
    groups = {"not memorized": ordinary.numpy(), "memorized prompts": found["none", "memorized"].starts[:, 0]}
    for row in np.flatnonzero(one.succeeded.any(1))[:5]:
        groups[f"triggers: {one.targets.prompts[row]}"] = one.states[row, one.succeeded[row]]
    flat = np.concatenate([states.reshape(len(states), -1) for states in groups.values()])
    if len(flat) > 5:
        plane = TSNE(perplexity=min(10, (len(flat) - 1) / 3), init="pca", random_state=0).fit_transform(flat)
        ends = np.cumsum([len(states) for states in groups.values()])[:-1]
        plots.trigger_map(dict(zip(groups, np.split(plane, ends), strict=True)), "t-SNE of all 77 states")

# %% [markdown]
# Is the straight line between two triggers of one picture a trigger too? Copy similarity to the training picture along it.

# %%
line = between(attacks["none"], wide["memorized", "other"]) if wide else None
if line is not None:
    display(
        pd.DataFrame(
            {
                f"{part:.0%} of the second": {
                    "similarity": mean_interval(line[:, i]).text(2),
                    "share that trigger": share((line[:, i] >= attacks["none"].threshold).all(1)).text(2),
                }
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
for label in [label for label in aims if label != "memorized"]:
    quantities[f"share_{label.replace(' ', '_')}"] = share(found["none", label].brought_back)
if wide:
    others = wide["memorized", "other"]
    quantities["share_other"] = share_interval(others.succeeded)
    quantities["share_random"] = share_interval(wide["memorized", "random"].succeeded[:, 0])
    of_others = spreads["memorized", "other"]
    if (~np.isnan(of_others.triggers)).any():
        quantities["distance_ratio"] = mean_interval(of_others.triggers, missing="drop")
        quantities["moved"] = mean_interval(of_others.moved, missing="drop")
    if ("never seen", "other") in wide:
        quantities["excess_other"] = excess(others.succeeded[:, 0], wide["never seen", "other"].succeeded[:, 0])
verdicts = {
    name: judge(claim(name), {q: quantities[q] for q in claim(name).quantities}, run.thresholds, run.substrate.name) for name in names
}
display(*verdicts.values())

# %%
# NBVAL_CHECK_OUTPUT
for verdict in verdicts.values():
    print(verdict.claim, verdict.verdict)


# %% tags=["remove-cell"]
def told(estimate, digits=2):
    return "not measured" if estimate is None else estimate.text(digits)


for name, value in quantities.items():
    glue(f"d23_{name}", told(value), display=False)
for what, chosen in (("hides", lambda pair: pair[1].value > 0.5 >= pair[0].value), ("removes", lambda pair: pair[1].value <= 0.5)):
    glue(f"d23_{what}", ", ".join(name for name, pair in lines.items() if chosen(pair)) or "none", display=False)
for name in ("nemo", "wanda"):
    one = elsewhere.get((name, "memorized", "other"))
    glue(f"d23_{name}_other", told(None if one is None else share(one.brought_back)), display=False)
glue("d23_rows", f"{run.cost.evaluations:,}" if run.cost.evaluations else "no new", display=False)
for name, verdict in verdicts.items():
    glue(f"verdict_{name}", verdict.verdict, display=False)

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
