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
# # Every mitigation, one table
#
# **Claims A3, B7 and C5d** · `attn`, abstract {cite:p}`attn`; `basin`, Section 6, Tables 1 to 5 {cite:p}`basin`; `clip`, Appendix A.2,
# Table 6 {cite:p}`clip`
#
# Papers compare mitigations at one setting each, on prompts and seeds of their own, often on one kind of memorization. Here everything
# that is registered meets the same prompts with the same initial noise, in every scenario, on MiniSD:
#
# - changes of the **text** and its embedding: another padding token, masked padding {cite:p}`clip`; random words, numbers and noise
#   {cite:p}`somepalli2023copying`; embeddings optimized at the first step {cite:p}`wen2024detecting`, also under a mask
#   {cite:p}`chen2025brightending`;
# - **attention** that is masked and rescaled {cite:p}`attn`;
# - **guidance** that begins late or leads away first {cite:p}`basin`, rises, or stays within an interval
#   {cite:p}`wang2024schedulers,kynkaanniemi2024interval`; that is steered away from training pictures {cite:p}`chen2024amg` or from the original
#   prompt {cite:p}`chen2025prss`;
# - initial **noise** that is chosen {cite:p}`jeon2025sharpness` or moved {cite:p}`han2025noise`.
#
# Three claims can only be judged with all of them side by side:
#
# - **A3** Masking attention mitigates at unchanged quality and speed.
# - **B7** Earlier methods work only in the scenario that they were made for.
# - **C5d** The edits of the embedding are the cheapest of all methods.
#
# Single settings compare tuning and not methods, so each method is shown at several strengths, fixed beforehand in the registry, as a curve of
# what is left of memorization against what is kept of alignment. A low similarity alone says little: a method that spoils every picture has it
# too. On MiniSD anti-memorization guidance (`amg`) knows all pictures that a model was trained on repeatedly: it is an oracle there
# and no rival.

# %%
from types import SimpleNamespace

import pandas as pd
from IPython.display import Markdown, display

from memlib.base.numbers import counted
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.mitigations import REGISTRY, describe, get
from memlib.results import figures as plots
from memlib.results import times as bench
from memlib.results.effects import shares_of_effect, weakest_scenario
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED
from memlib.results.measure import measure
from memlib.results.orders import listed, orders, tally
from memlib.results.pareto import areas, leading, rank
from memlib.results.scenarios import SCENARIOS, SIMILARITY, each, earlier_methods, placed, strips, summary
from memlib.results.settings import KEPT, LEFT, alternatives, compared, curves, settings_of
from memlib.results.table import SCORES, change, estimate, matrix, path_of, relative

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, sd14, sd21, or a folder with a diffusers pipeline: the pre-trained model
small_model = "auto"  # model of scenario 1; auto: the substrate's own, or a folder written by memlib.training.finetune
large_model = "auto"  # model of scenario 1b, likewise
class_model = "auto"  # model of scenario 2
duplicated_model = "auto"  # model of scenario 3
memorized = "memorized"  # prompt set of scenario 4: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
scenarios = None  # of small, large, class, duplicated, pretrained; None: all of them
methods = None  # names of mitigations; None: all that are registered
only_pretrained = ["amg", "bright-ending", "han-batch", "han-sample", "nemo", "prss", "sail", "wanda"]  # in the last scenario alone; None: everywhere
strengths = True  # every strength of a method in the curves; False: its registered setting alone, everywhere
swept = ["pretrained"]  # scenarios in which strengths are tried; None: all of them
profile = "check"  # check: take the reference run and measure a share of it anew; reference: measure and keep what it lacks; live: measure all now
n_prompts = 6  # at most so many prompts of each scenario
n_seeds = 2  # seeds 0, 1, ... for every prompt
n_other_seeds = 1  # seeds for prompts that are not memorized
n_swept_seeds = 1  # seeds in the curves over strengths
n_timed = None  # turns of every method in which time is taken; None: the kept times of the substrate, or 5 turns where there are none
n_shown = 3  # prompts whose pictures are shown
steps = 25  # denoising steps: half of what the texts take, so that all methods in all scenarios are made in minutes
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("A3", "B7", "C5d")
plots.style()
chosen = [get("none"), *(get(name) for name in (REGISTRY if methods is None else methods) if name != "none")]
dear = {get(name).name for name in only_pretrained or ()}
by_name, families = {m.name: m for m in chosen}, {m.name: m.family for m in chosen}
models = {"small": small_model, "large": large_model, "class": class_model, "duplicated": duplicated_model}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %% [markdown]
# ## The methods
#
# What each does, and its strengths from weak to strong. Published thresholds of magnitudes belong to Stable Diffusion's latents; on other models
# they are replaced by quantiles over prompts that are not memorized, which are then the strengths.

