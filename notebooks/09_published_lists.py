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
# # Do the results hold on the lists that other work reports?
#
# Claim C8 of Kim and No, Appendix A.2, Tables 7 and 8 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # sd14 measures; others show what is reported and what was measured before
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
webster = "webster500"  # the two lists: names, or files (csv, txt, jsonl)
membench = "membench"  # likewise
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

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, reported_at, told
from memlib.mitigations import REGISTRY
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import Evidence, gather
from memlib.results.measure import scored

page = Page("C8")
plots.style()
run = page.experiment()
WEBSTER, MEMBENCH = "Webster 500", "MemBench 3000"
LISTS, PLACES = {WEBSTER: webster, MEMBENCH: membench}, {"Table 7": WEBSTER, "Table 8": MEMBENCH, "Table 4": "458 memorized"}
SCORES = {"similarity to original": "sscd_to_original", "alignment": "clip_score", "quality": "aesthetic"}
SIMILARITY, ALIGNMENT, QUALITY = SCORES
figures = reported_at("clip", PLACES)
figures = figures[figures["metric"].isin(SCORES.values())].assign(list=figures["place"].map(PLACES))
reported = figures.set_index(["list", "method", "metric"])["value"]
METHODS = {key: m for m in REGISTRY.values() for key in m.reported if key in set(figures["method"])}
OURS = "pad_swap_mask_eot"


def in_parts(group):
    """The measurement of every method; prompts pass through memory a few at a time."""
    starts = range(0, len(group), at_once)
    parts = (group.experiment.group(group.prompts.select(range(at, min(at + at_once, len(group)))), None, group.label) for at in starts)
    return table.join(scored(part, METHODS.values(), list(SCORES)) for part in parts)


def judged(found):
    """The parts of the claim in their order."""
    def change(score, first, second, of=WEBSTER):
        return found.change(score, METHODS[first], METHODS[second], of)
    lower = [change(SIMILARITY, other, OURS) for other in ("wen", "rta", "rna")]
    return [*lower, change(ALIGNMENT, OURS, "ren"), change(QUALITY, OURS, "ren"), change(SIMILARITY, "wen", OURS, MEMBENCH)]


here = run.substrate.name == "sd14" if measure == "auto" else bool(measure)
kept = table.kept(page.name)
found = {name: Evidence({}, {of: rows[rows["prompt_set"] == of] for of in LISTS}, "") for name, rows in kept.items() if name != run.substrate.name}
for name, elsewhere in found.items():
    page.conclude({"C8": judged(elsewhere)}, name)
if here:
    found[run.substrate.name] = gather(page.name, run, LISTS, in_parts, profile, n_prompts, dict.fromkeys(LISTS, 2))
because = "Its metrics are not at hand." if here else "Both lists belong to Stable Diffusion 1.4, and no run of it is kept: not measured here."
page.conclude({"C8": judged(found[run.substrate.name])} if here else {}, run, {"C8": because})
said = {key: " and ".join(f"{reported[of, key, 'sscd_to_original']:.2f}" for of in LISTS) for key in (OURS, "wen", "ren")}
ours = {name: " and ".join(told(by.mean(SIMILARITY, METHODS[OURS], of)) for of in LISTS) for name, by in found.items()}
page.answer(
    f"Kim and No report a similarity to the original of {said[OURS]} on the two lists under `!` padding with `<eot>` set to zero, {said['wen']} for Wen and others",
    f"and {said['ren']} for Ren and others; {' '.join(f'measured on {name}: {values}.' for name, values in ours.items()) or 'none of it was measured here.'}",
    "Of which prompts are of the lists' kind and were seen once nothing is known, so that this page has no matched contrast.",
)
print(*(by.words for by in found.values() if by.words), sep="\n", end="")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-09-key", "caption": "Similarity to the original picture on the two published lists and on Kim and No's own 458 memorized prompts, as reported (diamonds: SSCD, Stable Diffusion 1.4) and as far as measured (dots with 95 % intervals). Lower is better. Compare the order of methods from list to list: the text's own tables differ in it."}, "image": {"alt": "Reported similarity to the original picture by method on Webster's 500 prompts, MemBench's 3,000 and the text's own 458 memorized prompts", "width": "100%"}}
def row(of, key):
    return f"{METHODS[key].title if key in METHODS else key}, {of}"


values = {row(of, key): reported[of, key, "sscd_to_original"] for of in PLACES.values() for key in METHODS if (of, key, "sscd_to_original") in reported}
measured = {name: {row(of, key): by.mean(SIMILARITY, m, of) for of in LISTS for key, m in METHODS.items()} for name, by in found.items()}
plots.beside(values, measured, SIMILARITY);

# %% [markdown]
# Most earlier work reports on the 500 candidate captions of {cite:t}`webster2023extraction`, without sorting out those that do not reproduce;
# {cite:t}`hong2025membench` add 3,000 prompts found by search. Kim and No run their mitigation and earlier ones on both lists and speak of a "favorable
# trade-off". Their tables differ in order: Ren and others stand below their method in Tables 7 and 8 and above it in Table 4.
#
# This page is an appendix: both lists belong to Stable Diffusion 1.4. It measures when it is run with `-p substrate sd14 -p profile reference` (a GPU and a
# few hours; an interrupted run goes on from the store), and leaves its scores in `data/scores`, from where every later book takes them.
#
# ## Reported beside measured

# %% tags=["hide-input"]
wide = figures.pivot_table(index="method", columns=["metric", "list"], values="value").round(2).astype(object).fillna("–")
wide.index = pd.Index([METHODS[key].title if key in METHODS else key for key in wide.index], name="method")
wide.columns = [f"{next(score for score, name in SCORES.items() if name == metric)}, {of}" for metric, of in wide.columns]
Captioned(wide, "What Kim and No report on the two lists, and on their own 458 memorized prompts")

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
# ## All numbers
#
# A method that is registered later joins the next run, and what the store holds is not sampled again.

# %% tags=["hide-input"]
lines = [{"list": of, "method": m.title, **{f"{score}, {name}": told(by.mean(score, m, of)) for name, by in found.items() for score in SCORES}}
         for of in LISTS for m in METHODS.values()]  # fmt: skip
print(*(f"{name}: {' '.join(table.sources(rows))}" for name, rows in kept.items()), f"{len(kept)} measured runs are kept so far.", sep="\n")
Captioned(pd.DataFrame(lines).set_index(["list", "method"]), "Means with 95 % intervals", folded=True) if found else print(f"Scores: {NOT_MEASURED}.")

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"substrate_C8": run.substrate.name})

# %% tags=["remove-input"]
run.provenance()
