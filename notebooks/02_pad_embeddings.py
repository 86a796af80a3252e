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
# # Is a memorized picture read from the padding?
#
# Claims C2a, C2b and C2c of Kim and No, Section 3.2, Table 3 and Figure 4 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 18  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from memlib.experiment.captioned import Captioned
from memlib.experiment.page import Page, reported_at, told
from memlib.results import edits as show
from memlib.results import figures as plots
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather, scoring

page = Page("C2a", "C2b", "C2c")
plots.style()
run = page.experiment()
ORIGINAL, EDITS, OWN = "similarity to original", list("abcdefgh"), list("fdegh")
SCORES = [ORIGINAL, "similarity to training", "alignment", "quality"]
sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, scoring(["none", *EDITS], SCORES), profile, n_prompts, anew=scoring(["none", *OWN], SCORES))
above = {edit: found.change(ORIGINAL, edit, "h") for edit in "cdefg"}
mean = {edit: found.mean(ORIGINAL, edit) for edit in "defh"}
page.conclude(
    {
        "C2a": [above["f"], mean["f"]],
        "C2b": [above["d"], above["e"], above["g"], mean["d"], mean["e"], found.share("alignment", "g")],
        "C2c": [mean["h"], above["f"], above["c"]],
    },
    run,
)
kept = {(edit, label): told(found.above(ORIGINAL, edit, of=label)) for edit in EDITS for label in (MEMORIZED, SEEN_ONCE)}
page.answer(
    f"With the padding zeroed {kept['h', MEMORIZED]} of memorized prompts keep a picture near the original (lax bound); with `<eot>` zeroed it is",
    f"{kept['f', MEMORIZED]}, and from padding alone {kept['g', MEMORIZED]}.",
    f"Of titles of the same kind that were seen once it is {kept['h', SEEN_ONCE]}, {kept['f', SEEN_ONCE]} and {kept['g', SEEN_ONCE]}:",
    "only what differs between the two belongs to memorization.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-key", "caption": "Similarity to the original picture under each edit, one dot for each prompt (mean over seeds), boxes for quartiles. Dots gather at the top or at the bottom: a picture stays or goes. Compare memorized prompts with titles seen once, which are the same kind of caption."}, "image": {"alt": "Similarity to the original picture by edit, one dot per prompt: memorized prompts, titles seen once, and descriptions", "width": "100%"}}
show.by_prompt(found, ["c", *OWN]);

# %% [markdown]
# Most of the 77 states behind a short prompt are padding. Kim and No say that they carry a memorized picture: zeroing `<eot>` alone changes almost
# nothing (C2a), copies of `<eot>` are enough and so is padding alone (C2b), and zeroing the padding destroys the picture (C2c).
#
# ## Reported beside measured

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-beside", "caption": "What Kim and No report (diamonds: SSCD on Stable Diffusion 1.4, 458 memorized prompts) beside what was measured here (dots with 95 % intervals, by the model's own descriptor). Models and descriptors differ: compare order and direction, not values. Edits (a) to (c) are those of the page before."}, "image": {"alt": "Reported and measured similarity to the original picture under eight edits, on one axis with intervals", "width": "100%"}}
show.reported_beside(found, reported_at("clip", ["Table 2", "Table 3"]), "sscd_to_original", dict(zip(EDITS, EDITS)));

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed, made now. A similarity says how near a picture stays, not what it turns into: look for columns that turn
# into the same blob.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-pictures", "caption": "The original picture, the edits, and the training picture; first memorized prompts, then titles that were seen once."}, "image": {"alt": "Original pictures, five edits of the embedding, and training pictures, one column per prompt: memorized prompts, then titles seen once", "width": "100%"}}
show.sheet(found, ["none", *OWN]);

# %% [markdown]
# ## Is it about memorization?
#
# Where an interval holds zero, the edit treats both kinds of prompt alike, and what it does is no matter of memorization. Titles seen once are the
# matched contrast: the same kind of caption. Descriptions are another kind.

# %% tags=["hide-input"]
show.contrasts(found, EDITS)

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
# Where a picture is read from is not why it was memorized: that question has [a page of its own](05_padding_or_duplication). What a miniature cannot say
# stands under [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
show.all_numbers(found, ["none", *EDITS], SCORES)

# %% tags=["hide-input"]
Captioned(page.reported(), "What Kim and No report", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"sim_{key}_{short}": found.mean(ORIGINAL, key, label) for key in EDITS for short, label in (("mem", MEMORIZED), ("other", SEEN_ONCE))})

# %% tags=["remove-input"]
run.provenance()