# %% tags=["full-width"]
methods_shown = pd.DataFrame(describe()).set_index("mitigation").loc[[m.name for m in chosen], ["what it does", "source", "extra cost"]]
methods_shown.insert(0, "acts on", ["" if m.name == "none" else m.family for m in chosen])
methods_shown["strengths"] = ["–" if m.strengths is None else f"{m.strengths[0]}: {', '.join(f'{v:g}' for v in m.strengths[1])}" for m in chosen]
methods_shown


# %% [markdown]
# ## Each scenario measured
#
# The scenarios are those of `basin` (see [](14_scenarios)): a model fine-tuned on a small set, on one ten times larger, on class captions, on
# duplicates among single pictures, and the pre-trained model with its own memorized prompts. Static transition points are put where each
# scenario's own traces have theirs. Only on the pre-trained model prompts that are not memorized are measured beside: what a method costs where
# it is not needed. Pictures take 25 steps here, half of what the texts take (`-p steps 50`).
#
# The tables come from a reference run of this notebook (`-p profile reference`, some twenty minutes from nothing on two cores, and going on where
# it was stopped). It is taken only where prompts, seeds, weights, metrics and sampling are those of this run; the registered settings of methods
# that texts compare across scenarios are then measured anew and compared with it, and the page fails where they differ. On a substrate for which
# nothing is kept all of it is measured in scenario 4, and the rest with the profile `reference` or `live`.

# %%
def measured(key, group):
    """What is measured in one scenario: registered settings, strengths, and on the pre-trained model prompts that are not memorized."""
    run, few = group.experiment, group.part(None, n_swept_seeds if strengths else None)
    here, guided = placed(chosen, group)
    share, every = [m for m in here if m.name not in dear], [setting for m in here for setting in settings_of(m, strengths)]
    # A check measures nothing of what is not for this scenario: it is the reference's, or left out.
    spared = [] if key == "pretrained" else [m for m in here if m.name in dear]
    unswept = [] if swept is None or key in swept else [m for m in every if m not in share]
    common = {"profile": profile, "reference": path_of("all_mitigations", substrate)}
    rows, checked = measure(group, here, share=share, spared=spared, evaluations=True, **common)
    left, _ = measure(few, every, [LEFT, KEPT, BY_CHANCE], share=(), spared=unswept, **common)
    r = SimpleNamespace(rows=rows, methods=here, guided=guided, checked=checked, curves=curves(left, left, here, strengths), model=run.substrate.name,
                        prompts=group.prompts.prompts, pictures=strips(group, share, n_shown), threshold=run.thresholds.get("copy_threshold"),
                        provenance=run.provenance())  # fmt: skip
    if key == "pretrained":
        other = run.group(not_memorized, n_prompts, "not memorized").part(None, n_other_seeds)
        r.others, r.others_checked = measure(other, here, share=share, evaluations=True, **common)
        kept, _ = measure(other.part(None, n_swept_seeds if strengths else None), every, [KEPT, BY_CHANCE], share=(), **common)
        r.other_curves, r.other_prompts, r.other_pictures = curves(left, kept, here, strengths), other.prompts.prompts, strips(other, share, n_shown)
        found, rewriting = alternatives(here), [m for m in here if m.name in ("random-token", "random-number")]
        both, _ = measure(few, [m for *_, ours, theirs in found for m in (ours, theirs)], share=(), evaluations=True, **common)
        changed, _ = measure(group, rewriting, [KEPT, WITH_CHANGED])
        r.differences = compared(both, found, [SIMILARITY, KEPT, "quality"]), compared(changed, [], [SIMILARITY, KEPT, "quality"], rewriting)
    return r


