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
# # The structure of the embeddings
#
# **Claim C3a** · `clip`, Section 4.1, Appendix C and Figure 14 {cite:p}`clip`
#
# Stable Diffusion 1.x fills the 77 positions with further `<eot>` tokens, 2.x with `!`. `clip` says that the first makes
# the padding states near copies of the `<eot>` state, one cluster with it, and that the second gives the padding a cluster
# of its own. It shows pictures of it and no figures; here are cosines, effective ranks and silhouettes with intervals over
# prompts. A news summary of `clip` speaks of `<sot>` as padding, so that is the third one. The criterion below was fixed
# in `data/claims.yml` before anything was measured.
#
# The text encoder is causal: states up to `<eot>` are the same under every padding, and only the padding states differ.
# Nothing is sampled here.

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import display

from memlib.base.errors import InputError
from memlib.experiment.page import Page
from memlib.judging.estimates import group_difference, mean_interval, paired_difference
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import choose_prompts, load_prompts
from memlib.prompts.structure import SPANS, cosines_behind_eot, eot_pad_cosine, project, silhouettes, span_cosines, span_ranks
from memlib.results import figures as plots

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
other_substrate = "auto"  # whose text encoder the ! padding of the verdict is measured with; auto: the same one, but sd21 for sd14 if it is there
towers = ["sd14", "sd21"]  # further text encoders to measure where their weights are at hand, on the prompts of the texts' figures
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 40  # at most so many prompts of each set
n_shown = 12  # of these, so many of each set in the planes
behind = 40  # positions behind <eot> in the figure
seed = 0  # of t-SNE
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32

# %%
page = Page("C3a")
plots.style()
base = load(substrate, device, dtype)
paddings = {"eot": "padded with <eot>", "!": "padded with !", "sot": "padded with <sot>"}
groups = {"memorized": choose_prompts(memorized, base.data, n_prompts), "not memorized": choose_prompts(not_memorized, base.data, n_prompts)}


def encoded(encoder, sets):
    """Embeddings by padding and group."""
    return {padding: {name: encode_prompts(encoder, chosen.prompts, padding) for name, chosen in sets.items()} for padding in paddings}


states = encoded(base, groups)

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# ## Cosine with the `<eot>` state, by position
#
# 0 is `<eot>` itself, negative positions are prompt tokens, positive ones padding. Means over prompts with 95 % intervals
# by bootstrap over prompts.

# %% mystnb={"image": {"alt": "Cosine with the eot state by position, one curve per padding token, memorized beside not memorized prompts", "width": "100%"}}
def mean(values, **options):
    """Mean over the prompts that have a value, or None if none has."""
    values = np.asarray(values, dtype=float)
    return None if np.isnan(values).all() else mean_interval(values, missing="drop", **options)


def text(estimate, digits=2):
    return "–" if estimate is None else estimate.text(digits)


def curve(embedding):
    offsets = list(range(-5, behind + 1))
    points = {offset: mean(column, resamples=2000) for offset, column in zip(offsets, cosines_behind_eot(embedding, offsets).T)}
    return {offset: estimate for offset, estimate in points.items() if estimate is not None}


panels = {f"{name} ({len(chosen)})": {label: curve(states[padding][name]) for padding, label in paddings.items()} for name, chosen in groups.items()}
plots.bands(panels, "position behind <eot>", "cosine with the <eot> state");

# %% [markdown]
# ## Cosines between spans
#
# Within each prompt, the mean over all pairs of states of two spans (within one span, of different positions).

# %%
def span_table(cases):
    """One row per pair of spans, one column per case."""
    tables = {case: span_cosines(embedding) for case, embedding in cases.items()}
    pairs = [(a, b) for a in range(4) for b in range(a, 4) if a != b or SPANS[a] in ("pr", "pad")]
    return pd.DataFrame({case: {f"{SPANS[a]} – {SPANS[b]}": text(mean(table[:, a, b])) for a, b in pairs} for case, table in tables.items()})


span_table({(name, paddings[padding]): states[padding][name] for name in groups for padding in paddings})

