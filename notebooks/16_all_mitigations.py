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
import gc
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display
from myst_nb import glue

from memlib.companion import bench
from memlib.results import kept_scenarios, figures as plots
from memlib.experiment.parameters import refuse_unknown
from memlib.judging.claims import claim, judge
from memlib.judging.equivalence import relative_change
from memlib.base.errors import InputError
from memlib.experiment import Experiment
from memlib.results.mitigation_table import alignment_with_changed, change, table, told
from memlib.mitigations import REGISTRY, describe, get
from memlib.base.numbers import counted
from memlib.results.orders import orders, tally
from memlib.results.pareto import rank
from memlib.results.scenarios import SCENARIOS, earlier_methods, place, shares_of_effect, weakest_scenario
from memlib.results.side_by_side import SideBySide, recipe, side_by_side, variants_of
from memlib.base.paths import data_folder
from memlib.judging.estimates import mean_interval

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
keep_rows = False  # True: take nothing from the kept run, measure everything everywhere and keep it under data/measured
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
refuse_unknown()
plots.style()
if keep_rows and (methods is not None or not strengths or scenarios is not None):
    raise InputError("keep_rows keeps all methods at all strengths in all scenarios: leave methods, strengths and scenarios as they are.")
chosen = [get("none"), *(get(name) for name in (REGISTRY if methods is None else methods) if name != "none")]
dear = {get(name).name for name in only_pretrained or ()}
by_name = {m.name: m for m in chosen}
families = {m.name: m.family for m in chosen}
keys = list(SCENARIOS if scenarios is None else scenarios)
models = {"small": small_model, "large": large_model, "class": class_model, "duplicated": duplicated_model, "pretrained": "auto"}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
names = ("A3", "B7", "C5d")
for name in names:
    c = claim(name)
    print(f"{c.id}  {c.statement}\n     holds if: {c.criterion}\n     refuted if: {c.refuted_if.words}\n")

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
# Not everything is measured anew each time: methods that no text compares across scenarios, strengths, and what published programs do otherwise
# come from a run of this notebook that measured all of it (`-p keep_rows True`, some twenty minutes from nothing on two cores). They are taken
# only where prompts, seeds, weights, metrics and sampling are those of this run, and are named below each table. On a substrate for which
# nothing is kept all of it is measured in scenario 4, and the rest with `-p keep_rows True`.

# %%
def measured(key):
    """What was measured in one scenario, or a sentence on why there is nothing."""
    where = place(key, substrate, models[key])
    if isinstance(where, str):
        return where
    try:
        run = Experiment(where[0], n_seeds=n_seeds, steps=steps, guidance=guidance, scheduler=scheduler, device=device, dtype=dtype,
                         batch_size=batch_size)
    except InputError as error:
        if key == "pretrained" or models[key] != "auto":
            raise
        return str(error)  # a difference file that belongs to another base
    pretrained = key == "pretrained"
    group = run.group(memorized if pretrained else where[1], n_prompts, SCENARIOS[key].title)
    other = run.group(not_memorized, n_prompts, "not memorized").part(None, n_other_seeds) if pretrained else None
    path = kept_scenarios.path_of(key, substrate)
    kept = None if keep_rows else kept_scenarios.fitting(recipe(group, other, n_swept_seeds), path)
    # What is kept is not measured again, but for the registered settings of the methods that texts compare across scenarios.
    variants = variants_of(chosen) if pretrained else ()
    sweep = strengths and kept is None and (keep_rows or swept is None or key in swept)
    here = [m for m in chosen if keep_rows or m.name not in dear or (pretrained and kept is None)]
    found = side_by_side(SCENARIOS[key], group, here, other, sweep, n_swept_seeds, variants if kept is None else (), n_shown)
    if kept is not None:
        compared = kept_scenarios.disagreement(found, kept)
        from_kept[key] = kept_scenarios.complete(found, kept, chosen, strengths, variants), compared, kept.provenance
    if pretrained:
        for name in ("random-token", "random-number"):
            if name in by_name:
                with_changed[name] = (group.score("alignment with prompt", by_name[name]), alignment_with_changed(group, by_name[name]))
    return found


with_changed, from_kept = {}, {}
outcomes = {}
for key in keys:
    outcomes[key] = measured(key)
    gc.collect()  # one model at a time
found = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, SideBySide)}
pre = found.get("pretrained")
for key in found if keep_rows else ():
    kept_scenarios.keep(found[key], kept_scenarios.path_of(key, substrate))


def label(key):
    return f"{SCENARIOS[key].number}: {SCENARIOS[key].title}"


for key, outcome in outcomes.items():
    print(f"{label(key)}: {f'model {outcome.model}, {len(outcome.prompts)} prompts' if key in found else f'not measured. {outcome}'}")