found = each(measured, models, scenarios, memorized=memorized, n_prompts=n_prompts, **page.settings)
pre = found.get("pretrained")

# %% [markdown]
# ## The table
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Above the threshold* is the share of pictures that are copies of a
# training picture, *original* is the picture without mitigation, diversity is taken across the seeds of a prompt. U-Net evaluations count rows,
# those that a gradient goes back through twice: a guided step of one picture is two. *Guided* is the number of pictures in which guidance
# ever begins: a dynamic transition without a transition ignores the prompt, and a low similarity is then no mitigation.

# %% tags=["full-width"]
for key, r in found.items():
    told_of = f"{counted(len(r.prompts), 'prompt')}, {counted(n_seeds, 'seed')}, model `{r.model}`"
    display(Markdown(f"**Scenario {SCENARIOS[key].label}**, {told_of}"), summary(r.rows, r.methods, SCORES, r.guided, r.threshold))
    print(r.checked.words())

# %% tags=["full-width"]
if pre is not None:
    told_of = f"{counted(len(pre.other_prompts), 'prompt')}, {counted(min(n_other_seeds, n_seeds), 'seed')}, model `{pre.model}`"
    shown = summary(pre.others, pre.methods, ("similarity to original", "alignment with prompt", "quality"))
    display(Markdown(f"**Prompts that are not memorized**, {told_of}"), shown)
    print(pre.others_checked.words())

# %% [markdown]
# Time and memory are measured by a command of their own, all methods in one process and in turn, with an empty store:
# `memlib bench mitigations`. Its table for this substrate is shown where it was kept: medians over pictures, and the time as a multiple
# of that without mitigation in the same turn, with a 95 % interval by bootstrap over turns.

# %% tags=["full-width"]
print(bench.kept_table(substrate)[1])
bench.kept_table(substrate)[0]

# %% [markdown]
# ## What is left against what is kept
#
# Each method at its strengths, joined from weak to strong (the strongest is filled; a static transition ends with the scenario's own point),
# where strengths are tried (on fewer seeds); the star is no mitigation. Better is to the left and above: settings that no other one beats in
# both means are joined by steps and have names and 95 % intervals. With few prompts intervals are wide, and another draw may put others there;
# the areas below say how often. The dotted lines meet in the worst corner: the similarity without mitigation, and the alignment that pictures
# have with the prompts of *other* pictures. In the last panel alignment is that of prompts that are not memorized. MiniSD's memorized captions
# are titles that do not say what their picture shows, so that in scenario 4 alignment with them can hardly fall; the last panel is the one that
# tells. What papers report is not mixed in.

# %%
OTHERS = "4, alignment of prompts not memorized"
panels = {SCENARIOS[key].label: r.curves for key, r in found.items() if r.curves[0]}
usual = {SCENARIOS[key].label: {m.name: m.title for m in r.methods} for key, r in found.items()}
if pre is not None and pre.other_curves[0]:
    panels[OTHERS], usual[OTHERS] = pre.other_curves, usual[SCENARIOS["pretrained"].label]

# %% mystnb={"image": {"alt": "Similarity to training left against alignment with the prompt kept, a panel for each scenario, each mitigation a curve over its strengths in the colour of its family", "width": "100%"}}
missing = "Not measured: similarity to training or alignment is not at hand for this substrate."
plots.trade_off(panels, families, "similarity to training", "alignment with prompt") if panels else print(missing);

# %% [markdown]
# The area that a method's settings dominate together, in units of the rectangle from that corner to a similarity of 0 at unharmed alignment: 1
# would mean that nothing is left and nothing lost, more than 1 that pictures agree with the prompt better than without mitigation. Intervals by
# bootstrap over prompts, the same ones for every method and the corner; *first* is the share of resamples in which a method has the largest
# area. More settings can only dominate more, so the area of the registered setting alone stands beside.

# %% tags=["full-width"]
ranked = {title: rank(curves_, corner, usual[title], same_prompts=title != OTHERS) for title, (curves_, corner) in panels.items() if corner is not None}
for title in [title for title, by in ranked.items() if not by]:
    print(f"{title}: no ranking. Alignment without mitigation is not above that with the prompts of other pictures.")
ranked = {title: by for title, by in ranked.items() if by}
areas(ranked).fillna(NOT_MEASURED) if ranked else NOT_MEASURED

