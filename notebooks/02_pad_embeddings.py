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
# # Padding embeddings are major
#
# **Claims C2a, C2b and C2c** · `clip`, Section 3.2, Table 3 and Figure 4 {cite:p}`clip`
#
# Most of the 77 states behind a short prompt are padding. `clip` claims that they carry a memorized picture:
#
# - **C2a** Setting the `<eot>` state alone to zero (f) changes almost nothing.
# - **C2b** `<eot>` alone is enough, copied over padding (d) or over prompt and padding (e); and so is padding alone (g).
# - **C2c** Setting the padding states to zero (h) destroys the memorized picture, while doing so with `<eot>` (f) or with
#   the prompt states (c) does not.
#
# The criteria below were fixed in `data/claims.yml` before anything ran. `clip` shows memorized prompts only; here every
# edit is also made on prompts that are **not** memorized.

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
edits = ["none", "f", "d", "e", "g", "h"]

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
for name in ("C2a", "C2b", "C2c"):
    c = claim(name)
    print(f"{c.id}  {c.statement}\n     holds if: {c.criterion}\n     refuted if: {c.refuted_if.words}\n")
print({k: round(v, 3) for k, v in run.thresholds.items()})

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed; rows are the edits, the last row the training picture where it is at hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, five edits of the embedding, and training pictures, one column per prompt", "width": "100%"}}
plots.montage(known.rows(edits), known.prompts.prompts[:8], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and five edits of the embedding, one column per prompt", "width": "100%"}}
plots.montage(other.rows(edits), other.prompts.prompts[:8], "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Similarity to original* compares with the
# picture of the unedited embedding under the same seed, as `clip` does; *similarity to training* with the training
# picture.

# %%
table = summary(groups, edits)
table

# %% [markdown]
# `clip`'s own figures: another model and another copy descriptor, so compare directions and order, not values.

# %%
reported = pd.concat([claim(name).reported_rows() for name in ("C2a", "C2b", "C2c")]).drop_duplicates()
reported[["method", "metric", "value", "sd", "setting", "source"]].reset_index(drop=True)

# %% mystnb={"image": {"alt": "Similarity to the original picture by edit, one dot per prompt, memorized beside not memorized, with the copy threshold", "width": "100%"}}
labels = {k: f"({k})\n{INTERVENTIONS[k].label}" for k in edits if k != "none"}
similarity = long_table(groups, ["f", "d", "e", "g", "h"], "similarity to original")
if len(similarity):
    plots.distributions(similarity, "similarity to original", run.thresholds.get("copy_threshold"), labels=labels)

# %% [markdown]
# ## Verdicts
#
# C2c compares (h) with (f) and with (c) of the [first notebook](01_prompt_embeddings), paired by prompt and seed; the
# pictures of (c) come from the store if that notebook ran before.

# %%
original = "similarity to original"


def below(edit, baseline):
    """Similarity to the original under `edit` minus under `baseline`, paired."""
    return known.change(original, edit, baseline)


quantities = {f"similarity_{k}": known.mean(original, k) for k in ("d", "e", "f", "g", "h")}
quantities |= {"similarity_h_minus_f": below("h", "f"), "similarity_h_minus_c": below("h", "c")}
verdicts = {
    name: judge(claim(name), {q: quantities[q] for q in claim(name).quantities}, run.thresholds, run.substrate.name)
    for name in ("C2a", "C2b", "C2c")
}
display(*verdicts.values())


# %% [markdown]
# ## Is it about memorization?
#
# The difference of the two groups' mean similarities to the original, memorized minus not memorized. Where its interval
# holds zero, the edit treats both kinds of prompt alike and says nothing about memorization.

# %%
def contrast(edit):
    sides = [group.score("similarity to original", edit) for group in groups]
    return "not measured" if any(side is None for side in sides) else group_difference(*sides).text(2)


pd.DataFrame({"memorized minus not memorized": {f"({k}) {INTERVENTIONS[k].label}": contrast(k) for k in edits[1:]}})

# %%
# NBVAL_CHECK_OUTPUT
for verdict in verdicts.values():
    print(verdict.claim, verdict.verdict)

# %% tags=["remove-cell"]
for key in edits[1:]:
    for name, group in (("mem", known), ("other", other)):
        mean = group.mean(original, key)
        glue(f"sim_{key}_{name}", "not measured" if mean is None else mean.text(2), display=False)
for verdict in verdicts.values():
    glue(f"verdict_{verdict.claim}", verdict.verdict, display=False)

# %% [markdown]
# On this substrate C2a {glue:text}`verdict_C2a`, C2b {glue:text}`verdict_C2b` and C2c {glue:text}`verdict_C2c`. Similarity
# to the original on memorized prompts (and on others): `<eot>` zeroed {glue:text}`sim_f_mem` ({glue:text}`sim_f_other`);
# padding filled with `<eot>` {glue:text}`sim_d_mem` ({glue:text}`sim_d_other`); padding alone {glue:text}`sim_g_mem`
# ({glue:text}`sim_g_other`); padding zeroed {glue:text}`sim_h_mem` ({glue:text}`sim_h_other`).

# %% tags=["hide-input"]
run.provenance()
