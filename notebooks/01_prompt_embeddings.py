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
# # Prompt embeddings are minor
#
# **Claims C1a and C1b** · `clip`, Section 3.1, Table 2 and Figure 3 {cite:p}`clip`
#
# A prompt reaches Stable Diffusion as 77 states of a text encoder: one start state, one state for each token of the
# prompt, one `<eot>` state that sums the prompt up, and padding. `clip` claims that for memorized prompts the states of
# the prompt's own tokens hardly matter:
#
# - **C1a** Replacing the prompt states by copies of the `<eot>` state (b), or by zeros (c), leaves the picture nearly
#   as it was.
# - **C1b** The prompt states alone (a), with `<eot>` and padding set to zero, cannot drive generation.
#
# What would count as failing was written down before anything ran; it is printed below, from `data/claims.yml`.
# `clip` shows memorized prompts only. Here every edit is also made on prompts that are **not** memorized, because only
# the contrast says whether an effect has to do with memorization.

# %%
import pandas as pd
from IPython.display import display
from myst_nb import glue

from memlib.results import figures as plots
from memlib.experiment.parameters import refuse_unknown
from memlib.judging.claims import claim, judge
from memlib.experiment import Experiment
from memlib.prompts.interventions import INTERVENTIONS
from memlib.judging.estimates import group_difference
from memlib.experiment.tables import long_table, summary

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 18  # at most so many prompts of each set
n_seeds = 2  # seeds 0, 1, ... for every prompt
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
refuse_unknown()
plots.style()
run = Experiment(
    substrate, n_seeds=n_seeds, steps=steps, guidance=guidance, scheduler=scheduler, device=device, dtype=dtype, batch_size=batch_size
)
groups = [run.group(memorized, n_prompts, "memorized"), run.group(not_memorized, n_prompts, "not memorized")]
known, other = groups
edits = ["none", "b", "c", "a"]

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
for name in ("C1a", "C1b"):
    c = claim(name)
    print(f"{c.id}  {c.statement}\n     holds if: {c.criterion}\n     refuted if: {c.refuted_if.words}\n")
print({k: round(v, 3) for k, v in run.thresholds.items()})

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed. Rows are the edits; the last row is the training picture where it is at
# hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, three edits of the embedding, and training pictures, one column per prompt", "width": "100%"}}
plots.montage(known.rows(edits), known.prompts.prompts[:8], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and three edits of the embedding, one column per prompt", "width": "100%"}}
plots.montage(other.rows(edits), other.prompts.prompts[:8], "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Similarity to original* compares with the
# picture of the unedited embedding under the same seed, as `clip` does; *similarity to training* with the training
# picture. *Alignment* is judged against what the picture should show (for MiniSD's title-like captions that is the
# description of the training picture, not the title).

# %%
table = summary(groups, edits)
table

# %% [markdown]
# The same edits as `clip` reports them. These are figures of another model under another copy descriptor: compare
# directions and order, not values.

# %%
reported = pd.concat([claim("C1a").reported_rows(), claim("C1b").reported_rows()])
reported[["method", "metric", "value", "sd", "setting", "source"]].reset_index(drop=True)

# %% mystnb={"image": {"alt": "Similarity to the original picture by edit, one dot per prompt, memorized beside not memorized, with the copy threshold", "width": "100%"}}
labels = {k: f"({k})\n{INTERVENTIONS[k].label}" for k in edits if k != "none"}
similarity = long_table(groups, ["b", "c", "a"], "similarity to original")
if len(similarity):
    plots.distributions(similarity, "similarity to original", run.thresholds.get("copy_threshold"), labels=labels)

# %% [markdown]
# ## Verdicts

# %%
c1a = judge(
    claim("C1a"),
    {"similarity_b": known.mean("similarity to original", "b"), "similarity_c": known.mean("similarity to original", "c")},
    run.thresholds,
    run.substrate.name,
)
c1b = judge(
    claim("C1b"),
    {"alignment_a_minus_original": known.change("alignment", "a"), "similarity_a": known.mean("similarity to original", "a")},
    run.thresholds,
    run.substrate.name,
)
display(c1a, c1b)


# %% [markdown]
# ## Is it about memorization?
#
# If the prompt states were minor *because* a prompt is memorized, the edits would have to change other prompts more.
# The difference of the two groups' mean similarities, memorized minus not memorized:

# %%
def contrast(edit):
    sides = [group.score("similarity to original", edit) for group in groups]
    return "not measured" if any(side is None for side in sides) else group_difference(*sides).text(2)


pd.DataFrame({"memorized minus not memorized": {f"({k}) {INTERVENTIONS[k].label}": contrast(k) for k in ("b", "c", "a")}})

# %%
# NBVAL_CHECK_OUTPUT
for verdict in (c1a, c1b):
    print(verdict.claim, verdict.verdict)

# %% tags=["remove-cell"]
for key in ("b", "c", "a"):
    for name, group in (("mem", known), ("other", other)):
        mean = group.mean("similarity to original", key)
        glue(f"sim_{key}_{name}", "not measured" if mean is None else mean.text(2), display=False)
for verdict in (c1a, c1b):
    glue(f"verdict_{verdict.claim}", verdict.verdict, display=False)

# %% [markdown]
# On this substrate C1a {glue:text}`verdict_C1a` and C1b {glue:text}`verdict_C1b`. Replacing the prompt states by `<eot>`
# gives a similarity to the original of {glue:text}`sim_b_mem` on memorized prompts and {glue:text}`sim_b_other` on others;
# zeroing them gives {glue:text}`sim_c_mem` and {glue:text}`sim_c_other`; keeping them alone {glue:text}`sim_a_mem` and
# {glue:text}`sim_a_other`.
#
# What a miniature can't say: its text encoder was trained on captions of composed scenes, so the share of a prompt that
# `<eot>` sums up may be larger or smaller than in CLIP. See [](../book/substrates.md) and the
# [discrepancies between the texts](../book/discrepancies.md), in particular on reading a similarity near 0.5 as "almost
# the same picture".

# %% tags=["hide-input"]
run.provenance()
