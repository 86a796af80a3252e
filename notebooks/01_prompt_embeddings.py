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
page = Page("C1a", "C1b")
plots.style()
run = page.experiment()
known, other = run.pair(memorized, not_memorized, n_prompts)
edits = ["b", "c", "a"]

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims(run.thresholds)

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed. Rows are the edits; the last row is the training picture where it is at
# hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, three edits of the embedding, and training pictures, one column per prompt", "width": "100%"}}
show.pictures(known, ["none", *edits], "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and three edits of the embedding, one column per prompt", "width": "100%"}}
show.pictures(other, ["none", *edits], "Prompts that are not memorized");

# %% [markdown]
# ## The figures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Similarity to original* compares with the
# picture of the unedited embedding under the same seed, as `clip` does; *similarity to training* with the training
# picture. *Alignment* is judged against what the picture should show (for MiniSD's title-like captions that is the
# description of the training picture, not the title).

# %%
summary([known, other], ["none", *edits])

# %% [markdown]
# The same edits as `clip` reports them. These are figures of another model under another copy descriptor: compare
# directions and order, not values.

# %%
page.reported()

# %% mystnb={"image": {"alt": "Similarity to the original picture by edit, one dot per prompt, memorized beside not memorized, with the copy threshold", "width": "100%"}}
show.dots([known, other], edits);

# %% [markdown]
# ## Verdicts

# %%
original = "similarity to original"
quantities = {f"similarity_{k}": known.mean(original, k) for k in edits}
quantities["alignment_a_minus_original"] = known.change("alignment", "a")
page.judge(quantities, run);

# %% [markdown]
# ## Is it about memorization?
#
# If the prompt states were minor *because* a prompt is memorized, the edits would have to change other prompts more.
# The difference of the two groups' mean similarities, memorized minus not memorized:

# %%
show.contrast(known, other, edits)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue(show.numbers(known, other, {k: k for k in edits}))

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
