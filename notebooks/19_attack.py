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
# # After pruning, is a picture hidden or gone?
#
# Claims D2 and D3 of a summary of *Finding Dori* {cite:p}`dori`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
n_prompts = 8  # at most so many memorized pictures, where they are measured now
n_controls = 6  # at most so many pictures seen once, and never seen
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

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd
import torch

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_mean
from memlib.mitigations import REGISTRY, get
from memlib.probes.attack import Attack, Budget
from memlib.probes.attack.outcomes import apart, excess, share, survival
from memlib.probes.attack.reach import reach
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results import attacks
from memlib.results import figures as plots
from memlib.results.attacks import DISTANCE, DISTANCES, HIGHEST, LINE, NEVER, PRUNED, SHARES, STEPS, UNAWARE, method_of
from memlib.results.evidence import MEMORIZED, SEEN_ONCE, gather
from memlib.results.table import join

page = Page("D2", "D3")
plots.style()
run = page.experiment(n_seeds=check_seeds, steps=check_steps)
MODELS = {"none": "no pruning", "nemo": "neurons blocked", "wanda": "weights removed"}
budget = Budget(attack_steps, attack_samples, attack_lr, attack_every, check_seeds, check_steps)
surveyed = [*MODELS, *([name for name in REGISTRY if name not in MODELS] if methods is None else methods)]


def everything(group):
    rows = attacks.after_pruning(group, budget, n_table)
    if group.label != MEMORIZED:
        return rows
    return join([rows, attacks.under_mitigations(group.part(n_table), budget, surveyed), attacks.where_triggers_lie(group, budget, restarts)])


sets, counts = {}, {MEMORIZED: n_prompts, SEEN_ONCE: n_controls}
for label, prompts in ((MEMORIZED, memorized), (SEEN_ONCE, control)):
    group = run.control(prompts, None if profile == "check" else counts[label], label)
    sets[label] = "none" if group is None else group.prompts
if run.substrate.data.held_out is not None:
    captions = load_prompts(run.substrate.data.sets["not memorized"])
    sets[NEVER] = captions if profile == "check" else captions.first(n_controls)
few = {MEMORIZED: 4, SEEN_ONCE: 0, NEVER: 0}
found = gather(page.name, run, sets, everything, profile, None, few, lambda group: attacks.begun(group, budget, ["none", "wanda"]))


def steps_of(name, start="prompt", of=MEMORIZED):
    return found.values(STEPS, method_of(name, start), of)


def hidden(name, of=MEMORIZED):
    """Whether the attack brings a picture back, of those that the prompt alone does not give, [P]."""
    steps = steps_of(name, of=of)
    return np.zeros(0, bool) if steps is None else steps[steps != 0] > 0


def came(name, start, of=MEMORIZED):
    return np.zeros(0, bool) if (steps := steps_of(name, start, of)) is None else steps >= 0


distance = {what: None if (values := found.values(DISTANCE, what)) is None else student_mean(values) for what in DISTANCES}
page.conclude(
    {
        "D2": [*(excess(hidden(name), hidden(name, NEVER)) for name in PRUNED), *(share(hidden(name)) for name in PRUNED)],
        "D3": [excess(came("none", "other"), came("none", "other", NEVER)), distance["triggers"]],
    },
    run,
)
page.answer(
    f"Of the memorized pictures that pruning hides from their prompt the attack brings back a share of {told(share(hidden('nemo')))} of {len(hidden('nemo'))}",
    f"with neurons blocked and {told(share(hidden('wanda')))} of {len(hidden('wanda'))} with weights removed.",
    "In the unpruned model, where it brings up a memorized picture from another prompt in a share of",
    f"{told(share(came('none', 'other')))}, the same attack brings up {told(share(came('none', 'prompt', SEEN_ONCE)))} of the pictures seen once and",
    f"{told(share(came('none', 'prompt', NEVER)))} of those never seen.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-key", "caption": "Of the pictures that the prompt alone does not give, the share not yet brought up by steps of attack (Kaplan and Meier's estimate, 95 % intervals): memorized pictures, pictures seen once in training, and pictures never seen, in the unpruned model from another prompt, and after pruning from its own. Success shows at a test only. Only a curve of memorized pictures below the others means memory."}, "image": {"alt": "Share of pictures not yet brought up by steps of attack: memorized pictures, pictures seen once and never seen, in the unpruned model and after pruning with NeMo and Wanda", "width": "100%"}}
