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
# # Does guidance away from the prompt end the wait sooner, and does waiting take time?
#
# Claims B5 and B8, Sections 5.1 and 6.3, Figure 6 (b) and Algorithm 1 of Jain and others {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 18  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
n_pictures = 8  # prompts of each set of which pictures are made under each method
n_timed = None  # turns of every method in which time is taken; None: the kept times of the substrate, or 5 turns where there are none
weaker = -2.0  # a second strength of opposite guidance, that of the authors' program for static transition points
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance after the transition
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import Page, reported_at, told
from memlib.experiment.tables import median_step, middle_half
from memlib.judging.bounded import student_change, student_contrast, student_mean
from memlib.mitigations import describe, get
from memlib.probes.transitions import trace
from memlib.results import edits as show
from memlib.results import figures as plots
from memlib.results import table
from memlib.results import times as bench
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather
from memlib.results.measure import scored

page = Page("B5", "B8")
plots.style()
run = page.experiment()
METHODS = [get(name) for name in ("static-transition", "static-transition-opposite", "dynamic-transition", "dynamic-transition-opposite")]
BY_PROGRAM = get("dynamic-transition", variant="as_published")
FREE, OPPOSITE, WEAKER = "no guidance", f"opposite guidance {-guidance:g}", f"opposite guidance {weaker:g}"
REGIMES = {FREE: 0.0, OPPOSITE: -guidance, WEAKER: weaker}
SCORES = ["similarity to original", "similarity to training", "alignment", "quality", "diversity"]


def measuring(regimes, edits):
    """The measurement of traces under constant scales, with the step at which Algorithm 1 switches, and of some prompts' pictures under the methods."""
    def measured(group):
        rows = []
        for regime in regimes:
            recorded = trace(group, REGIMES[regime])
            one = table.rows_of(group, regime, "", np.zeros(recorded.difference.shape[:2]))
            named = {f"difference, step {k}": recorded.difference[..., k] for k in range(steps)} | {"transition": recorded.transition().astype(float)}
            rows += [one.assign(metric=name, value=values.reshape(-1)) for name, values in named.items()]
        return table.join([*rows, scored(group.part(n_pictures), edits, SCORES)])
    return measured


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
anew = measuring([FREE, OPPOSITE], ["none", METHODS[0]])
found = gather(page.name, run, sets, measuring(REGIMES, ["none", *METHODS, BY_PROGRAM]), profile, n_prompts, anew=anew)
switch = {(regime, of): found.values("transition", regime, of).astype(int) for of in found.rows for regime in REGIMES}
# A run without a local minimum never switches: it counts as the number of steps, later than any other.
step = {key: np.where(at < 0, steps, at).astype(float) for key, at in switch.items()}


def change(regime, of):
    """How much later a run switches than without guidance; None where no run ever does, so that nothing could come sooner."""
    ever = (switch[regime, of] >= 0).any() or (switch[FREE, of] >= 0).any()
    return student_change(step[regime, of], step[FREE, of]) if ever else None


prompts = run.group(memorized, n_prompts).prompts.prompts
times = bench.times(bench.Sampler(run.substrate, steps, guidance, scheduler), METHODS, prompts, n_timed)
dearest = {what: times.ratio(what, times.extreme(what, [m.title for m in METHODS], largest=True)) for what in ("evaluations", "seconds")}
page.conclude({"B5": [change(OPPOSITE, MEMORIZED)], "B8": list(dearest.values())}, run, {"B5": "No run has a transition."})
share = {key: told(student_mean(at >= 0, (0, 1))) for key, at in switch.items()}
page.answer(
    f"Opposite guidance changes the transition step of memorized prompts by {told(change(OPPOSITE, MEMORIZED), 1)} (below 0: sooner); a share of",
    f"{share[FREE, MEMORIZED]} of runs has one without guidance and {share[OPPOSITE, MEMORIZED]} with it.",
    f"Of titles of the same kind that were seen once it changes the step by {told(change(OPPOSITE, SEEN_ONCE), 1)}, and shares of {share[FREE, SEEN_ONCE]} and"
    f" {share[OPPOSITE, SEEN_ONCE]} have one." if SEEN_ONCE in found.rows else "",
    f"The slowest of the four methods takes {told(dearest['seconds'], 3)} times as long as no mitigation.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-key", "caption": "The step at which Algorithm 1 switches with opposite guidance against that without guidance; the area of a circle is the number of prompts and seeds. Below the diagonal opposite guidance comes sooner. Compare memorized prompts with titles seen once: is sooner a sign of memorization?"}, "image": {"alt": "Transition step with opposite guidance against transition step without, one panel for each set of prompts, circles below the diagonal are sooner", "width": "100%"}}
