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
# # Token lengths of memorized prompts
#
# **Claim C3b** · `clip`, Section 1 and Appendix B, Table 9 {cite:p}`clip`
#
# `clip` states that every memorized prompt reported so far has fewer than 40 tokens, so that more than 30 of the 77
# positions are padding. This needs no model: the published lists are counted with CLIP's own tokenizer, which
# Stable Diffusion 1.x and 2.x share. The criterion below was fixed in `data/claims.yml` before anything was counted.
#
# The lists belong to their publishers and are not in this repository; their statistics are
# (`data/token_lengths.csv`: a full histogram per list, with the list's address and SHA-256). With `refetch` the lists
# are fetched and counted anew; `memlib prompts lengths` writes the file.

# %%
from dataclasses import replace

import numpy as np
import pandas as pd

from memlib.experiment.page import Page
from memlib.judging.estimates import share_interval
from memlib.prompts.lengths import ENOUGH_PADDING, LIMIT, POOLED, SPECIAL_TOKENS, lengths, padding_left, read_statistics, statistics
from memlib.prompts.published import load_sources
from memlib.results import figures as plots

# %% tags=["parameters"]
refetch = False  # True: fetch the lists that are not at hand and count them here
labels = None  # with refetch: a file with Webster's labels (columns caption, overfit_type), to tell RV from TV
statistics_file = None  # another file of statistics than the committed one

# %%
page = Page("C3b")
plots.style()
table = statistics(fetch=True, labels=labels) if refetch else read_statistics(statistics_file)
counted = {(row["list"], row["category"]): lengths(row) for row in table.to_dict("records")}
kinds = dict(zip(table["list"], table["kind"]))
sources = load_sources()

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# ## The lists
#
# *memorized* are prompts that their publishers labelled or selected as memorized, *candidates* the 500 prompts that most
# studies take as memorized although 155 of them have no such label (N). Lengths count a prompt's own tokens; *with
# special* adds `<sot>` and `<eot>`. Shares have 95 % Wilson intervals with the prompts as trials.

# %%
def line(row):
    values = counted[row["list"], row["category"]]
    return {
        "list": row["list"], "kind": row["kind"], "category": row["category"] if row["list"] != POOLED else "", "prompts": len(values),
        "median": f"{row['median']:g}", "95 % below or at": f"{row['q95']:g}", "longest": row["longest"],
        f"{LIMIT} or more": share_interval(values >= LIMIT).text(3),
        f"{LIMIT} or more, with special": share_interval(values + SPECIAL_TOKENS >= LIMIT).text(3),
        "fewest padding": int(padding_left(values).min()),
    }  # fmt: skip


order = ["memorized", "candidates", "not memorized"]
pd.DataFrame([line(row) for kind in order for row in table.to_dict("records") if row["kind"] == kind]).set_index(["kind", "list", "category"])

# %% mystnb={"image": {"alt": "Share of prompts up to a number of tokens, lists of memorized prompts drawn whole, the others broken", "width": "100%"}}
hidden = (POOLED, "webster500-nemo", "webster-mv86", "nonmem-mixed")  # parts of the others, or of several kinds
shown = {name: counted[name, "all"] for name in dict.fromkeys(table["list"]) if name not in hidden}
if ("nonmem-mixed", "lexica") in counted:
    shown["nonmem-mixed: lexica"] = counted["nonmem-mixed", "lexica"]
plots.ecdf(
    shown, "tokens of the prompt, <sot> and <eot> not counted", LIMIT, f"limit of {LIMIT}", upto=90,
    dashed=[name for name in shown if kinds[name.split(":")[0]] == "not memorized"],
);  # fmt: skip

# %% [markdown]
# ## Verdict
#
# Judged on the prompts of all lists of the kind *memorized*, each counted once. Every prompt of these lists is counted,
# so the share itself decides; its interval says what further prompts of the same sort could bring.

# %%
needed = ("webster345", "sd2-webster219", "membench")
pool = next((values for (name, _), values in counted.items() if name == POOLED), np.array([], dtype=int))


def share(flags):
    return replace(share_interval(flags), n_seeds=0)  # nothing is sampled


quantities = {
    "share_40_or_more": share(pool >= LIMIT),
    "share_40_or_more_with_special": share(pool + SPECIAL_TOKENS >= LIMIT),
    "share_30_or_fewer_padding": share(padding_left(pool) <= ENOUGH_PADDING),
} if len(pool) else {}  # fmt: skip
absent = ", ".join(name for name in needed if (name, "all") not in counted)
page.judge(quantities, "published lists", not_testable_because={"C3b": f"The lists {absent} are not at hand."} if absent else None);