# %% [markdown]
# ## Effective rank and clusters
#
# The *effective rank* is the exponential of the entropy of a block's normalised singular values {cite:p}`roy2007rank`: 1
# if all its states point the same way, up to the number of states if they share nothing. The *silhouette*
# {cite:p}`rousseeuw1987silhouettes` says how far `<eot>` and padding states of all prompts fall into two clusters (cosine
# distance): 1 apart, 0 or less mixed; the limits 0.25 and 0.5 are those of {cite:t}`kaufman1990groups`.

# %%
def facts(embedding):
    """What the verdict and the tables need of one embedding, per prompt."""
    return {
        "tokens of the prompt": embedding.tokens.lengths.numpy().astype(float),
        "cosine eot – pad": eot_pad_cosine(embedding).numpy(),
        "effective rank of pad": span_ranks(embedding, "pad"),
        "effective rank of pr": span_ranks(embedding, "pr"),
        "silhouette eot | pad": silhouettes(embedding),
        "silhouette pr | pad": silhouettes(embedding, "pr", "pad"),
    }


def facts_table(measured):
    return pd.DataFrame({case: {name: text(mean(values)) for name, values in found.items()} for case, found in measured.items()}).T


measured = {(paddings[padding], name): facts(states[padding][name]) for padding in paddings for name in groups}
facts_table(measured)

# %% [markdown]
# ## The planes
#
# All states of some prompts of both kinds (of the padding eight a prompt), by the first two principal components and by
# t-SNE, as in Figure 14 of `clip`. Filled: memorized; hollow: not memorized. `<sot>` is the same state for every prompt.

# %% mystnb={"image": {"alt": "States of the four spans in the plane: principal components above, t-SNE below, one column per padding token", "width": "100%"}}
some = [chosen.first(n_shown) for chosen in groups.values()]
together = [prompt for chosen in some for prompt in chosen.prompts]
kind = dict(enumerate(name for name, chosen in zip(groups, some) for _ in chosen.prompts))
shown = {padding: encode_prompts(base, together, padding) for padding in paddings}
planes = {method: {paddings[p]: project(e, method, seed=seed) for p, e in shown.items()} for method in ("pca", "tsne")}
tables = {method: {label: projection.table for label, projection in found.items()} for method, found in planes.items()}
plots.planes({"PCA": tables["pca"], "t-SNE": tables["tsne"]}, kind);

# %% tags=["hide-input"]
pd.DataFrame({"variance in two components": {label: f"{sum(projection.explained):.0%}" for label, projection in planes["pca"].items()}})

# %% [markdown]
# ## Other text encoders
#
# The same on the text towers of CLIP (`sd14`) and OpenCLIP (`sd21`), with the prompts of `clip`'s figures, where their
# weights are at hand.

# %%
def at_hand(name):
    """The substrate, or the sentence that says why it is not there."""
    try:
        return load(name, device, dtype)
    except InputError as error:
        return str(error)


figures = load_prompts("figures").unique()
kinds = figures.table["kind"]
chosen = {"memorized": kinds == "memorized", "not memorized": kinds.str.startswith("non-memorized")}
figure_groups = {name: figures.select(mask.to_numpy()) for name, mask in chosen.items()}
found = {name: base if name == base.name else at_hand(name) for name in towers}
others = {}
for name, encoder in found.items():
    if isinstance(encoder, str):
        print(f"{name}: not measured here. {encoder.split(': set')[0].split(' (')[0].rstrip('.')}.")
    else:
        for padding, sets in encoded(encoder, figure_groups).items():
            others |= {(name, paddings[padding], group): facts(embedding) for group, embedding in sets.items()}
display(facts_table(others)) if others else None

# %% [markdown]
# ## Verdict
#
# Judged on memorized prompts. v1 is `<eot>` padding, v2 is `!` padding. Where one text encoder serves both, the padding
# token is all that differs; Stable Diffusion 1.4 and 2.1 differ in the text encoder as well.

# %%
second = base
if other_substrate not in ("auto", base.name):
    second = load(other_substrate, device, dtype)
