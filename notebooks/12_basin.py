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
# # Is the attraction basin a funnel?
#
# Claim B10, Section 4, Definitions 1 to 3 of Jain and others {cite:p}`basin`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "none"  # a second contrast, of another kind of caption: likewise
n_prompts = 18  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
n_widths = 5  # of them, with the first seed, those whose latents are moved off the axis by growing distances
n_cuts = 6  # steps at which the basin is cut, evenly from step 0 to four fifths of the schedule
radii_noise = [0.25, 0.5, 1.0, 2.0, 4.0]  # distances, in norms of the noise
radii_mixed = [0.2, 0.4, 0.6, 0.8, 1.0]  # distances as the share r that is replaced
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance
scheduler = "ddim"  # ddim, euler: the others cannot start in mid-run
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.judging.bounded import student_change, student_contrast, student_mean
from memlib.probes.basin import KINDS, Basin
from memlib.probes.basin_width import rank_correlation, widths
from memlib.results import figures as plots
from memlib.results import table
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather

page = Page("B10")
plots.style()
run = page.experiment()
cuts = sorted({int(k) for k in np.linspace(0, 0.8 * steps, n_cuts).round() if k < steps})
radii = {"noise": [0.0, *radii_noise], "mixed": [0.0, *radii_mixed], "unguided": [0.0, *radii_mixed]}
BALLS = {"training": "similarity to training", "original": "similarity to original"}


def passed(group):
    """Similarity of where guidance leads from states that zero guidance passes from other noise, by step."""
    found = {ball: Basin(group, cuts).similarity("unguided", [1.0], ball) for ball in BALLS}
    return table.join(
        table.rows_of(group, f"passed without guidance, step {k}", BALLS[ball], values[:, :, i, 0])
        for ball, values in found.items() if values is not None for i, k in enumerate(cuts)
    )  # fmt: skip


def everything(group):
    """The same, and of a few prompts where guidance leads from latents at growing distance from the axis."""
    few = run.group(group.prompts, n_widths, group.label).part(None, 1)
    basin, rows = Basin(few, cuts), [passed(group)]
    for kind in KINDS if group.label == MEMORIZED else ["noise"]:
        for ball in BALLS:
            if (values := basin.similarity(kind, radii[kind], ball)) is not None:
                rows += [table.rows_of(few, f"{kind} {r:g}, step {k}", BALLS[ball], values[:, :, i, j])
                         for i, k in enumerate(cuts) for j, r in enumerate(radii[kind])]  # fmt: skip
    rows += [table.rows_of(few, f"zero guidance, step {k}", "distance", basin.unguided_distance()[..., i]) for i, k in enumerate(cuts)]
    return table.join(rows)


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, everything, profile, n_prompts, {MEMORIZED: 3, SEEN_ONCE: 1, DESCRIPTIONS: 1}, passed)


def inside(ball, of):
    """Which states that zero guidance passes belong to the basin, [P, S, K], or None."""
    values = [found.values(BALLS[ball], f"passed without guidance, step {k}", of) for k in cuts]
    return None if any(v is None for v in values) or not found.bounds else np.stack(values, -1) >= found.bounds["strict"]


def by_step(ball, of):
    """The share of them by step."""
    flags = inside(ball, of)
    return {} if flags is None else {k: student_mean(flags[..., i], (0, 1)) for i, k in enumerate(cuts)}


at = inside("training", MEMORIZED)
narrowing = None if at is None or len(cuts) < 2 else student_change(at[..., 0], at[..., -1], (0, 1))
page.conclude({"B10": [narrowing, None if narrowing is None else rank_correlation(at, cuts, sign=-1)]}, run)
ends = {(ball, of, k): told(by_step(ball, of).get(k)) for ball in BALLS for of in (MEMORIZED, SEEN_ONCE) for k in (cuts[0], cuts[-1])}
page.answer(
    f"Of the states that sampling without guidance passes at step {cuts[0]}, guidance takes a share of {ends['training', MEMORIZED, cuts[0]]} to the",
    f"memorized picture; at step {cuts[-1]} it is {ends['training', MEMORIZED, cuts[-1]]}.",
    "Around the picture that one fixed noise gives, titles of the same kind that were seen once have a share of",
    f"{ends['original', SEEN_ONCE, cuts[0]]} and {ends['original', SEEN_ONCE, cuts[-1]]}, memorized prompts",
    f"{ends['original', MEMORIZED, cuts[0]]} and {ends['original', MEMORIZED, cuts[-1]]}.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-key", "caption": "Share of the states that zero guidance passes, from noise of their own, from which guidance still ends in the ball, by the step at which guidance begins; bands are 95 % intervals over prompts. Left, the ball lies around the training picture; right, around the picture that guidance makes of one fixed noise, which prompts seen once have as well. Look for a fall from left to right, and for what is there without memorization."}, "image": {"alt": "Share of states that belong to the basin by step: memorized prompts around the training picture; memorized prompts and titles seen once around the picture of a fixed noise", "width": "100%"}}