figure, axes = plt.subplots(1, len(found.rows), figsize=(3.7 * len(found.rows), 3.7), sharex=True, sharey=True, squeeze=False)
ticks = np.linspace(0, steps, 6).round().astype(int) if steps >= 5 else np.arange(steps + 1)
for axis, of, colour in zip(axes[0], found.rows, plots.COLOURS):
    pairs, counts = np.unique([step[FREE, of].ravel(), step[OPPOSITE, of].ravel()], axis=1, return_counts=True)
    axis.plot([0, steps], [0, steps], color="black", linewidth=0.8, linestyle=":")
    axis.scatter(*pairs, s=28 * counts, color=colour, alpha=0.6, edgecolor="black", linewidth=0.4)
    axis.set(title=f"{of} ({found.count(of)})", xlabel="step, no guidance")
    axis.set_xticks(ticks, [*map(str, ticks[:-1]), "never"])
    axis.set_yticks(ticks, [*map(str, ticks[:-1]), "never"])
axes[0][0].set_ylabel(f"step, {OPPOSITE}")
figure.tight_layout();

# %% [markdown]
# Guidance that waits for the transition point leaves fewer steps in which the prompt can act. Jain and others therefore guide *away* from the prompt until
# then: the latents are to leave the basin of the memorized picture sooner, so that guidance towards the prompt can start sooner (B5); and waiting, with or
# without opposite guidance, adds no time (B8). In anyone's own pipeline each method is one call, `memlib.mitigate(pipe, "dynamic-transition-opposite")`.
#
# A local minimum is a weak sign: any small rise of the magnitude ends the wait, whether or not the steep fall that the text describes came before it. An
# earlier step need not mean that the latents have left the basin; the pictures below show whether they have.
#
# ## Reported beside measured

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-beside", "caption": "What Jain and others report of the pre-trained model (diamonds: SSCD on Stable Diffusion 1.4, Webster's prompts) beside what was measured here (dots with 95 % intervals). The text gives no figure for the transition step, and for static transition points none here. Models and descriptors differ: compare order and direction, not values."}, "image": {"alt": "Reported and measured similarity to the training picture without mitigation and under dynamic transition points, on one axis with intervals", "width": "100%"}}
reported = {"none": "none", **{m.reported[0]: m for m in METHODS[2:]}}
show.reported_beside(found, reported_at("basin", ["Table 4"]), "similarity", reported, "similarity to training");

# %% tags=["hide-input"]
print(times.source)
seconds = page.claims["B8"].reported_rows().set_index("method")["value"]
costs = times.table().rename_axis("method")
texts = {"none": "none", METHODS[2].title: "dtp"}  # the text says "our approach" and means the dynamic point
costs["reported seconds, as a multiple of none"] = [f"{seconds[texts[name]] / seconds['none']:.2f}" if name in texts else "–" for name in costs.index]
Captioned(costs, "What waiting costs: one picture at a time, not from the store, the methods in turn; medians over turns")

# %% [markdown]
# U-Net evaluations count rows: a guided step of one picture is two. Times hang on the machine and on what runs beside; those kept with the project were
# taken on an idle one by `memlib bench mitigations` (`-p n_timed 5` takes them anew). The detection that must come first, since prompts that are not
# memorized have no transition, is not counted in the text and not here.
#
# ## The pictures
#
# Each column is one prompt with its first seed, made now.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-pictures", "caption": "The original picture, static and dynamic transition points with and without opposite guidance, and the training picture; first memorized prompts, then titles that were seen once. Look for memorized pictures that stay, and for what comes instead where they go."}, "image": {"alt": "Original pictures, pictures under static and dynamic transition points with and without opposite guidance, and training pictures, one column per prompt", "width": "100%"}}
show.sheet(found, ["none", *METHODS]);

# %% [markdown]
# ## The magnitude under opposite guidance

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-magnitude", "caption": "The norm of the difference between conditional and unconditional prediction by step, with a constant scale from the first step to the last, so that nothing is switched on: median over prompts and seeds, and their middle half as a band. Look for the step at which each curve begins to rise."}, "image": {"alt": "Magnitude of the difference of the predictions by step without guidance and under opposite guidance of two strengths, one panel for each set of prompts", "width": "100%"}}
magnitude = {key: np.stack([found.values(f"difference, step {k}", *key) for k in range(steps)], -1) for key in switch}
plots.bands({of: {regime: middle_half(magnitude[regime, of]) for regime in REGIMES} for of in found.rows},
            "step (0 is the noisiest)", "magnitude of the difference");  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-single", "caption": "Single traces of three memorized prompts, first seed. The mark is the step at which Algorithm 1 switches; a trace without a mark never does."}, "image": {"alt": "Single traces of three memorized prompts without guidance and under opposite guidance of two strengths, with the transition step marked", "width": "100%"}}
first = found.rows[MEMORIZED].query("metric == 'transition'")["prompt"].unique()[:3]
plots.marked_traces({regime: [(name, magnitude[regime, MEMORIZED][i, 0], switch[regime, MEMORIZED][i, 0]) for i, name in enumerate(first)]
                     for regime in REGIMES}, "magnitude of the difference");  # fmt: skip

# %% [markdown]
# ## Transition steps
#
# Steps are quartiles of the runs that switch. In the change over all pairs a run that never switches counts as the number of steps; leaving such runs out
# would favour a regime that has more of them, so that the change over those with a step either way stands beside it.

# %% tags=["hide-input"]
lines = []
for (regime, of), at in switch.items():
    either = np.where((at >= 0) & (switch[FREE, of] >= 0), at - switch[FREE, of], np.nan)
    both = told(student_mean(either, missing="drop"), 1) if np.isfinite(either).any() else "none"
    lines.append({"prompts": f"{of} ({found.count(of)})", "until the transition": regime, "runs that switch": f"{(at >= 0).sum()} of {at.size}",
                  "step, median [quartiles]": median_step(at), "change, all pairs": "–" if regime == FREE else told(change(regime, of), 1),
                  "change, where both switch": "–" if regime == FREE else both})  # fmt: skip
Captioned(pd.DataFrame(lines).set_index(["prompts", "until the transition"]), "The step at which Algorithm 1 switches, and how it changes")

# %% tags=["hide-input"]
names = found.rows[MEMORIZED].query("metric == 'transition'")["prompt"].unique()[:12]
by_seed = {f"seed {s}, {regime}": ["never" if k < 0 else str(k) for k in switch[regime, MEMORIZED][: len(names), s]]
           for s in range(min(2, switch[FREE, MEMORIZED].shape[1])) for regime in (FREE, OPPOSITE)}  # fmt: skip
Captioned(pd.DataFrame(by_seed, index=pd.Index(names, name="prompt")), "Transition steps of single memorized prompts", folded=True)

# %% [markdown]
# ## Is it about memorization?
#
# If opposite guidance led out of the basin of a memorized picture, it would change the steps of memorized prompts and not those of titles seen once, which
# are the same kind of caption and have no basin. Where an interval holds zero, both are treated alike.

# %% tags=["hide-input"]
others = [of for of in found.rows if of != MEMORIZED]
late = {of: {regime: step[regime, of] - step[FREE, of] for regime in (OPPOSITE, WEAKER)} for of in found.rows}
lines = {f"change of the transition step, {regime}": {f"minus {of}": told(student_contrast(late[MEMORIZED][regime], late[of][regime]), 1) for of in others}
         for regime in (OPPOSITE, WEAKER)}  # fmt: skip
lines |= {f"share with a transition, {regime}": {f"minus {of}": told(student_contrast(switch[regime, MEMORIZED] >= 0, switch[regime, of] >= 0, (0, 1)))
                                                 for of in others} for regime in REGIMES}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("quantity"), "Memorized prompts minus others") if others else print("There are no other prompts.")

# %% tags=["hide-input"]
show.contrasts(found, [*METHODS, BY_PROGRAM])

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). The text shows single traces for B5 and prints no number.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# What a miniature cannot say stands under [](../book/substrates.md). What the methods do to similarity in each of the text's scenarios has
# [a page of its own](14_scenarios).
#
# ## All numbers
#
# Until the transition the text ignores the prompt (scale 0); the authors' program guides with 1, the conditional prediction alone, which is the row
# *variant as_published*.

# %% tags=["hide-input"]
show.all_numbers(found, ["none", *METHODS, BY_PROGRAM], SCORES)

# %% tags=["hide-input"]
Captioned(pd.DataFrame(describe()).set_index("mitigation").loc[[m.name for m in METHODS], ["what it does", "source", "extra cost"]], "The methods", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts("B5")  # B8 is about time, which differs from machine to machine

# %% tags=["remove-cell"]
page.glue({"change": change(OPPOSITE, MEMORIZED), "times": told(dearest["seconds"], 3)})

# %% tags=["remove-input"]
run.provenance()