# %% [markdown]
# ## The table
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. *Above the threshold* is the share of pictures that are copies of a
# training picture, *original* is the picture without mitigation, diversity is taken across the seeds of a prompt. U-Net evaluations count rows,
# those that a gradient goes back through twice: a guided step of one picture is two. *Guided* is the number of pictures in which guidance
# ever begins: a dynamic transition without a transition ignores the prompt, and a low similarity is then no mitigation.

# %% tags=["full-width"]
for key, r in found.items():
    display(Markdown(f"**Scenario {label(key)}**, {counted(len(r.prompts), 'prompt')}, {counted(n_seeds, 'seed')}, model `{r.model}`"))
    shown = table(r.rows, r.thresholds.get("copy_threshold"))
    guided = r.result.guided
    shown.insert(1, "guided", [f"{guided[title].sum()} of {guided[title].size}" if title in guided else "all" for title in shown.index])
    display(shown)
    if key in from_kept:
        taken, (count, apart), source = from_kept[key]
        print(f"From the kept run: {', '.join(taken)}. {count} rows measured in both differ by at most {apart:.3f} in a mean. {source}")

# %% tags=["full-width"]
if pre is not None:
    count = f"{counted(len(pre.other_prompts), 'prompt')}, {counted(min(n_other_seeds, n_seeds), 'seed')}"
    display(Markdown(f"**Prompts that are not memorized**, {count}, model `{pre.model}`"))
    shown = table(pre.others, pre.thresholds.get("copy_threshold"))
    display(shown.drop(columns=["similarity to training", "95th percentile", "above the threshold", "diversity"]))

# %% [markdown]
# Time and memory are measured by a command of their own, all methods in one process and in turn, with an empty store:
# `python -m memlib.companion.bench mitigations`. Its table for this substrate is shown where it was kept: medians over pictures, and the time as a multiple
# of that without mitigation in the same turn, with a 95 % interval by bootstrap over turns.

# %% tags=["full-width"]
kept = data_folder() / "bench" / f"{Path(substrate).name}.csv"
if kept.is_file():
    timed = pd.read_csv(kept)
    print(timed["provenance"].iloc[0])
    display(bench.for_page(timed))
else:
    print("Not measured here: python -m memlib.companion.bench mitigations --out writes it.")

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
panels = {label(key): (r.curves, r.reference) for key, r in found.items() if r.curves}
usual = {label(key): {row.mitigation.name: row.title for row in r.rows} for key, r in found.items()}
if pre is not None and pre.other_curves:
    panels[OTHERS], usual[OTHERS] = (pre.other_curves, pre.other_reference), usual[label("pretrained")]

# %% mystnb={"image": {"alt": "Similarity to training left against alignment with the prompt kept, a panel for each scenario, each mitigation a curve over its strengths in the colour of its family", "width": "100%"}}
if panels:
    plots.trade_off(panels, families, "similarity to training", "alignment with prompt")
else:
    print("Not measured: similarity to training or alignment is not at hand for this substrate.")

# %% [markdown]
# The area that a method's settings dominate together, in units of the rectangle from that corner to a similarity of 0 at unharmed alignment: 1
# would mean that nothing is left and nothing lost, more than 1 that pictures agree with the prompt better than without mitigation. Intervals by
# bootstrap over prompts, the same ones for every method and the corner; *first* is the share of resamples in which a method has the largest
# area. More settings can only dominate more, so the area of the registered setting alone stands beside.

# %% tags=["full-width"]
ranked = {}
for title, (curves, reference) in panels.items():
    if reference is not None and (areas := rank(curves, reference, usual[title], same_prompts=title != OTHERS)):
        ranked[title] = areas
    elif reference is not None:
        print(f"{title}: no ranking. Alignment without mitigation is not above that with the prompts of other pictures.")
if ranked:
    areas_shown = pd.concat(
        {
            title: pd.DataFrame(
                {name: {"area": f.area.text(2), "registered setting": f"{f.single:.2f}", "first": f"{f.first:.0%}"} for name, f in by.items()}
            ).T
            for title, by in ranked.items()
        },
        axis=1,
    )
    display(areas_shown.fillna("not measured"))

# %% mystnb={"image": {"alt": "Dominated area of each mitigation with its interval, a panel for each scenario, the largest first", "width": "100%"}}
if ranked:
    plots.dominance(ranked, families)

# %% [markdown]
# ## The pictures
#
# First seed, registered settings, and the training pictures where they are at hand; of methods that were measured in this run.

