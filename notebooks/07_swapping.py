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
# # Does a prompt with another prompt's padding give that prompt's picture?
#
# Claim C7 of Kim and No, Appendix A.3 and Figure 11 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few pairs measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "none"  # a second contrast, of another kind of caption: likewise
n_prompts = None  # at most so many prompts of each set, each with a partner from the whole set; None: all
n_seeds = 1  # seeds 0, 1, ... for every pair, where they are measured now
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_change
from memlib.prompts.interventions import swap
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import DESCRIPTIONS, ENDS, MEMORIZED, SEEN_ONCE, gather

page = Page("C7")
plots.style()
run = page.experiment()
OWN, OTHER, EOT, BOTH = "similarity to own picture", "similarity to the other's picture", "<eot> exchanged", "<eot> and padding exchanged"
EXCHANGES = {EOT: "eot", BOTH: "eot+pad"}
sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
rings = {label: ring for label, prompts in sets.items() if (ring := run.control(prompts, None, label)) is not None}


def exchanged(group):
    """Pictures [P, S, H, W, 3] of each prompt of a group, of its partner in the whole set, and under each exchange with it."""
    ring, seeds = rings[group.label], len(group.experiment.seeds)
    if len(ring) < 2:
        raise InputError(f"The set of {group.label} prompts has {len(ring)} prompt: states are exchanged between two or more.")
    own = [ring.prompts.prompts.index(prompt) for prompt in group.prompts.prompts]
    order = np.random.default_rng(0).permutation(len(ring)).tolist()  # neighbours in a set are often alike
    others = [order[(order.index(row) + 1) % len(ring)] for row in own]
    needed = sorted({*own, *others})
    made = ring.some_pictures("none", needed, seeds)
    pictures = {"own picture": made[[needed.index(row) for row in own]], "other's picture": made[[needed.index(row) for row in others]]}
    both, partners = ring.embedding.select([*own, *others]), [*range(len(own), 2 * len(own))]
    return pictures | {name: group.sample(swap(both, partners * 2, what).select(list(range(len(own))))) for name, what in EXCHANGES.items()}


def similarities(group):
    """Similarity to the own and to the partner's picture under the same seed, of each exchange and of the unedited picture."""
    if not run.metrics.copy.available:
        return table.empty()
    vectors = {name: run.metrics.copy(pictures) for name, pictures in exchanged(group).items()}
    targets, made = {OWN: vectors.pop("own picture"), OTHER: vectors.pop("other's picture")}, vectors
    return table.join(table.rows_of(group, method, metric, (found * target).sum(-1))
                      for method, found in {"unedited": targets[OWN], **made}.items() for metric, target in targets.items())  # fmt: skip


found = gather(page.name, run, sets, similarities, profile, n_prompts)


def nearer(first, second, method, of=MEMORIZED):
    """Similarity to one picture minus that to the other under an exchange, or None."""
    pair = found.values(first, method, of), found.values(second, method, of)
    return None if pair[0] is None or pair[1] is None else student_change(*pair, ENDS["similarity"])


page.conclude({"C7": [nearer(OWN, OTHER, EOT), nearer(OTHER, OWN, BOTH), found.mean(OWN, EOT), found.mean(OTHER, BOTH)]}, run)
near = {(metric, method, of): told(found.above(metric, method, "near", of)) for metric in (OWN, OTHER) for method in EXCHANGES for of in (MEMORIZED, SEEN_ONCE)}
page.answer(
    f"With `<eot>` exchanged the share of memorized pairs whose picture stays near the own one is {near[OWN, EOT, MEMORIZED]}, and near the other's",
    f"{near[OTHER, EOT, MEMORIZED]}; with the padding exchanged as well it is {near[OWN, BOTH, MEMORIZED]} and {near[OTHER, BOTH, MEMORIZED]}.",
    f"Of titles of the same kind that were seen once it is {near[OWN, EOT, SEEN_ONCE]} and {near[OTHER, EOT, SEEN_ONCE]}, then",
    f"{near[OWN, BOTH, SEEN_ONCE]} and {near[OTHER, BOTH, SEEN_ONCE]}: what both kinds share says where the content of a picture is kept,",
    "and nothing of memorization.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-key", "caption": "Similarity of each exchanged picture to the picture of its own prompt and to that of the prompt whose states it was given, one dot for each pair (mean over seeds). Below the diagonal the own picture is the nearer one, above it the other's; in the lower left corner it is neither. Dashed: the bound for near. Compare the panels, and the two kinds of prompt."}, "image": {"alt": "Similarity to the own picture against similarity to the other prompt's picture, one dot per pair, with end states exchanged and with end and padding states exchanged", "width": "100%"}}
