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
# # Is the padding a copy of the end of the prompt?
#
# Claim C3a of Kim and No, Section 4.1, Appendix C and Figure 14 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
other_substrate = "auto"  # whose text encoder the ! padding is measured with; auto: the same one, but sd21 for sd14 if it is there
towers = ["sd14", "sd21"]  # further text encoders, measured where their weights are at hand, on the prompts of the text's figures
profile = "check"  # check: compared with the reference run, whose rows make the tables; live: without; reference: what was measured is kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = None  # at most so many prompts of each set; None: all of them, since nothing is sampled
n_shown = 12  # of these, so many of each set in the planes
behind = 40  # positions behind <eot> in the figure
seed = 0  # of t-SNE
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import display

from memlib.base.errors import InputError
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_change, student_mean
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.prompts.structure import SPANS, cosines_behind_eot, project, silhouettes, span_cosines, span_ranks
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import DESCRIPTIONS, ENDS, MEMORIZED, SEEN_ONCE, Evidence, gather

page = Page("C3a")
plots.style()
run = page.experiment(n_seeds=1)  # states of a text encoder have no seed
PADDINGS = {"eot": "padded with <eot>", "!": "padded with !", "sot": "padded with <sot>"}
PAIRS = {f"cosine {SPANS[a]} – {SPANS[b]}": (a, b) for a in range(4) for b in range(a, 4) if a != b or SPANS[a] in ("pr", "pad")}
COSINE, CLUSTERS, LENGTH = "cosine eot – pad", "silhouette eot | pad", "tokens of the prompt"
RANKS = {f"effective rank of {span}": span for span in ("pad", "pr")}
FACTS = [CLUSTERS, "silhouette pr | pad", *RANKS, LENGTH]
FIRST, SECOND, THIRD = PADDINGS.values()


def structure(group):
    """How the states of each prompt lie to each other under each padding; the silhouettes hang on all prompts of the group."""
    rows = []
    for padding, method in PADDINGS.items():
        embedding = encode_prompts(group.experiment.substrate, group.prompts.prompts, padding)
        cosines = span_cosines(embedding).numpy()
        values = {name: cosines[:, a, b] for name, (a, b) in PAIRS.items()} | {name: span_ranks(embedding, span) for name, span in RANKS.items()}
        values |= {f"silhouette {first} | pad": silhouettes(embedding, first) for first in ("eot", "pr")}
        values[LENGTH] = embedding.tokens.lengths.numpy()
        rows += [table.rows_of(group, method, name, found) for name, found in values.items()]
    return table.join(rows)


def unseeded(estimate):
    """An estimate of what is not sampled."""
    return None if estimate is None else replace(estimate, n_seeds=0)


def encoder(name):
    """A run of another text encoder; None, and a line that says so, where its weights are not at hand."""
    try:
        return page.experiment(substrate=name, n_seeds=1)
    except InputError as missing:
        return print(f"{name}: {NOT_MEASURED}. {str(missing).partition(':')[0]}.")


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = second = gather(page.name, run, sets, structure, profile, n_prompts, dict.fromkeys(sets, n_prompts))
name = {"auto": "sd21" if run.substrate.name == "sd14" else run.substrate.name}.get(other_substrate, other_substrate)
if name != run.substrate.name and (other := encoder(name)):
    second = gather(page.name, other, {MEMORIZED: run.group(memorized, n_prompts).prompts}, structure, profile, None, {MEMORIZED: None})
pair = found.values(COSINE, FIRST), second.values(COSINE, SECOND)
nearer = None if pair[0] is None or pair[1] is None else student_change(*pair, ENDS["cosine"])
page.conclude({"C3a": [unseeded(part) for part in (nearer, found.mean(CLUSTERS, FIRST), second.mean(CLUSTERS, SECOND))]}, run)
cosine, cluster = ({(method, of): told(found.mean(fact, method, of)) for method in PADDINGS.values() for of in (MEMORIZED, SEEN_ONCE)}
                   for fact in (COSINE, CLUSTERS))  # fmt: skip
page.answer(
    f"With `<eot>` for padding the cosine between the `<eot>` state and the padding's is {cosine[FIRST, MEMORIZED]}, with `!` {cosine[SECOND, MEMORIZED]}; as",
    f"clusters they are {cluster[FIRST, MEMORIZED]} and {cluster[SECOND, MEMORIZED]} apart (silhouette: 1 is apart, 0 or less mixed).",
    f"For titles of the same kind that were seen once the cosines are {cosine[FIRST, SEEN_ONCE]} and {cosine[SECOND, SEEN_ONCE]}, the silhouettes",
    f"{cluster[FIRST, SEEN_ONCE]} and {cluster[SECOND, SEEN_ONCE]}: only what differs between the two can have to do with memorization.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-key", "caption": "Cosine of the states with the `<eot>` state by position (0 is `<eot>` itself, below it the prompt's tokens, above it padding), a curve for each padding token; bands are 95 % intervals over prompts. Compare the curves to the right of 0, and the panels with each other."}, "image": {"alt": "Cosine with the eot state by position, one curve per padding token: memorized prompts, titles seen once, and descriptions", "width": "100%"}}
def curve(group, padding):
    """Mean cosine by position behind <eot>, where two prompts or more reach it."""
    offsets = list(range(-5, behind + 1))
    columns = cosines_behind_eot(encode_prompts(run.substrate, group.prompts.prompts, padding), offsets).numpy().T
    return {k: student_mean(column, missing="drop") for k, column in zip(offsets, columns) if (~np.isnan(column)).sum() > 1}


