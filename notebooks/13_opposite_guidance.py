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
# # Opposite guidance, and what waiting costs
#
# **Claims B5 and B8** · `basin`, Sections 5.1 and 6.3, Figure 6 (b), Algorithm 1 {cite:p}`basin`
#
# Guidance that waits for the transition point leaves fewer steps in which the prompt can act. `basin` therefore guides *away* from the
# prompt until then: the latents are to leave the basin of the memorized picture sooner, so that guidance towards the prompt can start sooner.
#
# - **B5** Guiding away from the prompt at first moves the transition point to an earlier step.
# - **B8** Waiting for the transition point, with or without opposite guidance, adds no time.
#
# The criteria below were fixed in `data/claims.yml` before anything ran. The four methods are mitigations like any other:
# in anyone's own pipeline each is one call, `memlib.mitigate(pipe, "dynamic-transition-opposite")`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.page import Page, listed, reported_at, told
from memlib.experiment.tables import mean_of_those, median_step, middle_half, summary
from memlib.judging.estimates import paired_difference, share_interval
from memlib.mitigations import describe, get
from memlib.probes.transitions import trace
from memlib.results import edits as show
from memlib.results import figures as plots
from memlib.results import times as bench

# %% tags=["parameters"]
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
not_memorized = "not memorized"  # the contrast: likewise
n_prompts = 18  # at most so many prompts of each set
n_seeds = 2  # seeds 0, 1, ... for every prompt
n_pictures = 8  # prompts of each set of which pictures are made under each method
n_timed = None  # turns of every method in which time is taken; None: the kept times of the substrate, or 5 turns where there are none
weaker = -2.0  # a second strength of opposite guidance, that of the authors' program for static transition points
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance after the transition
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %%
page = Page("B5", "B8")
plots.style()
pd.set_option("display.max_colwidth", None)
run = page.experiment()
known, other = groups = run.pair(memorized, not_memorized, n_prompts)
methods = [get(name) for name in ("static-transition", "static-transition-opposite", "dynamic-transition", "dynamic-transition-opposite")]
as_published = get("dynamic-transition", variant="as_published")
FREE, OPPOSITE, WEAKER = "no guidance", f"opposite guidance {-guidance:g}", f"opposite guidance {weaker:g}"
regimes = {FREE: 0.0, OPPOSITE: -guidance, WEAKER: weaker}

# %% [markdown]
# ## What is claimed, and what would refute it

# %% tags=["hide-input"]
page.show_claims()

# %%
pd.DataFrame(describe()).set_index("mitigation").loc[[m.name for m in methods], ["what it does", "source", "extra cost"]]

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed; the last row is the training picture where it is at hand.

# %% mystnb={"image": {"alt": "Memorized prompts: original pictures, pictures under static and dynamic transition points with and without opposite guidance, and training pictures, one column per prompt", "width": "100%"}}
few_known, few_other = (group.part(n_pictures) for group in groups)
shown = ["none", *methods]
show.pictures(few_known, shown, "Memorized prompts");

# %% mystnb={"image": {"alt": "Prompts that are not memorized: original pictures and pictures under static and dynamic transition points with and without opposite guidance, one column per prompt", "width": "100%"}}
show.pictures(few_other, shown, "Prompts that are not memorized");

# %% [markdown]
# ## The magnitude under opposite guidance
#
# The norm of the difference between conditional and unconditional prediction at each step, with a constant scale from the first step
# to the last, so that nothing is switched on. Median over prompts and seeds, with the middle half of them as a band.

# %%
traces = {(group.label, regime): trace(group, scale) for group in groups for regime, scale in regimes.items()}

# %% mystnb={"image": {"alt": "Magnitude of the difference of the predictions by step without guidance and under opposite guidance of two strengths, memorized beside not memorized", "width": "100%"}}
plots.bands(
    {group.label: {regime: middle_half(traces[group.label, regime].difference) for regime in regimes} for group in groups},
    "step (0 is the noisiest)", "magnitude of the difference",
);  # fmt: skip

# %% [markdown]
# Single traces of memorized prompts, first seed; the mark is the step at which Algorithm 1 switches, and a trace without a mark never does.

