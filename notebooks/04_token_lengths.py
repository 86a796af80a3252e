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
# # Are memorized prompts shorter than 40 tokens?
#
# Claim C3b of Kim and No, Section 1 and Appendix B, Table 9 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
refetch = False  # True: fetch the lists that are not at hand and count them here
labels = None  # with refetch: a file with Webster's labels (columns caption, overfit_type), to tell RV from TV
statistics_file = None  # another file of statistics than the committed one

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import Page
from memlib.judging.estimates import Estimate, share_interval
from memlib.prompts.lengths import ENOUGH_PADDING, LIMIT, POOLED, SPECIAL_TOKENS, lengths, padding_left, read_statistics, statistics
from memlib.results import figures as plots

page = Page("C3b")
plots.style()
table = statistics(fetch=True, labels=labels) if refetch else read_statistics(statistics_file)
counted = {(row["list"], row["category"]): lengths(row) for row in table.to_dict("records")}
NAMES = {
    POOLED: "all memorized, each once", "webster345": "Webster's labelled", "webster-mv86": "Webster's verbatim (MV)", "membench": "MemBench",
    "sd2-webster219": "Webster's of Stable Diffusion 2", "webster500": "Webster's candidates", "webster500-nemo": "Webster's candidates, NeMo's labels",
    "nonmem-coco": "COCO", "nonmem-laion": "LAION", "nonmem-laion-extra": "LAION, further ones", "nonmem-gpt": "by a language model",
    "nonmem-mixed": "mixed styles",
}  # fmt: skip
kinds = dict(zip(table["list"], table["kind"]))
pool = next((values for (name, _), values in counted.items() if name == POOLED), np.array([], dtype=int))
absent = [name for name in ("webster345", "sd2-webster219", "membench") if (name, "all") not in counted]


def share(flags):
    """The share of a list that was counted in full: no prompt is drawn, so nothing is uncertain."""
    return Estimate(*[float(np.mean(flags))] * 3, len(flags), 0)