panels = {}
for name, title in MODELS.items():
    start, whose = ("other", "another") if name == "none" else ("prompt", "its")  # without pruning the prompt alone gives memorized pictures
    steps = {label: values[values != 0] for label in found.rows if (values := steps_of(name, start, label)) is not None}
    panels[f"{title}, from {whose} prompt"] = {of: survival(v, budget.steps) for of, v in steps.items() if len(v)}
if panels := {title: curves for title, curves in panels.items() if curves}:
    plots.survival_curves(panels)
else:
    print(f"attacks: {NOT_MEASURED}")

# %% [markdown]
# A prompt that no longer brings up its training picture says little about what the model still knows. The text searches the space of text embeddings itself:
# starting somewhere, all 77 states are moved by gradient until the model, conditioned on them, removes noise from the training picture as well as it can.
# If sampling from that embedding then gives the picture, it is still in the weights. Or is it? 77 states are thousands of free numbers, and may spell out
# any picture. So the same attack, with the same budget, is made on two controls, pictures that were seen *once* in training and pictures *never* seen, and
# on the model without any mitigation. Only the difference to these means memory.
#
# The text says that after pruning "small changes to the text inputs could still bring back" the pictures (D2), and that such triggers are "spread all across
# the text embedding space" (D3). It gives neither settings nor figures that could stand beside ours. Here the search is Adam at 0.1, and a picture is back
# when its sampled copy is at or above the copy threshold at a test. A set pruned is what was found for the picture's own prompt, wherever the search starts.
#
# ## After pruning, start by start
#
# *At once* are those that the start brings up without any attack; the others need it. Searches from elsewhere begin at prompts that are not memorized or at
# random points (each state of the length of the prompt's own).

# %% tags=["hide-input"]
def outcome(name, start, label):
    steps, far = steps_of(name, start, label), found.values(HIGHEST, method_of(name, start), label)
    back, others = steps[steps > 0], steps[steps != 0]
    return {"pictures": len(steps), "at once": (steps == 0).sum(), "brought back": len(back), "share of the others brought back": told(share(others > 0)),
            "median steps": f"{np.median(back):.0f}" if len(back) else "–", "highest similarity": f"{far.mean():.2f}"}  # fmt: skip


places = [(name, start, label) for name in MODELS for start in ("prompt", "other", "random") for label in found.rows]
lines = {(MODELS[name], start, label): outcome(name, start, label) for name, start, label in places if steps_of(name, start, label) is not None}
table = pd.DataFrame(lines).T.rename_axis(["model", "start", "pictures of"]) if lines else None
Captioned(table, "Attacks by model, start and kind of picture") if lines else print(f"attacks: {NOT_MEASURED}")

# %% tags=["hide-input"]
for name, title in MODELS.items():
    for label in found.rows:
        if label != MEMORIZED and steps_of(name) is not None:
            p = apart(steps_of(name), steps_of(name, of=label), budget.steps)
            words = f"{p:.3f}" if p >= 0.001 else "below 0.001" if p < 0.001 else "not to be told"
            print(f"Log-rank test, {title}, {MEMORIZED} against {label}, those that the prompt gives counted as step 0: p {words}")

# %% [markdown]
# ## The pictures
#
# Made now: the first memorized picture that removing weights hides from its prompt, attacked in the pruned model; and the first that was never seen, attacked
# in the unpruned model.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-pictures", "caption": "The picture aimed at, what its prompt gives, and what the embedding found by attack gives: a memorized picture after pruning, and a picture never seen without pruning."}, "image": {"alt": "The training picture, what the prompt gives after pruning, and what the embedding found by attack gives, beside the same for a picture never seen", "width": "50%"}}
shown, steps = {}, steps_of("wanda")
if steps is not None and (steps != 0).any():
    prompt = list(dict.fromkeys(found.rows[MEMORIZED]["prompt"]))[int(np.flatnonzero(steps != 0)[0])]
    known = run.group(run.group(memorized).prompts, None, MEMORIZED).prompts
    shown["weights removed"] = "wanda", run.group(known.select([known.prompts.index(prompt)]), None, MEMORIZED)
if NEVER in found.rows and run.metrics.copy.available:
    shown["never seen"] = "none", run.group(load_prompts(run.substrate.data.sets["not memorized"]).first(1), None, NEVER)