# %%
found = {key: recorded.transition() for key, recorded in traces.items()}
single = {
    regime: [
        (prompt, traces[known.label, regime].difference[i, 0], found[known.label, regime][i, 0])
        for i, prompt in enumerate(known.prompts.prompts[:4])
    ]
    for regime in regimes
}

# %% mystnb={"image": {"alt": "Single traces of four memorized prompts without guidance and under opposite guidance of two strengths, with the transition step marked", "width": "100%"}}
plots.marked_traces(single, "magnitude of the difference");

# %% [markdown]
# ## Transition steps with and without opposite guidance
#
# The step at which Algorithm 1 switches, and how it changes, paired by prompt and seed. A run without a local minimum never switches: in
# the change over all pairs its step is the number of steps. Steps are quartiles of the runs that switch; changes are
# means with 95 % intervals by bootstrap over prompts.

# %%
def filled(transition):
    """Transition steps [N, S] with the number of steps where there is none."""
    return np.where(transition < 0, steps, transition).astype(float)


def change_where_both(first, second):
    """Mean of first - second over the pairs that have a transition step either way; None where there are none."""
    return mean_of_those(np.where((first >= 0) & (second >= 0), first - second, np.nan))


rows = []
for group in groups:
    without = found[group.label, FREE]
    for regime in regimes:
        step = found[group.label, regime]
        changes = ("–", "–") if regime == FREE else (
            told(paired_difference(filled(step), filled(without))), told(change_where_both(step, without))
        )  # fmt: skip
        rows.append(
            {"prompts": f"{group.label} ({len(group)})", "before the transition": regime, "runs that switch": f"{(step >= 0).sum()} of {step.size}",
             "step, median [quartiles]": median_step(step), "change, all pairs": changes[0], "change, where both switch": changes[1]}
        )  # fmt: skip
pd.DataFrame(rows).set_index(["prompts", "before the transition"])

# %% mystnb={"image": {"alt": "Transition step with opposite guidance against transition step without, one circle per pair of steps, its area the number of prompts and seeds; memorized beside not memorized; below the diagonal is sooner", "width": "100%"}}
figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.0), sharex=True, sharey=True)
for axis, group, colour in zip(axes, groups, plots.COLOURS):
    pairs, counts = np.unique(
        np.stack([filled(found[group.label, regime]).ravel() for regime in (FREE, OPPOSITE)]), axis=1, return_counts=True
    )
    axis.plot([0, steps], [0, steps], color="black", linewidth=0.8, linestyle=":")
    axis.scatter(*pairs, s=28 * counts, color=colour, alpha=0.6, edgecolor="black", linewidth=0.4)
    axis.set(title=f"{group.label} ({len(group)} prompts)", xlabel="transition step without guidance")
    ticks = np.linspace(0, steps, 6).round().astype(int) if steps >= 5 else np.arange(steps + 1)
    axis.set_xticks(ticks, [*map(str, ticks[:-1]), "never"])
    axis.set_yticks(ticks, [*map(str, ticks[:-1]), "never"])
axes[0].set_ylabel(f"with {OPPOSITE}")
figure.tight_layout();

# %% [markdown]
# Prompt by prompt and seed by seed, memorized prompts ("never": no local minimum).

# %%
def words(step):
    return "never" if step < 0 else str(step)


pd.DataFrame(
    [
        {f"seed {seed}, {regime}": words(found[known.label, regime][i, s]) for s, seed in enumerate(run.seeds) for regime in (FREE, OPPOSITE)}
        for i in range(min(12, len(known)))
    ],
    index=pd.Index(known.prompts.prompts[:12], name="prompt"),
)

# %% [markdown]
# ## What becomes of the pictures
#
# Means over prompts and seeds with 95 % intervals by bootstrap over prompts. These figures are not judged here: what the methods do to
# similarity in each of the paper's scenarios has a claim of its own (B6). Before the transition the text ignores the prompt (scale 0);
# the authors' program guides with 1, the conditional prediction alone, which is the row *variant as_published*.

# %%
columns = ("similarity to original", "similarity to training", "alignment", "quality", "diversity")
summary([few_known, few_other], [*shown, as_published], columns)