pairs = {(of, method): [found.values(metric, method, of) for metric in (OWN, OTHER)] for of in found.rows for method in EXCHANGES}
if all(values is not None for pair in pairs.values() for values in pair):
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), sharex=True, sharey=True)
    for axis, method in zip(axes, EXCHANGES):
        for colour, mark, of in zip(plots.COLOURS, "os^", found.rows):
            axis.plot(*(values.mean(1) for values in pairs[of, method]), mark, ms=4, alpha=0.6, color=colour, label=f"{of} ({found.count(of)})")
        axis.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axis.axhline(found.bounds["near"], color="#777777", linewidth=0.8, linestyle="--")
        axis.axvline(found.bounds["near"], color="#777777", linewidth=0.8, linestyle="--")
        axis.set(title=method, xlabel=OWN, ylabel=OTHER if method == EOT else "")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1));
else:
    print(f"similarity: {NOT_MEASURED}")

# %% [markdown]
# If the padding carries the picture, a prompt that is given another prompt's padding should give that prompt's picture. Kim and No show it for two prompts:
# exchanging the `<eot>` states does nothing, exchanging `<eot>` and padding exchanges the pictures. Here all prompts of a set stand in a ring,
# in an order drawn once, and each is given the states of the next one, so that each gives once and takes once.
#
# The text does not say what happens where two prompts differ in length. The rule taken: positions are counted from `<eot>`. The other prompt's `<eot>`
# state goes to the own `<eot>` position, its padding states from left to right to the own padding positions; what is left over of a longer padding is
# dropped, a shorter one starts again at its first state. Start and prompt states stay the prompt's own.
#
# ## Reported beside measured
#
# Kim and No show pictures of two prompts (their Figure 11) and print no number; their figure can only be set beside the pictures below.
#
# ## The pictures
#
# Each column is one prompt with its first seed, made now. A similarity says how near a picture stays to one of two, not what it turns into: look for
# columns that turn into a third picture.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-pictures", "caption": "The picture of each prompt, the picture of the prompt whose states it is given, and the exchanges; first memorized prompts, then titles that were seen once."}, "image": {"alt": "Own picture, other prompt's picture, picture with the end state exchanged, and with end and padding states exchanged, one column per prompt: memorized prompts, then titles seen once", "width": "100%"}}
shown = [group.part(8, 1) for group in found.groups.values()]
sheets = [exchanged(group) for group in shown]
rows = {name: np.concatenate([sheet[name][:, 0] for sheet in sheets]) for name in sheets[0]}
plots.montage(rows, [prompt for group in shown for prompt in group.prompts.prompts]);

# %% [markdown]
# ## Is it about memorization?
#
# Where an interval holds zero, the exchange treats both kinds of prompt alike, and what it does is no matter of memorization. Unedited, the similarity to
# the other's picture says how alike the pictures of two prompts are anyway.

# %% tags=["hide-input"]
others = [of for of in found.rows if of != MEMORIZED]
lines = [{"states": method, "similarity": metric} | {f"minus {of}": told(found.contrast(metric, method, against=of)) for of in others}
         for method in ("unedited", *EXCHANGES) for metric in (OWN, OTHER) if (method, metric) != ("unedited", OWN)]  # fmt: skip
caption = "Memorized prompts minus others"
Captioned(pd.DataFrame(lines).set_index(["states", "similarity"]), caption) if others else print(f"other prompts: {NOT_MEASURED}")

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
# Intervals take pairs as independent, although each prompt stands in two of them: once it gives and once it takes. Where prompts that keep their own
# picture also hand it on, the true intervals are wider than those shown. What a miniature cannot say stands under [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
numbers = found.summary(["unedited", *EXCHANGES], [OWN, OTHER])
for bound in ("near", "strict"):
    for metric in (OWN, OTHER):
        numbers[f"pairs at or above the bound “{bound}”, {metric}"] = [
            told(found.above(metric, method, bound, of)) for of in found.rows for method in ("unedited", *EXCHANGES)
        ]
Captioned(numbers, "Means and shares with 95 % intervals, by prompts and exchange", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"{short}_{key}_{kind}": found.mean(metric, method, of)
           for short, method in (("eot", EOT), ("both", BOTH)) for key, metric in (("own", OWN), ("other", OTHER))
           for kind, of in (("mem", MEMORIZED), ("other", SEEN_ONCE))})  # fmt: skip

# %% tags=["remove-input"]
run.provenance()