panels = {f"around {words}": {of: by_step(ball, of) for of in found.rows if by_step(ball, of) and (ball == "original" or of == MEMORIZED)}
          for ball, words in (("training", "the training picture"), ("original", "the picture of a fixed noise"))}  # fmt: skip
panels = {title: curves for title, curves in panels.items() if curves}
if panels:
    plots.bands(panels, "step (0 is the noisiest)", "share that ends in the ball", (-0.05, 1.05));
else:
    print(f"similarity: {NOT_MEASURED}")

# %% [markdown]
# Jain and others explain memorization by an attraction basin: the states (latents and time) from which sampling with guidance ends at the memorized
# picture, more precisely in a perceptual ball around it. "Intuitively" the basin is a funnel, broad at the first step and narrower later, which is why
# sampling can be led out of it. The text defines the basin and does not measure it; it prints no number that could stand beside ours.
#
# The direct measure asks how much of what sampling *can* pass belongs to the basin: latents come from a trajectory without guidance that began with noise
# of its own, guidance starts at the step, and the end is compared with the training picture. At step 0 this is fresh noise, and the share that of seeds
# that reproduce the picture. The **ball** is copy similarity at or above the strict bound.
#
# ## The pictures

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-pictures", "caption": "Where guidance leads from a state that zero guidance passed, by the step at which guidance begins; a column for each prompt at hand, memorized ones first, the last a title that was seen once. Look for the row from which the training picture is no longer reached."}, "image": {"alt": "Pictures by the step at which guidance begins, one column per prompt; training pictures in the last row", "width": "70%"}}
shown = [group.part(4, 1) for group in found.groups.values()]
rows = {f"step {k}": np.concatenate([Basin(group, cuts).pictures(k, "unguided", [1.0])[0, :, 0] for group in shown]) for k in cuts}
if all(group.training is not None for group in shown):
    rows["training picture"] = np.stack([pictures[0] for group in shown for pictures in group.training])
plots.montage(rows, [prompt for group in shown for prompt in group.prompts.prompts]);

