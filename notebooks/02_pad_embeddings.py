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
from memlib.experiment.page import Page
from memlib.experiment.tables import summary
from memlib.results import edits as show
from memlib.results import figures as plots

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
page = Page("C2a", "C2b", "C2c")
plots.style()
run = page.experiment()
known, other = run.pair(memorized, not_memorized, n_prompts)
edits = ["f", "d", "e", "g", "h"]

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds)

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed; rows are the edits, the last row the training picture where it is at hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, five edits of the embedding, and training pictures, one column per prompt", "width": "100%"}}
show.pictures(known, ["none", *edits], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and five edits of the embedding, one column per prompt", "width": "100%"}}
show.pictures(other, ["none", *edits], "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Similarity to original* compares with the
# picture of the unedited embedding under the same seed, as `clip` does; *similarity to training* with the training
# picture.

# %%
summary([known, other], ["none", *edits])

# %% [markdown]
# `clip`'s own figures: another model and another copy descriptor, so compare directions and order, not values.

# %%
page.reported()

# %% mystnb={"image": {"alt": "Similarity to the original picture by edit, one dot per prompt, memorized beside not memorized, with the copy threshold", "width": "100%"}}
show.dots([known, other], edits);

# %% [markdown]
# ## Verdicts
#
# C2c compares (h) with (f) and with (c) of the [first notebook](01_prompt_embeddings), paired by prompt and seed; the
# pictures of (c) come from the store if that notebook ran before.

# %%
original = "similarity to original"
quantities = {f"similarity_{k}": known.mean(original, k) for k in edits}
quantities |= {f"similarity_h_minus_{k}": known.change(original, "h", k) for k in ("f", "c")}
page.judge(quantities, run);

# %% [markdown]
# ## Is it about memorization?
#
# The difference of the two groups' mean similarities to the original, memorized minus not memorized. Where its interval
# holds zero, the edit treats both kinds of prompt alike and says nothing about memorization.

# %%
show.contrast(known, other, edits)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue(show.numbers(known, other, {k: k for k in edits}))

# %% [markdown]
# On this substrate C2a {glue:text}`verdict_C2a`, C2b {glue:text}`verdict_C2b` and C2c {glue:text}`verdict_C2c`. Similarity
# to the original on memorized prompts (and on others): `<eot>` zeroed {glue:text}`sim_f_mem` ({glue:text}`sim_f_other`);
# padding filled with `<eot>` {glue:text}`sim_d_mem` ({glue:text}`sim_d_other`); padding alone {glue:text}`sim_g_mem`
# ({glue:text}`sim_g_other`); padding zeroed {glue:text}`sim_h_mem` ({glue:text}`sim_h_other`).

# %% tags=["hide-input"]
run.provenance()