made = {}
for title, (name, group) in shown.items():
    attack, aims = Attack(run, budget, name), attacks.aims_of(group)
    one, given = attack.run(aims), encode_prompts(run.substrate, list(aims.prompts))
    made[title] = [aims.pictures[0], *(attack.pictures(torch.from_numpy(states[:, 0]), given)[0, 0] for states in (one.starts, one.states))]
if made:
    columns = [np.stack(pictures) for pictures in zip(*made.values())]
    plots.montage(dict(zip(("training picture, or one never seen", "from its prompt", "after attack"), columns)), list(made))
else:
    print(f"attacks: {NOT_MEASURED}")

# %% [markdown]
# ## Every mitigation
#
# Beyond the text: the same attack, from the pictures' own prompts, with each mitigation in place and known to the attacker. *What the attacker sees* says
# which part of it the gradient goes through; the rest acts when a test samples the picture. A mitigation that rewrites prompts is gone around. What knowledge
# adds is told by an attacker who has none: triggers found in the model *without* the mitigation, from another prompt, are given to the model with it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-mitigations", "caption": "Share of memorized pictures brought up by their prompt, by an attack, and by triggers found without the mitigation, 95 % intervals. First two marks at the left: not reached within this budget. First at the left, second to the right: only hidden. Third at the left as well: the attacker had to know the mitigation."}, "image": {"alt": "Share of memorized pictures brought up by their prompt, by an attack and by triggers found without the mitigation, one line per mitigation, with intervals", "width": "90%"}}
under = {name: steps for name in surveyed if (steps := steps_of(f"under {name}")) is not None}
marks = {}
for name, steps in under.items():
    blind = found.values(UNAWARE, f"under {name}")
    marks[name] = [share(steps == 0), share(steps >= 0), None if blind is None else share(blind > 0)]
KINDS = ["by the prompt", "after attack", "triggers found without it"]
if marks:
    plots.hidden_or_removed({REGISTRY[name].label: three for name, three in marks.items()}, KINDS, "share of memorized pictures")
else:
    print(f"attacks: {NOT_MEASURED}")

# %% tags=["hide-input"]
lines = {get(name).title: dict(zip(KINDS, map(told, three))) | {"what the attacker sees": reach(get(name), guidance).words} for name, three in marks.items()}
Captioned(pd.DataFrame(lines).T.rename_axis("mitigation"), "Every mitigation attacked", folded=True) if lines else print(f"attacks: {NOT_MEASURED}")

# %% [markdown]
# ## Where the triggers lie
#
# In the unpruned model. Distances are Euclidean over all 77 states, in units of the mean distance among prompts that are not memorized. From starts far apart
# a search that moves little ends far apart whatever the model; that triggers are found there at all is what counts. Is the straight line between two triggers
# of one picture a trigger too? Copy similarity to the training picture along it.

# %% tags=["hide-input"]
lines = {"distance among triggers of a picture": distance["triggers"], "distance among their starts": distance["starts"],
         "distance from start to trigger": distance["moved"]}  # fmt: skip
for part in SHARES:
    values = found.values(LINE, f"{part:.0%} of the second")
    lines[f"similarity, {part:.0%} of the second trigger mixed in"] = None if values is None else student_mean(values, (0, 1))
Captioned(pd.DataFrame({"mean": {what: told(e) for what, e in lines.items()}}).rename_axis("quantity"), "Triggers from other prompts, unpruned model")

# %% [markdown]
# ## Is it about memorization?
#
# Pictures seen once and never seen are attacked in the same way, so that the differences below are what memory adds to what an embedding can spell out.

# %% tags=["hide-input"]
lines = {(MODELS[name], start): {f"minus {label}": told(excess(came(name, start), came(name, start, label))) for label in found.rows if label != MEMORIZED}
         for name in MODELS for start in ("prompt", "other")}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis(["model", "start"]), "Share of pictures that come up, with or without attack: memorized minus others")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md).

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# Where a part of a mitigation has no gradient, a cleverer attacker may get further. Pruning hides few pictures of this miniature, so that few are left to be
# brought back. A check draws anew what prompts give before any attack; attacks are those of the reference run, but for the two pictures above.
#
# ## Run it

# %% tags=["hide-input"]
print(budget)
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d2_{name}": share(hidden(name)) for name in PRUNED})

# %% tags=["remove-input"]
run.provenance()
