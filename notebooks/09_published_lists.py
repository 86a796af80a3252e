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
# interrupted run goes on from the store), and leaves its table in `data/measured`, from where every later build shows it. On any
# other substrate it shows the paper's figures, *reported*, and what has been measured so far.

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from memlib.experiment.page import Page, reported_at, told
from memlib.judging.estimates import mean_interval, paired_difference
from memlib.mitigations import REGISTRY
from memlib.prompts.sets import load_prompts
from memlib.results.measured import Measured, keep, load

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
PAGE = "published-lists"
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
def scores(name):
    """Scores of every method on one list, {(method, score): [N, S]}; prompts pass through memory a few at a time."""
    prompts = load_prompts(LISTS[name])
    if n_prompts is not None and n_prompts < len(prompts):
        prompts = prompts.sample(n_prompts, seed=0)
    parts = {}
    for start in range(0, len(prompts), at_once):
        group = run.group(prompts.select(range(start, min(start + at_once, len(prompts)))))
        for key, mitigation in methods.items():
            for score in METRICS:
                parts.setdefault((key, score), []).append(group.score(score, mitigation))
    return {key: None if any(v is None for v in values) else np.concatenate(values) for key, values in parts.items()}


def difference(found, first, second):
    """Similarity under one method minus under another, paired; None where either is not registered or not measured."""
    sides = [found.get((method, "similarity to original")) for method in (first, second)]
    return None if any(side is None for side in sides) else paired_difference(*sides)


if measuring:
    found = {name: scores(name) for name in LISTS}
    rows = [
        {"list": TITLES[name], "method": key, "score": score,
         "measured": told(None if (v := found[name][key, score]) is None else mean_interval(v)), "prompts": 0 if v is None else len(v), "seeds": n_seeds}
        for name in LISTS for key in methods for score in METRICS
    ]  # fmt: skip
    quantities = {}
    for name in LISTS:
        quantities[f"{name}_ren_minus_ours"] = difference(found[name], "ren", "pad_swap_mask_eot")
        quantities[f"{name}_wen_minus_ren"] = difference(found[name], "wen", "ren")
    verdict = page.judge(quantities, run, show=False)["C8"]
    if any(row["prompts"] for row in rows):
        pictures = sum(row["prompts"] * row["seeds"] for row in rows)
        keep(PAGE, Measured(run.substrate.name, pictures, rows, verdict, str(run.provenance())))
else:
    why = "Both lists belong to Stable Diffusion 1.4: not measured here."
    verdict = page.judge({}, run, not_testable_because={"C8": why}, show=False)["C8"]

# %%
def side_by_side(tables):
    """Reported and measured figures on both lists, in columns of their own."""
    lines = []
    for place, title in (("Table 7", TITLES["webster"]), ("Table 8", TITLES["membench"])):
        told = figures[figures["place"] == place].set_index(["method", "metric"])["value"]
        for key in dict.fromkeys([*told.index.get_level_values("method"), *methods]):
            for score, metric in METRICS.items():
                value = f"{told[key, metric]:.2f}" if (key, metric) in told else "not reported"
                line = {"list": title, "method": key, "score": score, "reported by clip": value}
                for kept in tables:
                    table = kept.table
                    at = table[(table["list"] == title) & (table["method"] == key) & (table["score"] == score)]
                    line[f"measured on {kept.substrate}"] = at["measured"].iloc[0] if len(at) else "not measured"
                if not tables:
                    line["measured"] = "not measured here"
                lines.append(line)
    return pd.DataFrame(lines).set_index(["list", "method", "score"])


kept_tables = load(PAGE)
side_by_side(kept_tables)

# %% tags=["hide-input"]
for kept in kept_tables:
    print(f"{kept.substrate}: {kept.provenance}")
print(f"{len(kept_tables)} measured runs are kept so far.")

# %% [markdown]
# ## Verdict

# %%
display(*[kept.verdict for kept in kept_tables if kept.substrate != run.substrate.name], verdict)

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"substrate_C8": run.substrate.name, "kept_C8": ", ".join(kept.substrate for kept in kept_tables) or "none"})
page.glue({"registered_C8": ", ".join(key for key in methods if key != "none")})

# %% [markdown]
# On {glue:text}`substrate_C8`, C8 is {glue:text}`verdict_C8`. Substrates measured so far: {glue:text}`kept_C8`. Methods that a run measures
# today: {glue:text}`registered_C8`; one that is registered later joins the next run, and what the store holds is not sampled again.

# %% tags=["hide-input"]
run.provenance()