# %% mystnb={"image": {"alt": "Memorized prompts of the pre-trained model, one column per prompt: pictures under every mitigation, one row each, and training pictures", "width": "80%"}}
if pre is not None:
    plots.montage(pre.pictures(), pre.prompts[:n_shown], label("pretrained"), cell=0.5);

# %% mystnb={"image": {"alt": "Prompts that are not memorized, one column per prompt: pictures under every mitigation, one row each", "width": "80%"}}
if pre is not None:
    plots.montage(pre.pictures(others=True), pre.other_prompts[:n_shown], "Prompts that are not memorized", cell=0.5);

# %% mystnb={"image": {"alt": "Prompts of the fine-tuned scenarios, one column per prompt: pictures under every mitigation, one row each, and training pictures", "width": "80%"}}
for key in [key for key in found if key != "pretrained"][-1:]:
    plots.montage(found[key].pictures(), found[key].prompts[:n_shown], label(key), cell=0.5);

# %% [markdown]
# ## What public programs do otherwise
#
# Where a published program differs from its paper, or texts disagree, an option does the other thing. The number is that on the
# [page of discrepancies](../book/discrepancies.md). Means under our default and under the other, and the paired difference; memorized
# prompts of the pre-trained model, with as many seeds as in the curves.

# %% tags=["full-width"]
scores = ("similarity to training", "alignment with prompt", "quality")


def compared(ours, other, difference):
    """Means under our default and under the other, with the paired difference."""
    return "not measured" if difference is None else f"{ours.mean():.2f} → {other.mean():.2f}, {difference.text(2)}"


differences = []
if pre is not None:
    by_title = {row.title: row for row in pre.variant_rows}
    for variant in pre.variants:
        ours, other = by_title[variant.ours.title], by_title[variant.other.title]
        entry = {"point": variant.point, "method": ours.title, "what the other does": variant.words, "as": other.title}
        for score in scores:
            entry[score] = compared(ours.score(score), other.score(score), change(pre.variant_rows, other.title, score, ours.title))
        rows = "not measured" if ours.reason or other.reason else f"{ours.evaluations:.0f} → {other.evaluations:.0f}"
        differences.append(entry | {"U-Net evaluations": rows})
    for name, (original, changed) in with_changed.items():
        entry = {"point": "17", "method": name, "what the other does": "alignment is taken with the changed prompt", "as": name}
        paired = None if original is None or changed is None else mean_interval(changed - original)
        differences.append(entry | {"alignment with prompt": compared(original, changed, paired)})
differences = pd.DataFrame(differences, columns=["point", "method", "what the other does", "as", *scores, "U-Net evaluations"])
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
    by_method = {row.mitigation.name: row.scores for row in r.rows}
    survived += orders("basin", SCENARIOS[key].place, by_method)
    if key == "pretrained":
        survived += orders("clip", "Table 4", by_method)
tally(survived)

# %%
told_apart = [o for o in survived if o.outcome in ("confirmed", "reversed")]
pd.DataFrame(
    [{"reported in": o.place, "score": o.score, "lower": o.lower, "higher": o.higher, "reported difference": round(o.gap, 2),
      "here": o.measured.text(2), "outcome": o.outcome} for o in sorted(told_apart, key=lambda o: (o.outcome != "reversed", -o.gap))],
    columns=["reported in", "score", "lower", "higher", "reported difference", "here", "outcome"],
)

# %% [markdown]
# ## Do earlier methods work elsewhere?
#
# How much each method that `basin` compares with lowers similarity to training, as a share of what the better of the text's own methods does in
# the same scenario. B7 looks at the scenario where that share is lowest.

# %%
earlier = {m.name for m in earlier_methods()}
shares = {name: by for name, by in shares_of_effect({key: r.result for key, r in found.items()}).items() if by}
if shares:
    display(pd.DataFrame({name: {label(key): told(by.get(key)) for key in SCENARIOS} for name, by in shares.items()}))
else:
    print("Not measured.")

# %% [markdown]
# ## Who is cheapest?
#
# Time is taken where it can decide: on no mitigation and on every method that needs no more U-Net evaluations than it; what evaluates the U-Net
# more often takes longer. One picture at a time, not from the store, from prompt to picture, the methods in turn; medians over turns. Kept times
# are those of the benchmark above (`-p n_timed 5` takes them anew).

# %%
run = Experiment(substrate, n_seeds=1, steps=steps, guidance=guidance, scheduler=scheduler, device=device, dtype=dtype, batch_size=batch_size)
EDITS = ("pad-swap", "pad-swap-eot-mask", "pad-mask")
rows_needed = {} if pre is None else {row.mitigation.name: row.evaluations for row in pre.rows if not row.reason}
quick = [by_name[name] for name, rows in rows_needed.items() if name in ("none", "ren", *EDITS) or rows <= rows_needed["none"]]
known = run.group(memorized, n_timed or bench.TURNS)
sampler = bench.Sampler(run.substrate, steps, guidance, scheduler)
times = bench.times(sampler, quick, known.prompts.prompts, n_timed)
print(times.source)
times.table().sort_values(["U-Net evaluations per picture", "seconds per picture"])