# %% mystnb={"image": {"alt": "Dominated area of each mitigation with its interval, a panel for each scenario, the largest first", "width": "100%"}}
plots.dominance(ranked, families) if ranked else None;

# %% [markdown]
# ## The pictures
#
# First seed, registered settings, and the training pictures where they are at hand; of methods that were measured in this run.

# %% mystnb={"image": {"alt": "Memorized prompts of the pre-trained model, one column per prompt: pictures under every mitigation, one row each, and training pictures", "width": "80%"}}
plots.montage(pre.pictures, pre.prompts[:n_shown], SCENARIOS["pretrained"].label, cell=0.5) if pre is not None else None;

# %% mystnb={"image": {"alt": "Prompts that are not memorized, one column per prompt: pictures under every mitigation, one row each", "width": "80%"}}
plots.montage(pre.other_pictures, pre.other_prompts[:n_shown], "Prompts that are not memorized", cell=0.5) if pre is not None else None;

# %% mystnb={"image": {"alt": "Prompts of the fine-tuned scenarios, one column per prompt: pictures under every mitigation, one row each, and training pictures", "width": "80%"}}
for key in [key for key in found if key != "pretrained"][-1:]:
    plots.montage(found[key].pictures, found[key].prompts[:n_shown], SCENARIOS[key].label, cell=0.5)

# %% [markdown]
# ## What public programs do otherwise
#
# Where a published program differs from its paper, or texts disagree, an option does the other thing. The number is that on the
# [page of discrepancies](../book/discrepancies.md). Means under our default and under the other, and the paired difference; memorized
# prompts of the pre-trained model, with as many seeds as in the curves.

# %% tags=["full-width"]
differences = pd.concat(pre.differences) if pre is not None else pd.DataFrame(columns=["point", "method"])
differences.set_index(["point", "method"]).fillna("–")

# %% [markdown]
# ## Do the texts' orders survive?
#
# Values of other models and metrics cannot be compared, the order of two methods in one table can. Each pair that a table of `clip` or `basin`
# tells apart is *confirmed* if the paired difference here lies wholly on the same side of zero, *reversed* if wholly on the other, else *open*.
# Methods stand at their registered settings.

# %%
survived = []
for key, r in found.items():
    scored = {m.name: {score: matrix(r.rows, score, m) for score in SCORES} for m in r.methods}
    survived += orders("basin", SCENARIOS[key].place, scored) + (orders("clip", "Table 4", scored) if key == "pretrained" else [])
tally(survived)

# %%
listed(survived)

# %% [markdown]
# ## Do earlier methods work elsewhere?
#
# How much each method that `basin` compares with lowers similarity to training, as a share of what the better of the text's own methods does in
# the same scenario. B7 looks at the scenario where that share is lowest.

# %%
shares = {name: by for name, by in shares_of_effect({key: (r.rows, r.methods) for key, r in found.items()}).items() if by}
pd.DataFrame({name: {SCENARIOS[key].label: told(by.get(key)) for key in SCENARIOS} for name, by in shares.items()})

# %% [markdown]
# ## Who is cheapest?
#
# Time is taken where it can decide: on no mitigation and on every method that needs no more U-Net evaluations than it; what evaluates the U-Net
# more often takes longer. One picture at a time, not from the store, from prompt to picture, the methods in turn; medians over turns. Kept times
# are those of the benchmark above (`-p n_timed 5` takes them anew).

# %%
run = page.experiment(n_seeds=1)
EDITS = ("pad-swap", "pad-swap-eot-mask", "pad-mask")
needed = {} if pre is None else {m.name: float(v[0]) for m in pre.methods if (v := matrix(pre.rows, EVALUATIONS, m)) is not None}
quick = [by_name[name] for name, rows in needed.items() if name in ("none", "ren", *EDITS) or rows <= needed["none"]]
taken = bench.times(bench.Sampler(run.substrate, steps, guidance, scheduler), quick, run.group(memorized, n_timed or bench.TURNS).prompts.prompts, n_timed)
print(taken.source)
taken.table().sort_values(["U-Net evaluations per picture", "seconds per picture"])

# %% [markdown]
# ## Verdicts