# %% [markdown]
# ## A cut across the basin
#
# The **axis** is the trajectory under plain guidance: it lies in the basin at every step, since going on from any of its states gives the picture it ends
# at. (The trajectory under zero guidance is no axis: by the text's Definition 3 it leaves the basin.) At each step the latents are moved off the axis
# by a growing distance, along one random ray for each prompt, seed and step, and denoised to the end with guidance. The **width** is the half
# distance, at which half of the latents still end in the ball. "The same distance" has three meanings here:
#
# - *noise added*, in norms of the noise that the latents of that step hold. Sampling takes out only what the schedule expects, so that at large
#   distances a picture may leave the ball for its grain, with the memorized composition still in it;
# - *mixed with fresh noise*, the norm kept; 0 is the axis, 1 fresh noise. Less and less of the latents is noise, so that a basin of the same width in norms
#   of the noise narrows in this measure all the same;
# - *mixed with an unguided trajectory* at the same step, so that both ends are states that occur there.
#
# None of them is judged. The first edition judged the first two; norms of the noise shrink by design, so that the same width looks ever larger in them.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-cut", "caption": "One memorized prompt: where guidance leads from latents at growing distance from the axis (0). First columns: noise added, in norms of the noise; last columns: mixed with fresh noise, as the share replaced. Rows are the steps at which the latents were moved."}, "image": {"alt": "Pictures from latents moved off the guided trajectory, distance from left to right, step from top to bottom", "width": "100%"}}
one, few_cuts = Basin(found.groups[MEMORIZED].part(1, 1), cuts), sorted({cuts[0], cuts[len(cuts) // 2], cuts[-1]})
moves = {"noise": [0.0, *radii_noise[::2]], "mixed": radii_mixed[::2]}
rows = {f"step {k}": np.concatenate([one.pictures(k, kind, few)[:, 0, 0] for kind, few in moves.items()]) for k in few_cuts}
plots.montage(rows, [f"{kind} {r:g}" for kind, few in moves.items() for r in few]);

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-funnel", "caption": "The funnel of memorized prompts for three kinds of distance. Shading: share that ends in the ball around the training picture. Line: half distance with 95 % bootstrap intervals over prompts, an arrow where more than half still end there at the largest distance. Dashed: how far the zero-guidance trajectory of the same noise is from the axis; where it lies outside, guidance comes too late."}, "image": {"alt": "Half distance from the guided trajectory by step, drawn symmetrically, with the share that ends at the training picture as shading, for three kinds of distance", "width": "100%"}}
def cut(kind, ball, of):
    """The basin of a group's few prompts by one kind of distance, or None."""
    values = [[found.values(BALLS[ball], f"{kind} {r:g}, step {k}", of) for r in radii[kind]] for k in cuts]
    if any(value is None for row in values for value in row) or not found.bounds:
        return None
    return widths(np.moveaxis(np.array(values), (0, 1), (2, 3)) >= found.bounds["strict"], radii[kind])


AXES = {"noise": "distance (norms of the noise)", "mixed": "distance (share r)", "unguided": "distance (share r)"}
apart = {of: [found.values("distance", f"zero guidance, step {k}", of) for k in cuts] for of in found.rows}
path = np.array([values.mean() for values in apart[MEMORIZED]])
shown = {KINDS[kind]: (measured, cuts, radii[kind]) for kind in KINDS if (measured := cut(kind, "training", MEMORIZED)) is not None}
narrower = "; ".join(f"{title}, {told(measured.narrowing)}" for title, (measured, *_) in shown.items())
print(f"Half distance at step {cuts[0]} minus that at step {cuts[-1]} (above 0: the basin narrows in this measure): {narrower or NOT_MEASURED}.")
if shown and len(cuts) > 1:
    plots.funnels(shown, list(AXES.values()), path, "zero guidance");
else:
    print(f"half distances: {NOT_MEASURED}")

# %% [markdown]
# ## Is it about memorization?
#
# A picture that is nearly done may stay what it is whatever the prompt, so that a wide basin at a late step alone is no sign of memorization. Around the
# picture that the axis itself ends at, memorized prompts can be compared with titles of the same kind that were seen once.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-matched", "caption": "The funnel around the picture that the axis itself ends at, noise added: memorized prompts beside titles that were seen once. Compare the widths at early steps."}, "image": {"alt": "Half distance by step around the axis' own picture, memorized prompts and titles seen once side by side", "width": "85%"}}
pair = {of: (measured, cuts, radii["noise"]) for of in found.rows if (measured := cut("noise", "original", of)) is not None}
if pair and len(cuts) > 1:
    plots.funnels(pair, [AXES["noise"]] * len(pair), path, "zero guidance (memorized)");
else:
    print(f"half distances: {NOT_MEASURED}")

# %% tags=["hide-input"]
first, others = inside("original", MEMORIZED), [of for of in found.rows if of != MEMORIZED]
lines = {
    f"step {k}": {f"minus {of}": told(None if first is None else student_contrast(first[..., i], inside("original", of)[..., i], (0, 1))) for of in others}
    for i, k in enumerate(cuts)
}
caption = "Share that ends at the picture of a fixed noise: memorized prompts minus others"
Captioned(pd.DataFrame(lines).T.rename_axis("guidance from"), caption) if others else print("There are no other prompts.")

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
# The share is one of states that occur without guidance, not a volume: it says how often guidance that begins late would still reach the picture. What a
# miniature cannot say stands under [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
lines = {f"{of}, ball around {'the training picture' if ball == 'training' else 'the picture of a fixed noise'} ({found.count(of)})":
         {f"step {k}": told(by_step(ball, of).get(k)) for k in cuts} for ball in BALLS for of in found.rows if by_step(ball, of)}  # fmt: skip
caption = "Share of states passed without guidance that end in the ball"
Captioned(pd.DataFrame(lines).T.rename_axis("prompts"), caption, folded=True) if lines else print(NOT_MEASURED)

# %% tags=["hide-input"]
lines = {}
for of in found.rows:
    for kind in KINDS:
        for ball in BALLS:
            if (measured := cut(kind, ball, of)) is not None:
                around = "training picture" if ball == "training" else "axis"
                lines[f"{of} ({measured.half[0].n_prompts}), {KINDS[kind]}, ball around the {around}"] = {
                    f"step {k}": ("at least " if measured.at_least[i] else "") + measured.half[i].text(2) for i, k in enumerate(cuts)
                }
    lines[f"{of}, zero guidance is this far (norms of the noise)"] = {f"step {k}": f"{values.mean():.2f}" for k, values in zip(cuts, apart[of])}
caption = "Half distances by step, with bootstrap intervals over prompts, first seed"
Captioned(pd.DataFrame(lines).T.rename_axis("prompts, distance, ball"), caption, folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({"b10_first": by_step("training", MEMORIZED).get(cuts[0]), "b10_last": by_step("training", MEMORIZED).get(cuts[-1])})

# %% tags=["remove-input"]
run.provenance()