# %% [markdown]
# ## Verdicts

# %%
def relative(rows, score, name):
    """Change of a score under a method as a share of its mean without mitigation on prompts that are not memorized; None: not measured."""
    if pre is None:
        return None
    by = {row.mitigation.name: row for row in rows}
    base = next(row for row in pre.others if row.mitigation.name == "none").score(score)
    if name not in by or by[name].score(score) is None or base is None or base.mean() <= 0:
        return None
    return relative_change(by[name].score(score), by["none"].score(score), float(base.mean()))


quantities = {"weakest_scenario": weakest_scenario(shares) if set(shares) == earlier else None}
quantities["similarity"] = None if pre is None else change(pre.rows, "ren", "similarity to training")
for short, score in (("alignment", "alignment with prompt"), ("quality", "quality")):
    quantities[short] = None if pre is None else relative(pre.rows, score, "ren")
    quantities[f"{short}_others"] = None if pre is None else relative(pre.others, score, "ren")
timed = {run.mitigation for run in times.runs}
rest = sorted(timed - {"none", "sot-pad", *EDITS})
own = {}
for what in ("evaluations", "seconds"):
    dearest = times.extreme(what, EDITS, largest=True) if set(EDITS) <= timed else None
    cheapest = times.extreme(what, rest)
    own[f"{what}_to_none"] = None if dearest is None else times.ratio(what, dearest)
    own[f"{what}_to_cheapest"] = None if dearest is None or cheapest is None else times.ratio(what, dearest, cheapest)
    quantities[f"{what}_to_none"] = times.ratio(what, "ren")

verdicts = {}
for name in names:
    values = quantities | own if name == "C5d" else quantities
    verdicts[name] = judge(claim(name), {q: values[q] for q in claim(name).quantities}, substrate=run.substrate.name)
display(*verdicts.values())

# %%
# NBVAL_CHECK_OUTPUT
print("B7", verdicts["B7"].verdict)  # the others hang on time, which differs from machine to machine


# %% tags=["remove-cell"]
def leaders(key, free=False):
    """Methods that come first in at least one of twenty resamples, with their areas; with `free` those alone that cost no evaluation more."""
    title = OTHERS if key == "others" else label(key)
    if title not in ranked:
        return "no ranking" if title in panels else "not measured"
    r = pre if key == "others" else found[key]
    rows = {row.mitigation.name: row.evaluations for row in r.rows if not row.reason}
    by = {name: f for name, f in ranked[title].items() if not free or rows[name] <= rows["none"]}
    best = max(by.values(), key=lambda f: f.area.value)
    names_ = [name for name, f in by.items() if (f.area.high >= best.area.value if free else f.first >= 0.05) or f is best]
    return ", ".join(f"{name} ({by[name].area.value:.2f})" for name in names_[:5]) or "none"


for key in (*SCENARIOS, "others"):
    glue(f"leaders_{key}", leaders(key), display=False)
    glue(f"free_{key}", leaders(key, free=True), display=False)
for key in SCENARIOS:
    r = found.get(key)
    plain = None if r is None else r.rows[0].score("similarity to training")
    glue(f"plain_{key}", "not measured" if plain is None else mean_interval(plain).text(2), display=False)
for outcome in ("confirmed", "reversed", "open"):
    glue(f"orders_{outcome}", sum(o.outcome == outcome for o in survived), display=False)
glue("orders_all", sum(o.outcome != "not measured" for o in survived), display=False)
for name, verdict in verdicts.items():
    glue(f"verdict_{name}", verdict.verdict, display=False)
harm = {} if pre is None else {m.name: relative(pre.others, "alignment with prompt", m.name) for m in chosen if m.name != "none"}
harmless = [name for name, e in harm.items() if e is not None and e.low >= -0.05]
harmful = [name for name, e in harm.items() if e is not None and e.high < -0.05]
unknown = "not measured" if not any(harm.values()) else "none"
glue("harmless", ", ".join(harmless) or unknown, display=False)
glue("harmful", ", ".join(harmful) or unknown, display=False)
glue("reversed_pairs", "; ".join(f"{o.lower} below {o.higher} ({o.place})" for o in survived if o.outcome == "reversed") or "none", display=False)
glue("model", run.substrate.name, display=False)

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
    print(f"{label(key)}: {r.provenance}\n")
run.provenance()