elif other_substrate == "auto" and base.name == "sd14":
    opened = found.get("sd21") or at_hand("sd21")
    second = base if isinstance(opened, str) else opened
first, alternative = measured[paddings["eot"], "memorized"], measured[paddings["!"], "memorized"]
if second is not base:
    alternative = facts(encode_prompts(second, groups["memorized"].prompts, "!"))
cosine, silhouette = "cosine eot – pad", "silhouette eot | pad"
estimates = {
    "cosine_v1_minus_v2": paired_difference(first[cosine], alternative[cosine], missing="drop"),
    "cosine_eot_pad_v1": mean(first[cosine]), "cosine_eot_pad_v2": mean(alternative[cosine]),
    "silhouette_v1": mean(first[silhouette]), "silhouette_v2": mean(alternative[silhouette]),
}  # fmt: skip
estimates = {name: None if e is None else replace(e, n_seeds=0) for name, e in estimates.items()}  # nothing is sampled
page.judge(estimates, base.name if second is base else f"{base.name} and {second.name}");

# %% [markdown]
# ## Is it about memorization?
#
# Memorized minus not memorized, means over prompts. Where the interval holds zero, the structure is that of the encoder
# and the padding token, whatever the prompt. Where it does not, mind the first row: prompts of other lengths put `<eot>`
# at other positions, and that alone moves the padding states. CLIP's encoders were trained apart from Stable Diffusion's
# U-Net and cannot know which prompts that memorized.

# %%
pd.DataFrame({
    paddings[padding]: {
        name: group_difference(values, measured[paddings[padding], "not memorized"][name], missing="drop").text(3)
        for name, values in measured[paddings[padding], "memorized"].items()
    }
    for padding in paddings
})  # fmt: skip

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
glued = {"pr_mem": mean(span_cosines(states["eot"]["memorized"])[:, 1, 2]), "rank_pr_mem": text(mean(first["effective rank of pr"]), 1)}
for padding, key in (("eot", "eot"), ("!", "bang"), ("sot", "sot")):
    for name, group in (("mem", "memorized"), ("other", "not memorized")):
        values = measured[paddings[padding], group]
        glued |= {f"cosine_{key}_{name}": mean(values[cosine]), f"silhouette_{key}_{name}": mean(values[silhouette])}
        glued[f"rank_{key}_{name}"] = text(mean(values["effective rank of pad"]), 1)
glued["towers"] = ", ".join(sorted({name for name, _, _ in others})) or "none"
page.glue({f"structure_{name}": "–" if value is None else value for name, value in glued.items()})

# %% [markdown]
# On this substrate C3a {glue:text}`verdict_C3a`. Cosine of `<eot>` and padding states on memorized prompts (and on
# others): {glue:text}`structure_cosine_eot_mem` ({glue:text}`structure_cosine_eot_other`) padded with `<eot>`,
# {glue:text}`structure_cosine_bang_mem` ({glue:text}`structure_cosine_bang_other`) padded with `!`,
# {glue:text}`structure_cosine_sot_mem` ({glue:text}`structure_cosine_sot_other`) padded with `<sot>`; beside it, `<eot>`
# and prompt states have {glue:text}`structure_pr_mem`. Effective rank of the padding: {glue:text}`structure_rank_eot_mem`,
# {glue:text}`structure_rank_bang_mem` and {glue:text}`structure_rank_sot_mem`, against
# {glue:text}`structure_rank_pr_mem` of the prompt states. Silhouette of `<eot>` against padding:
# {glue:text}`structure_silhouette_eot_mem`, {glue:text}`structure_silhouette_bang_mem` and
# {glue:text}`structure_silhouette_sot_mem`. Further text encoders measured here: {glue:text}`structure_towers`.

# %% tags=["hide-input"]
page.provenance(
    {"substrate": f"{base.name} ({base.revision or 'weights ' + base.weights_hash[:12]}), {str(base.dtype).removeprefix('torch.')}",
     "v2 padding with the encoder of": second.name, "t-SNE seed": str(seed)},
    base.device,
)  # fmt: skip