panels = {f"{of} ({len(group)})": {method: curve(group, padding) for padding, method in PADDINGS.items()} for of, group in found.groups.items()}
plots.bands(panels, "position behind <eot>", "cosine with the <eot> state", width=3.6);

# %% [markdown]
# Stable Diffusion 1.x fills the 77 positions with further `<eot>` tokens, 2.x with `!`. Kim and No say that the first makes the padding states near copies
# of the `<eot>` state, in one cluster with it, and that the second gives the padding a cluster of its own. A news summary speaks of `<sot>` as padding, so
# that is the third one. The text encoder is causal: states up to `<eot>` are the same under every padding, and only the padding states differ. Nothing is
# sampled here. Where one encoder serves both conventions, the padding token is all that differs; Stable Diffusion 1.4 and 2.1 differ in the encoder as
# well.
#
# ## Reported beside measured
#
# Kim and No show planes of states (their Figure 14) and print no number, so that planes are what can stand beside each other: all states of some prompts,
# of the padding eight a prompt, by the first two principal components and by t-SNE. `<sot>` is the same state for every prompt.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-planes", "caption": "States of the four spans in the plane, by principal components (above) and by t-SNE (below), a column for each padding token. Colour and form tell the span; filled marks are memorized prompts. Look whether diamonds (`<eot>`) and triangles (`<pad>`) lie together; distances between far groups mean nothing in t-SNE."}, "image": {"alt": "States of the four spans in the plane: principal components above, t-SNE below, one column per padding token, memorized prompts filled and titles seen once hollow", "width": "100%"}}
some = {of: group.prompts.first(n_shown).prompts for of, group in list(found.groups.items())[:2]}
shown = {padding: encode_prompts(run.substrate, [prompt for prompts in some.values() for prompt in prompts], padding) for padding in PADDINGS}
planes = {method: {PADDINGS[p]: project(e, method, seed=seed) for p, e in shown.items()} for method in ("pca", "tsne")}
held = "; ".join(f"{label} {sum(projection.explained):.0%}" for label, projection in planes["pca"].items())
print(f"Share of the variance that the two components hold: {held}.")
tables = {method: {label: projection.table for label, projection in drawn.items()} for method, drawn in planes.items()}
plots.planes({"PCA": tables["pca"], "t-SNE": tables["tsne"]}, dict(enumerate(of for of, prompts in some.items() for _ in prompts)));

# %% [markdown]
# ## Other text encoders
#
# The same of CLIP's own text encoder (`sd14`) and OpenCLIP's (`sd21`), with the prompts of the text's figures, where their weights are at hand.

# %% tags=["hide-input"]
figures = load_prompts("figures").unique()
chosen = {MEMORIZED: figures.table["kind"] == "memorized", DESCRIPTIONS: figures.table["kind"].str.startswith("non-memorized")}
for name in towers:
    if name != run.substrate.name and (tower := encoder(name)):
        own = Evidence({}, {of: structure(tower.group(figures.select(mask.to_numpy()), label=of)) for of, mask in chosen.items()}, "")
        display(Captioned(own.summary(list(PADDINGS.values()), [COSINE, *FACTS]), f"Text encoder of {name}, prompts of the text's figures"))

# %% [markdown]
# ## Is it about memorization?
#
# Where an interval holds zero, the structure is that of the encoder and the padding token, whatever the prompt. Where it does not, mind the last row:
# prompts of other lengths put `<eot>` at other positions, and that alone moves the padding states. An encoder that was trained apart from the U-Net, as
# CLIP's were and MiniSD's is, cannot know which prompts the U-Net memorized.

# %% tags=["hide-input"]
others = [of for of in found.rows if of != MEMORIZED]
lines = [{"states": fact, "padding": method} | {f"minus {of}": told(found.contrast(fact, method, against=of), 3) for of in others}
         for fact in (COSINE, CLUSTERS, "effective rank of pad") for method in PADDINGS.values()]  # fmt: skip
lines.append({"states": LENGTH, "padding": "any"} | {f"minus {of}": told(found.contrast(LENGTH, FIRST, against=of), 1) for of in others})
Captioned(pd.DataFrame(lines).set_index(["states", "padding"]), "Memorized prompts minus others") if others else print(f"other prompts: {NOT_MEASURED}")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). The *silhouette* {cite:p}`rousseeuw1987silhouettes` says how far `<eot>`
# and padding states of all prompts fall into two clusters (cosine distance); the limits 0.25 and 0.5 are those of {cite:t}`kaufman1990groups`.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# How near the states lie is not what the U-Net makes of them: pages [two](02_pad_embeddings) and [five](05_padding_or_duplication) ask that. What a
# miniature cannot say stands under [](../book/substrates.md).
#
# ## All numbers
#
# The *effective rank* is the exponential of the entropy of a block's normalised singular values {cite:p}`roy2007rank`: 1 if all its states point the same
# way, up to the number of states if they share nothing. A cosine is the mean over all pairs of states of two spans (within one span, of different
# positions) of a prompt.

# %% tags=["hide-input"]
Captioned(found.summary(list(PADDINGS.values()), FACTS), "Clusters and ranks: means with 95 % intervals, by prompts and padding", folded=True)

# %% tags=["hide-input"]
Captioned(found.summary(list(PADDINGS.values()), list(PAIRS)), "Cosines between spans: means with 95 % intervals, by prompts and padding", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"structure_cosine_{key}": found.mean(COSINE, method) for key, method in zip(("eot", "bang", "sot"), PADDINGS.values())})

# %% tags=["remove-input"]
run.provenance()