parts = [] if absent else [share(pool >= LIMIT), share(padding_left(pool) <= ENOUGH_PADDING)]
because = {"C3b": f"The lists {', '.join(absent)} are not at hand."} if absent else {}
page.conclude({"C3b": parts} if parts else {}, "published lists", because)
unlabelled = counted.get(("webster500", "N"), np.array([], dtype=int))
others = {NAMES.get(name, name): counted[name, "all"] for name, kind in kinds.items() if kind == "not memorized"}
others |= {f"{NAMES['nonmem-mixed']}: Lexica": values for key, values in counted.items() if key == ("nonmem-mixed", "lexica")}
below = {name: share_interval(values < LIMIT).text(3) for name, values in others.items()}
page.answer(
    f"Of {len(pool):,} distinct prompts that were published as memorized {int((pool >= LIMIT).sum())} have {LIMIT} tokens or more; the longest has",
    f"{pool.max()} and leaves {padding_left(pool).min()} of 77 positions to padding.",
    f"Below {LIMIT} tokens are {share_interval(pool < LIMIT).text(3)} of them, and of prompts that are not memorized",
    "; ".join(f"{found} ({name})" for name, found in below.items()) + ".",
) if len(pool) else print("Memorized prompts: not measured.")
print(
    f"Counted {'now, on the lists themselves' if refetch else 'when the statistics in the repository were made'}, in full, by the tokenizer that "
    "Stable Diffusion 1.x and 2.x share; every figure below follows from the histograms of lengths."
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-key", "caption": "Share of prompts up to a number of tokens, a curve for each published list: whole where its prompts are memorized or candidates for it, broken where they are not. Look which curves reach the top left of the dotted limit."}, "image": {"alt": "Share of prompts up to a number of tokens, lists of memorized prompts drawn whole, the others broken, with the limit of 40 tokens", "width": "100%"}}
hidden = (POOLED, "webster500-nemo", "webster-mv86")  # parts of the others
shown = {NAMES.get(name, name): counted[name, "all"] for name, kind in kinds.items() if kind != "not memorized" and name not in hidden}
broken = {name: values for name, values in others.items() if name != NAMES["nonmem-mixed"]}  # of several kinds
plots.ecdf(shown | broken, "tokens of the prompt, <sot> and <eot> not counted", LIMIT, f"limit of {LIMIT}", upto=90, dashed=list(broken));

# %% [markdown]
# Kim and No state that every memorized prompt reported so far has fewer than 40 tokens, so that more than 30 of the 77 positions are padding. This needs no
# model: the published lists are counted with CLIP's own tokenizer. The lists belong to their publishers and are not in this repository; their statistics are
# (`data/token_lengths.csv`: a full histogram for each list, with the list's address and SHA-256). With `refetch` the lists are fetched and counted anew;
# `memlib prompts lengths` writes the file.
#
# ## Reported beside measured
#
# The text refers to its Table 9 for the statistics, whose figures are missing from the text at hand, and does not say whether `<sot>` and `<eot>` count. So
# each list is counted both ways. *Memorized* are prompts that their publishers labelled or selected as memorized, *candidates* the 500 prompts that most
# studies take as memorized although 155 of them have no such label (N). Shares have 95 % Wilson intervals with the prompts as trials: what further prompts
# of the same sort could bring.

# %% tags=["hide-input"]
def line(row):
    values = counted[row["list"], row["category"]]
    return {
        "kind": row["kind"], "list": NAMES.get(row["list"], row["list"]), "category": row["category"] if row["list"] != POOLED else "", "prompts": len(values),
        "median": f"{row['median']:g}", "95 % below or at": f"{row['q95']:g}", "longest": row["longest"],
        f"{LIMIT} or more": share_interval(values >= LIMIT).text(3),
        f"{LIMIT} or more, <sot> and <eot> counted": share_interval(values + SPECIAL_TOKENS >= LIMIT).text(3),
        "fewest padding": int(padding_left(values).min()),
    }  # fmt: skip


order = ("memorized", "candidates", "not memorized")
lines = [line(row) for kind in order for row in table.to_dict("records") if row["kind"] == kind]
Captioned(pd.DataFrame(lines).set_index(["kind", "list", "category"]), "Tokens of the published prompts, by list")

# %% [markdown]
# ## What the verdict leaves out
#
# **The other candidates.** The 155 of the 500 that carry no label of memorization do not enter the verdict, since the text itself (Section 3) does not take
# them for memorized. Studies that use all 500 do.

# %% tags=["hide-input"]
categories = table[(table["list"] == "webster500") & (table["category"] != "all")].set_index("category")
heads = {"n": "prompts", "longest": "longest", "at_least_40": f"{LIMIT} or more", "at_least_40_with_special": f"{LIMIT} or more, <sot> and <eot> counted",
         "padding_30_or_fewer": f"leave {ENOUGH_PADDING} positions or fewer"}  # fmt: skip
Captioned(categories[list(heads)].rename(columns=heads), "The 500 candidates by label")

# %% [markdown]
# **The labels do not add up.** The text (B.1) splits the 345 labelled prompts into 86 MV, 30 RV and 219 TV, which make 335. Counted are the MV captions and
# the rest of the 345; 219 is the size of the list for Stable Diffusion 2. RV and TV are told apart only by Webster's own file, which `labels` names.
#
# **HTML entities.** Older tokenizers turned `&amp;` into `&` first, which shortens some captions. Counted that way:

# %% tags=["hide-input"]
labelled = {category: int(n) for category, n in categories["n"].items() if category != "N"}
print("labelled, counted:", " + ".join(f"{n} {category}" for category, n in labelled.items()), "=", sum(labelled.values()))
changed = table[table["at_least_40"] != table["at_least_40_unescaped"]]
for row in changed.to_dict("records"):
    where = f"{NAMES.get(row['list'], row['list'])}, {row['category']}"
    print(f"{where}: {row['at_least_40_unescaped']} of {LIMIT} tokens or more in place of {row['at_least_40']}")
if not len(changed):
    print(f"entities turned into characters: no count of {LIMIT} tokens or more changes")

# %% [markdown]
# ## Is it about memorization?
#
# Lists of memorized prompts beside lists that are not. Where the latter are as short, shortness is a property of captions and cannot set memorized prompts
# apart.

# %% tags=["hide-input"]
every = {NAMES[POOLED]: pool} | others
every |= {f"{NAMES[name]}: {category}": counted[name, category] for name, category in counted if name == "nonmem-mixed" and category not in ("all", "lexica")}
lines = [{"prompts of": name, "prompts": len(values), f"share below {LIMIT}": share_interval(values < LIMIT).text(3),
          "median padding": f"{np.median(padding_left(values)):g}"} for name, values in every.items() if len(values)]  # fmt: skip
Captioned(pd.DataFrame(lines).set_index("prompts of"), f"Prompts of fewer than {LIMIT} tokens")

# %% [markdown]
# ## What was asked
#
# Criteria and reasons are explained in the [method](../book/method.md). The claim is one on all prompts reported so far, and these were counted in full: no
# prompt is drawn from others, so that the share itself decides and has no interval.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict
#
# One prompt of 40 tokens or more that is published as memorized refutes the first part, one of 45 or more the second.
#
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"lengths_n": f"{len(pool):,}", "lengths_longest": int(pool.max()) if len(pool) else "not at hand"})

# %% tags=["remove-input"]
page.provenance(
    {"lists": ", ".join(f"{row['list']} {row['sha256'][:12]}" for row in table.to_dict("records") if row["category"] == "all"),
     "counted": "here" if refetch else "from the committed statistics"},
)  # fmt: skip
