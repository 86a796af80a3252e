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
# # Does adversarial fine-tuning remove what pruning only hides?
#
# Claim D5 of a summary of *Finding Dori* {cite:p}`dori`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # the model before fine-tuning: minisd-v1, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
adversarial = "auto"  # the model fine-tuned adversarially: a name or folder; auto: <substrate>-adversarial
plain = "auto"  # the one fine-tuned on the surrogates alone; auto: <substrate>-surrogates
without = "auto"  # the one trained without duplicates; auto: <substrate>-dedup
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 8  # at most so many memorized pictures, where they are measured now
n_seen_once = 4  # at most so many titles seen once
n_others = 16  # at most so many descriptions
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
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

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_change, student_ratio
from memlib.models.minisd.paths import settings
from memlib.probes.attack import Attack, Budget, targets
from memlib.probes.attack.outcomes import share, survival
from memlib.results import figures as plots
from memlib.results import remedy_rounds
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather, scoring
from memlib.results.table import join, rows_of

page = Page("D5")
plots.style()
TRAINING, ALIGNMENT, STEPS, HIGHEST = "similarity to training", "alignment with prompt", "steps to success", "highest similarity"
SCORES, STARTS = [TRAINING, ALIGNMENT, "quality", "diversity"], {"prompt": "from the prompt", "other": "from another prompt"}
others = {"adversarial": (adversarial, "adversarial"), "plain": (plain, "surrogates"), "dedup": (without, "dedup")}
run, absent = page.experiment(), {}
models = {"before": run}
for name, (place, ending) in others.items():
    try:
        models[name] = page.experiment(substrate=f"{substrate}-{ending}" if place == "auto" else place)
    except InputError as error:
        absent[name] = str(error)
        print(f"{name}: {error}")
budget = Budget(attack_steps, attack_samples, every=attack_every, sampling_steps=check_steps)
# The prompts are the same ones, chosen for the model before fine-tuning.
wanted = ((MEMORIZED, memorized, n_prompts), (SEEN_ONCE, control, n_seen_once), (DESCRIPTIONS, not_memorized, n_others))
groups = {label: run.control(prompts, None if profile == "check" else count, label) for label, prompts, count in wanted}
sets = {label: "none" if group is None else group.prompts for label, group in groups.items()}


def attacked(group):
    """Steps until the attack succeeds (0: the prompt alone, -1: never) and the highest similarity at a test, from either start."""
    aims = targets(run.group(group.prompts, None, group.label)) if run.metrics.copy.available else None
    found = {} if aims is None else {f"attack {words}": Attack(group.experiment, budget).run(aims, start) for start, words in STARTS.items()}
    values = {(method, metric): of[:, 0] for method, one in found.items() for metric, of in ((STEPS, one.steps), (HIGHEST, one.best))}
    return join(rows_of(group, *key, of, n=1) for key, of in values.items())


def everything(group):
    return join([scoring(["none"], SCORES)(group), *([attacked(group)] if group.label == MEMORIZED else [])])


few = {MEMORIZED: 4, SEEN_ONCE: 1, DESCRIPTIONS: 1}
found = {name: gather(page.name, x, sets, everything, profile, None, few, scoring(["none"], SCORES[:3])) for name, x in models.items()}


def success(name, start):
    return found[name].values(STEPS, f"attack {STARTS[start]}") if name in found else None


def back(name):
    """Whether either search brings a picture up, [P]."""
    steps_of = [success(name, start) for start in STARTS]
    return None if any(one is None for one in steps_of) else (np.stack(steps_of) >= 0).any(0)


def fewer(first, second):
    return None if back(first) is None or back(second) is None else student_change(back(first), back(second), (0, 1))


def kept(name, score, of=DESCRIPTIONS):
    """A mean as a share of that before fine-tuning, paired by prompt and seed."""
    first, second = (found[one].values(score, "none", of) if one in found else None for one in (name, "before"))
    return None if first is None or second is None or second.mean() <= 0 else student_ratio(first, second)