# %% [markdown]
# ## What the verdict leaves out
#
# **The other candidates.** The 155 of the 500 that carry no label of memorization do not enter the verdict, since `clip`
# itself (Section 3) does not take them for memorized. Studies that use all 500 do.

# %%
categories = table[(table["list"] == "webster500") & (table["category"] != "all")].set_index("category")
categories[["n", "longest", "at_least_40", "at_least_40_with_special", "padding_30_or_fewer"]]

# %% [markdown]
# **The labels do not add up.** `clip` (B.1) splits the 345 labelled prompts into 86 MV, 30 RV and 219 TV, which make 335.
# Counted are the MV captions and the rest of the 345; 219 is the size of the list for Stable Diffusion 2. RV and TV are
# told apart only by Webster's own file, which `labels` names.

# %%
labelled = {category: int(n) for category, n in categories["n"].items() if category != "N"}
print("counted:", " + ".join(f"{n} {category}" for category, n in labelled.items()), "=", sum(labelled.values()))
print("in the text: 86 + 30 + 219 =", 86 + 30 + 219)

# %% [markdown]
# **HTML entities.** Older tokenizers turned `&amp;` into `&` first, which shortens some captions. Counted that way:

# %%
changed = table[table["at_least_40"] != table["at_least_40_unescaped"]]
told_changes = changed[["list", "category", "at_least_40", "at_least_40_unescaped"]].to_string(index=False)
print(told_changes if len(changed) else "no count of 40 or more changes.")

# %% [markdown]
# ## Is it about memorization?
#
# Share of prompts below the limit, lists of memorized prompts beside lists that are not. Where the latter are as short,
# shortness is a property of captions and cannot set memorized prompts apart.

# %%
every = [(POOLED, pool)] if len(pool) else []
every += [(name, counted[name, "all"]) for name in shown if (name, "all") in counted and kinds[name] == "not memorized"]
every += [(f"{name}: {category}", values) for (name, category), values in counted.items() if name == "nonmem-mixed" and category != "all"]
contrast = pd.DataFrame(
    {f"share below {LIMIT}": {name: share_interval(values < LIMIT).text(4) for name, values in every},
     "median padding": {name: f"{np.median(padding_left(values)):g}" for name, values in every},
     "prompts": {name: len(values) for name, values in every}}
)  # fmt: skip
contrast

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
def below_limit(values):
    return "not at hand" if values is None or not len(values) else share_interval(values < LIMIT).text(4)


lacking = sorted({source.name for source in sources.values()} - set(table["list"]))
unlabelled = counted.get(("webster500", "N"), np.array([], dtype=int))
glued = {
    "n": f"{len(pool):,}", "longest": int(pool.max()) if len(pool) else "not at hand",
    "padding": int(padding_left(pool).min()) if len(pool) else "not at hand",
    "unlabelled": f"{int((unlabelled >= LIMIT).sum())} of {len(unlabelled)}",
    "unlabelled_special": f"{int((unlabelled + SPECIAL_TOKENS >= LIMIT).sum())} of {len(unlabelled)}",
    "memorized": below_limit(pool), "coco": below_limit(counted.get(("nonmem-coco", "all"))), "laion": below_limit(counted.get(("nonmem-laion", "all"))),
    "lexica": below_limit(counted.get(("nonmem-mixed", "lexica"))), "lacking": ", ".join(lacking) or "none",
}  # fmt: skip
page.glue({f"lengths_{name}": value for name, value in glued.items()})

# %% [markdown]
# On the published lists C3b {glue:text}`verdict_C3b`: of {glue:text}`lengths_n` distinct memorized prompts the
# longest has {glue:text}`lengths_longest` tokens and leaves {glue:text}`lengths_padding` positions to padding. Among the
# unlabelled candidates {glue:text}`lengths_unlabelled` have 40 tokens or more ({glue:text}`lengths_unlabelled_special`
# with `<sot>` and `<eot>`), so the sentence is not true of all 500 that other studies call memorized. Shortness sets
# memorized prompts apart from some prompts only: below 40 tokens are {glue:text}`lengths_memorized` of them,
# {glue:text}`lengths_coco` of the COCO captions, {glue:text}`lengths_laion` of the LAION captions and
# {glue:text}`lengths_lexica` of the prompts from Lexica. Lists that are not at hand: {glue:text}`lengths_lacking`.

# %% tags=["hide-input"]
page.provenance(
    {"lists": ", ".join(f"{row['list']} {row['sha256'][:12]}" for row in table.to_dict("records") if row["category"] == "all"),
     "counted": "here" if refetch else "from the committed statistics"},
)  # fmt: skip
