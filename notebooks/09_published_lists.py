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
# # The published lists: Webster 500 and MemBench
#
# **Claim C8** · `clip`, Appendix A.2, Tables 7 and 8 {cite:p}`clip`
#
# Most earlier work reports on the 500 candidate captions of {cite:t}`webster2023extraction`, without sorting out those that do
# not reproduce; {cite:t}`hong2025membench` add 3,000 prompts found by search. `clip` runs its mitigation and earlier ones on
# both lists and finds the picture of its main table again.
#
# Both lists belong to Stable Diffusion 1.4. This page measures when it is run with `-p substrate sd14` (a GPU and a few hours; an
# interrupted run goes on from the store), and leaves its scores in `data/scores`, from where every later build shows it. On any
# other substrate it shows the paper's figures, *reported*, and what has been measured so far.

# %%
import pandas as pd
from IPython.display import display

from memlib.experiment.page import Page, reported_at, told
from memlib.mitigations import REGISTRY
from memlib.prompts.sets import load_prompts
from memlib.results import table
from memlib.results.measure import measure as scored

# %% tags=["parameters"]
substrate = "minisd-v1"  # sd14 measures; others show what is reported and what was measured before
webster = "webster500"  # the two lists: names, or files (csv, txt, jsonl)
membench = "membench"
n_prompts = None  # at most so many prompts of each list; None: all 500 and all 3,000
n_seeds = 10  # seeds 0, 1, ... for every prompt
at_once = 50  # prompts held in memory at once
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory
measure = "auto"  # auto: on sd14 only; True: also on a folder of one's own with such a model; False: show only

# %%
page = Page("C8")
run = page.experiment()
LISTS = {"webster": webster, "membench": membench}
TITLES = {"webster": "Webster 500", "membench": "MemBench 3000"}
METRICS = {"similarity to original": "sscd_to_original", "alignment": "clip_score", "quality": "aesthetic"}
measuring = run.substrate.name == "sd14" if measure == "auto" else bool(measure)

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# ## Reported
#
# `clip`'s figures on both lists, and its Table 4 (458 memorized prompts) for the order to compare with. Similarity is SSCD to the
# picture of the unedited embedding. The text's own tables differ in order: Ren et al. stand below `clip`'s method in Tables 7 and 8
# and above it in Table 4.

# %%
figures = reported_at("clip", ("Table 4", "Table 7", "Table 8"))
figures = figures[figures["metric"].isin(METRICS.values())]
methods = {key: m for m in REGISTRY.values() for key in m.reported if key in set(figures["method"])}  # those of the tables
figures.pivot_table(index="method", columns=["metric", "place"], values="value").round(2).astype(object).fillna("not reported")

# %% [markdown]
# ## Measured

# %%
def measured(name):
    """Measure every method on one list and keep its rows; prompts pass through memory a few at a time."""
    prompts = load_prompts(LISTS[name])
    if n_prompts is not None and n_prompts < len(prompts):
        prompts = prompts.sample(n_prompts, seed=0)
    for start in range(0, len(prompts), at_once):
        group = run.group(prompts.select(range(start, min(start + at_once, len(prompts)))), None, TITLES[name])
        rows, _ = scored(group, methods.values(), list(METRICS))
        table.append(table.path_of("published_lists", run.substrate.name), rows)


def verdict_on(on, rows=None, why=""):
    """The verdict of C8 on a run, or on the substrate of kept rows."""
    quantities = {}
    for name, title in TITLES.items() if rows is not None else ():
        pairs = {"ren_minus_ours": ("ren", "pad_swap_mask_eot"), "wen_minus_ren": ("wen", "ren")}
        of = rows[rows["prompt_set"] == title]
        for pair, (one, other) in pairs.items():
            there = one in methods and other in methods
            quantities[f"{name}_{pair}"] = table.change(of, "similarity to original", methods[one], methods[other]) if there else None
    return page.judge(quantities, on, not_testable_because={"C8": why}, show=False)["C8"]


for name in LISTS if measuring else ():
    measured(name)
kept = table.kept("published_lists")
others = [verdict_on(name, rows) for name, rows in kept.items() if name != run.substrate.name or not measuring]
if measuring:
    verdict = verdict_on(run, kept[run.substrate.name])
else:
    verdict = verdict_on(run, why="Both lists belong to Stable Diffusion 1.4: not measured here.")

# %%
lines = []
for place, title in (("Table 7", TITLES["webster"]), ("Table 8", TITLES["membench"])):
    reported = figures[figures["place"] == place].set_index(["method", "metric"])["value"]
    for key in dict.fromkeys([*reported.index.get_level_values("method"), *methods]):
        for score, metric in METRICS.items():
            value = f"{reported[key, metric]:.2f}" if (key, metric) in reported else "not reported"
            line = {"list": title, "method": key, "score": score, "reported by clip": value}
            for name, rows in kept.items():
                of = rows[rows["prompt_set"] == title]
                line[f"measured on {name}"] = told(table.estimate(of, score, methods[key]) if key in methods else None)
            lines.append(line if kept else line | {"measured": "not measured here"})
pd.DataFrame(lines).set_index(["list", "method", "score"])

# %% tags=["hide-input"]
for name, rows in kept.items():
    print(f"{name}: {' '.join(table.sources(rows))}")
print(f"{len(kept)} measured runs are kept so far.")

# %% [markdown]
# ## Verdict

# %%
display(*others, verdict)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"substrate_C8": run.substrate.name, "kept_C8": ", ".join(kept) or "none"})
page.glue({"registered_C8": ", ".join(key for key in methods if key != "none")})

# %% [markdown]
# On {glue:text}`substrate_C8`, C8 is {glue:text}`verdict_C8`. Substrates measured so far: {glue:text}`kept_C8`. Methods that a run measures
# today: {glue:text}`registered_C8`; one that is registered later joins the next run, and what the store holds is not sampled again.

# %% tags=["hide-input"]
run.provenance()