shares = {name: {"by the prompt alone": share(success(name, "prompt") == 0), "after attack": share(back(name))} for name in found if back(name) is not None}
why = "There is no model that was fine-tuned adversarially from this one." if "adversarial" in absent else ""
page.conclude({} if why else {"D5": [fewer("adversarial", "before"), fewer("adversarial", "plain"), kept("adversarial", ALIGNMENT)]}, run, {"D5": why})
reached = {name: told(by["after attack"]) for name, by in shares.items()}
page.answer(
    f"The attack brings up a share of {reached.get('before', NOT_MEASURED)} of the memorized pictures before fine-tuning,",
    f"{reached.get('adversarial', NOT_MEASURED)} after adversarial and {reached.get('plain', NOT_MEASURED)} after plain fine-tuning on the same surrogates.",
    f"Without any memory of them, in the model trained without the duplicates, it is {reached.get('dedup', NOT_MEASURED)}.",
    f"Adversarial fine-tuning leaves a share of {told(kept('adversarial', ALIGNMENT))} of the alignment of descriptions,",
    f"and {told(kept('adversarial', 'quality', SEEN_ONCE))} of the quality of titles of the same kind that were seen once.",
)
print(found["before"].words + (" The other models likewise." if len(found) > 1 else ""))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-20-key", "caption": "Share of memorized pictures that come by their prompt alone, and after an attack from the prompt or from another one, by model, with 95 % intervals. A remedy that only hides has its first mark at the left and its second at the right; the last line is what an attack reaches without memory."}, "image": {"alt": "Share of memorized pictures brought up by the prompt alone and after attack: before fine-tuning, after adversarial and plain fine-tuning, and in the model trained without duplicates", "width": "90%"}}
if shares:
    plots.hidden_or_removed({name: list(by.values()) for name, by in shares.items()}, list(next(iter(shares.values()))), "share of memorized pictures")
else:
    print(f"attacks: {NOT_MEASURED}")

# %% [markdown]
# If memory is not local, cutting out a few weights cannot be enough, and all of them have to change. The text proposes adversarial fine-tuning: search
# for embeddings that bring up a memorized picture in the model as it is now, train the model to give another picture for them and for the prompt, with
# ordinary pictures mixed in so that the rest stays; and again. It says that this is more resilient than what was tried before (D5), gives no procedure and
# no figure that could stand beside ours; the procedure here is recollected, with its settings in `data/minisd/training.yml`.
#
# The pictures trained towards are called *surrogates*: those that the model itself gives for the prompt under mitigations, the ones least like the
# training picture. What is like it was decided by pixels, not by the copy descriptor that judges here. Three models stand beside the one fine-tuned
# adversarially: the one it began with (*before*); one fine-tuned *plainly* on the same surrogates under the prompts alone, which says what the search adds;
# and *dedup*, trained without the duplicates, which never memorized the pictures. Only MiniSD has that one.
#
# ## The attack on each model
#
# The attack is [the one used before](19_attack), from each picture's own prompt, and from a prompt that is not memorized; a picture counts if either
# search brings it up. The search in training began at the prompts and at random points, with a budget of its own. Pictures that the prompt alone gives
# are up at step 0: they need no attack, and are counted apart in the first column.

# %% tags=["hide-input"]
lines = {
    name: {**{what: told(by[what]) for what in by}, **{words: told(share(success(name, start) >= 0)) for start, words in STARTS.items()},
           "highest similarity, from the prompt": told(found[name].mean(HIGHEST, f"attack {STARTS['prompt']}"))} for name, by in shares.items()
}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("model"), "Shares of memorized pictures that come up, by model") if lines else print(f"attacks: {NOT_MEASURED}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-20-steps", "caption": "Share of memorized pictures not yet brought up by steps of attack, for each model (Kaplan and Meier's estimate). Success shows at a test only, so that every curve falls at the tests. Curves that begin below 1 are pictures that the prompt alone gives."}, "image": {"alt": "Share of memorized pictures not yet brought up by steps of attack, from the prompt and from other prompts, for each model", "width": "100%"}}
if shares:
    plots.survival_curves({words: {name: survival(success(name, start), budget.steps) for name in shares} for start, words in STARTS.items()})
else:
    print(f"attacks: {NOT_MEASURED}")

# %% [markdown]
# ## The pictures

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-20-pictures", "caption": "The same prompts and noise in each model, first seed, made now: memorized prompts, then a title that was seen once and a description where they are at hand. Memorized prompts may well change, for they were trained towards other pictures; the others should not."}, "image": {"alt": "Pictures before fine-tuning, after adversarial and plain fine-tuning, and from the model without duplicates, and the training pictures, one column per prompt", "width": "100%"}}
shown = {name: [group.part(4, 1) for group in evidence.groups.values()] for name, evidence in found.items()}
strips = {name: np.concatenate([group.pictures()[:, 0] for group in groups]) for name, groups in shown.items()}
if (trained := shown["before"][0].training) is not None:
    strips["training picture"] = np.stack([pictures[0] for pictures in trained])
plots.montage(strips, [prompt for group in shown["before"] for prompt in group.prompts.prompts]);