# %% [markdown]
# `basin`'s own figures, *reported*: other models and other metrics, so compare directions and order, not values.

# %%
rows_reported = reported_at("basin", ("Table 1", "Table 3", "Table 4"), ["none", *(key for m in methods for key in m.reported)])
listed(rows_reported[rows_reported["metric"] != "fid"])

# %% [markdown]
# ## What it costs
#
# One picture at a time, not from the store, from prompt to picture, the methods in turn on the same prompts after each was run once; medians
# over turns. U-Net evaluations count rows: a guided step of one picture is two. Times hang on the machine and on what runs beside: those
# kept with the project were taken on an idle one by `memlib bench mitigations` (`-p n_timed 5` takes them anew).

# %%
sampler = bench.Sampler(run.substrate, steps, guidance, scheduler)
times = bench.times(sampler, methods, known.prompts.prompts, n_timed)
print(times.source)
times.table()

# %%
listed(page.claims["B8"].reported_rows())

# %% [markdown]
# ## Verdicts

# %%
without, opposed = found[known.label, FREE], found[known.label, OPPOSITE]
any_switches = bool((without >= 0).any() or (opposed >= 0).any())
quantities = {
    # Where no run has a transition at all there is nothing that could come sooner.
    "change_of_transition": paired_difference(filled(opposed), filled(without)) if any_switches else None,
    "share_with_transition": share_interval(without >= 0),
    "share_with_transition_opposite": share_interval(opposed >= 0),
}
for what in ("evaluations", "seconds"):
    dearest = times.extreme(what, [m.title for m in methods], largest=True)
    quantities[f"{what}_to_none"] = times.ratio(what, dearest)

page.judge(quantities, run);

# %%
# NBVAL_CHECK_OUTPUT
page.print_verdicts("B5")  # B8 is about time, which differs from machine to machine

# %% tags=["remove-cell"]
elsewhere = found[other.label, FREE]
page.glue({
    "change": quantities["change_of_transition"], "change_both": change_where_both(opposed, without),
    "change_weaker": paired_difference(filled(found[known.label, WEAKER]), filled(without)),
    "change_other": paired_difference(filled(found[other.label, OPPOSITE]), filled(elsewhere)),
    "share": quantities["share_with_transition"], "share_opposite": quantities["share_with_transition_opposite"],
    "share_other": share_interval(elsewhere >= 0), "times": told(quantities["seconds_to_none"], 3), "weaker": f"{weaker:g}",
})  # fmt: skip
page.glue(show.numbers(few_known, few_other, {m.name.replace("-", "_"): m for m in methods}))

# %% [markdown]
# On this substrate B5 {glue:text}`verdict_B5` and B8 {glue:text}`verdict_B8`. With opposite guidance the transition step of memorized prompts
# changes by {glue:text}`change` steps (runs without a transition counted as the number of steps), by {glue:text}`change_both` where there is one
# either way, and by {glue:text}`change_weaker` with the weaker opposite guidance of {glue:text}`weaker`. The share of runs with a transition
# is {glue:text}`share` without guidance and {glue:text}`share_opposite` with opposite guidance; on prompts that are not memorized, where there
# should be none, it is {glue:text}`share_other` without guidance, and the step changes there by {glue:text}`change_other`.
#
# Similarity to the original on memorized prompts (and on others): static transition {glue:text}`sim_static_transition_mem`
# ({glue:text}`sim_static_transition_other`), with opposite guidance {glue:text}`sim_static_transition_opposite_mem`
# ({glue:text}`sim_static_transition_opposite_other`), dynamic transition {glue:text}`sim_dynamic_transition_mem`
# ({glue:text}`sim_dynamic_transition_other`), with opposite guidance {glue:text}`sim_dynamic_transition_opposite_mem`
# ({glue:text}`sim_dynamic_transition_opposite_other`). The slowest of the four takes {glue:text}`times` times as long as no mitigation.
#
# A local minimum is a weak sign: any small rise of the magnitude ends the wait, whether or not the steep fall that `basin` describes came
# before it. An earlier transition step by Algorithm 1 therefore need not mean that the latents have left the basin; the pictures
# above show whether they have.

# %% tags=["hide-input"]
run.provenance()