# %%
quantities = {"weakest_scenario": weakest_scenario(shares) if set(shares) == {m.name for m in earlier_methods()} else None}
ren = get("ren")
if pre is not None:
    quantities["similarity"] = change(pre.rows, SIMILARITY, ren)
    for short, score in (("alignment", KEPT), ("quality", "quality")):
        quantities |= {short: relative(pre.rows, score, ren, pre.others), f"{short}_others": relative(pre.others, score, ren)}
quantities |= {f"{what}_to_none": taken.ratio(what, "ren") for what in ("evaluations", "seconds")}
page.judge(dict.fromkeys(page.claims["A3"].quantities) | quantities, run.substrate.name, own={"C5d": taken.against(EDITS, ["sot-pad"])});

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts("B7")  # the others hang on time, which differs from machine to machine

# %% tags=["remove-cell"]
for key in (*SCENARIOS, "others"):
    title, r = (OTHERS, pre) if key == "others" else (SCENARIOS[key].label, found.get(key))
    missing = "no ranking" if title in panels else NOT_MEASURED
    rows = {} if r is None else {m.name: v[0] for m in r.methods if (v := matrix(r.rows, EVALUATIONS, m)) is not None}
    page.glue({f"leaders_{key}": leading(ranked[title]) if title in ranked else missing,
               f"free_{key}": leading(ranked[title], rows) if title in ranked else missing})  # fmt: skip
page.glue({f"plain_{key}": estimate(found[key].rows, SIMILARITY, get("none")) if key in found else None for key in SCENARIOS})
page.glue({f"orders_{outcome}": sum(o.outcome == outcome for o in survived) for outcome in ("confirmed", "reversed", "open")})
harm = {} if pre is None else {m.name: relative(pre.others, KEPT, m) for m in pre.methods if m.name != "none"}
unknown = NOT_MEASURED if not any(harm.values()) else "none"
page.glue({
    "orders_all": sum(o.outcome != NOT_MEASURED for o in survived), "model": run.substrate.name,
    "harmless": ", ".join(name for name, e in harm.items() if e is not None and e.low >= -0.05) or unknown,
    "harmful": ", ".join(name for name, e in harm.items() if e is not None and e.high < -0.05) or unknown,
    "reversed_pairs": "; ".join(f"{o.lower} below {o.higher} ({o.place})" for o in survived if o.outcome == "reversed") or "none",
})  # fmt: skip

# %% [markdown]
# ## What survives
#
# On this substrate A3 {glue:text}`verdict_A3`, B7 {glue:text}`verdict_B7` and C5d {glue:text}`verdict_C5d`. Of {glue:text}`orders_all` orders of
# two methods that the texts' tables report, {glue:text}`orders_confirmed` are confirmed, {glue:text}`orders_reversed` reversed and
# {glue:text}`orders_open` open with this many prompts. Reversed are: {glue:text}`reversed_pairs`.
#
# | scenario | similarity to training without mitigation | largest dominated area | of those without further U-Net evaluations |
# |---|---|---|---|
# | 1: small set | {glue:text}`plain_small` | {glue:text}`leaders_small` | {glue:text}`free_small` |
# | 1b: ten times larger | {glue:text}`plain_large` | {glue:text}`leaders_large` | {glue:text}`free_large` |
# | 2: class captions | {glue:text}`plain_class` | {glue:text}`leaders_class` | {glue:text}`free_class` |
# | 3: duplicates | {glue:text}`plain_duplicated` | {glue:text}`leaders_duplicated` | {glue:text}`free_duplicated` |
# | 4: pre-trained | {glue:text}`plain_pretrained` | {glue:text}`leaders_pretrained` | {glue:text}`free_pretrained` |
# | 4, alignment of prompts not memorized | {glue:text}`plain_pretrained` | {glue:text}`leaders_others` | {glue:text}`free_others` |
#
# Several methods in one cell cannot be told apart by the prompts measured. Alignment of prompts that are not memorized falls by at most 5 % with the
# whole interval under: {glue:text}`harmless`; by more than 5 % with the whole interval under: {glue:text}`harmful`. What follows for use
# stands on [a page of its own](../book/which_mitigation.md).

# %% tags=["hide-input"]
for key, r in found.items():
    print(f"{SCENARIOS[key].label}: {r.provenance}\n")
run.provenance()