# %% [markdown]
# ## Through training
#
# Training goes in rounds, each with a search of its own, and the model at the end of each round was attacked and judged as above, on the same prompts
# (`data/minisd/remedy_rounds.csv`). Step 0 is the model before fine-tuning, as this page measured it. The model trained without the duplicates knows no
# steps of fine-tuning and is a level line. Models of rounds are measured as they stood in training; the last one is kept with the project in rounded form,
# so that its figures above may differ a little.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-20-rounds", "caption": "Shares of memorized pictures brought back by the attack and given by the prompt alone, and alignment and quality on descriptions, over steps of fine-tuning, with 95 % intervals. Each panel has its own scale. Compare adversarial with plain fine-tuning, and both with the level line of the model trained without the duplicates."}, "image": {"alt": "Shares of memorized pictures brought back by the attack and given by the prompt alone, and alignment and quality on other prompts, over steps of adversarial and of plain fine-tuning, beside the model trained without duplicates", "width": "100%"}}
def as_rounds(name):
    """This page's rows of a model as those of the table of rounds."""
    evidence, flags = found[name], {start: success(name, start) for start in STARTS}
    columns = {"at_once": flags["prompt"] == 0, **{f"from_{start}": values >= 0 for start, values in flags.items()}}
    lines = pd.DataFrame(columns).astype(int).assign(prompts="memorized", prompt=list(dict.fromkeys(evidence.rows[MEMORIZED]["prompt"])))
    scores = {column: v.mean(1) for column, score in remedy_rounds.SCORES.items() if (v := evidence.values(score, "none", DESCRIPTIONS)) is not None}
    prompts = list(dict.fromkeys(evidence.rows[DESCRIPTIONS]["prompt"]))
    return pd.concat([lines, pd.DataFrame({"prompts": "not memorized", "prompt": prompts, **scores})])


block, names = settings()["remedies"], {"adversarial": "adversarial", "surrogates": "plain"}
rounds = remedy_rounds.read_rounds() if substrate == block["base"] and adversarial == plain == "auto" else None
alike = remedy_rounds.measured_alike(run, budget) and bool(shares)
curves = {} if rounds is None else remedy_rounds.through_training(rounds, as_rounds("before") if alike else None)
curves = {title: {names[remedy]: by for remedy, by in panel.items()} for title, panel in curves.items()}
for title, level in (remedy_rounds.estimates(as_rounds("dedup")) if curves and alike and "dedup" in shares else {}).items():
    curves[title]["trained without duplicates"] = dict.fromkeys(sorted({step for curve in curves[title].values() for step in curve}), level)
if curves:
    print(f"{block['rounds']} rounds of {block['steps']} steps; in each step {block['batch']} ordinary pictures and as many surrogates; a round's search has",
          f"{block['search']['steps']} steps from each start.", "" if alike else "Step 0 is left out: this page ran with other settings.")  # fmt: skip
    plots.bands(curves, "steps of fine-tuning", "share, or mean score", width=3.3, sharey=False)
else:
    print("Not measured here: `memlib finetune --recipe adversarial --keep-rounds`, and `--recipe surrogates`, keep a folder for each round.")

# %% [markdown]
# ## Is it about memorization?
#
# Every model draws prompts that are not memorized as well. What fine-tuning changes there is its price, not its purpose; titles seen once are of the
# memorized prompts' own kind. Shares of the mean before fine-tuning; 1 is as before.

# %% tags=["hide-input"]
price = {
    (name, of): {f"{score}, share kept": told(kept(name, score, of), 3) for score in (ALIGNMENT, "quality")}
    for name in found if name != "before" for of in sets
}  # fmt: skip
frame = pd.DataFrame(price).T.rename_axis(["model", "prompts"]) if price else None
Captioned(frame, "What fine-tuning leaves of alignment and quality, by prompts") if price else print("There are no other models.")

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
# The new attack is of the same kind as the one trained against; an attacker with another budget or another loss may get further. Each remedy was trained
# once, with one seed: the intervals are over pictures and prompts, not over trainings. A check draws pictures anew; attacks are those of the reference run.
#
# ## All numbers

# %% tags=["hide-input"]
means = {(of, name): {score: told(evidence.mean(score, "none", of)) for score in SCORES} for of in sets for name, evidence in found.items()}
Captioned(pd.DataFrame(means).T.rename_axis(["prompts", "model"]), "Means with 95 % intervals, by prompts and model", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"d5_{name}": by["after attack"] for name, by in shares.items()})

# %% tags=["remove-input"]
run.provenance()
