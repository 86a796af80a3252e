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
# # Does changing the padding undo memorization, and what does it cost?
#
# Claims C5a, C5b, C5c and C5e of Kim and No, Sections 4.1, 4.2 and A.4, Tables 4 and 5, Figures 7, 9 and 12 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, minisd-v2, sd14, sd21, or a folder with a diffusers pipeline
profile = "check"  # check: tables from the reference run, a few prompts measured anew; live: all measured now; reference: and kept
memorized = "memorized"  # prompt set: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
n_prompts = 18  # at most so many prompts of each set, where they are measured now
n_seeds = 2  # seeds 0, 1, ... for every prompt, where they are measured now
n_sweep = 6  # prompts of each set in the sweep over the share of padding set to zero, with the first seed
steps = 50  # denoising steps
guidance = 7.5  # classifier-free guidance; 1 is none
scheduler = "ddim"  # ddim, dpm, euler
device = "auto"  # auto, cpu, cuda
dtype = "auto"  # auto: float16 on a GPU; on a CPU bfloat16 where it is native, else float32
batch_size = None  # pictures at once; None: from free memory

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
import numpy as np
import pandas as pd

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import Page, reported_at, told
from memlib.judging.bounded import student_mean
from memlib.mitigations import describe, get
from memlib.prompts.interventions import MASK_ORDERS
from memlib.results import edits as show
from memlib.results import figures as plots
from memlib.results.effects import loss_share
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, gather, scoring
from memlib.results.measure import scored
from memlib.results.table import join

page = Page("C5a", "C5b", "C5c", "C5e")
plots.style()
run = page.experiment()
# Alignment is taken with the prompt itself, as Kim and No do: of what a memorized picture shows its title says nothing.
ORIGINAL, ALIGNMENT, SHARES = "similarity to original", "alignment with prompt", [round(0.1 * i, 1) for i in range(11)]
SCORES = [ORIGINAL, "similarity to training", "alignment", ALIGNMENT, "quality", "diversity"]
OWN = [get("pad-swap"), get("pad-swap-eot-mask"), get("pad-mask")]
ALL, SOT = get("pad-mask", fraction=1.0), get("sot-pad")
EDITS = [*OWN, ALL, SOT]


def at(share, which="last"):
    """The edit that zeroes a share of the padding; without any of it, and with all, the order of positions makes no difference."""
    return "none" if share == 0 else get("pad-mask", fraction=share, which="last" if share == 1 else which)


def measured(group):
    """Scores under every edit, and on fewer prompts with one seed under every share of the padding."""
    orders = MASK_ORDERS if group.label == MEMORIZED else ("last",)
    sweep = [edit for which in orders for share in SHARES[1:] if (edit := at(share, which)) not in EDITS]
    return join([scored(group, ["none", "a", *EDITS], SCORES), scored(group.part(n_sweep, 1), sweep, [ORIGINAL, ALIGNMENT, "quality"])])


sets = {MEMORIZED: memorized, SEEN_ONCE: control, DESCRIPTIONS: not_memorized}
found = gather(page.name, run, sets, measured, profile, n_prompts, anew=scoring(["none", *OWN], SCORES))
plain = SEEN_ONCE if SEEN_ONCE in found.rows else DESCRIPTIONS  # Stable Diffusion's titles seen once are not known


def fidelity(share, prompts=None, seeds=None):
    """Mean of alignment and quality of plain prompts and seeds, each as a share of its unedited mean; None where one was not measured."""
    scores = [(found.values(score, at(share), plain), found.values(score, "none", plain)) for score in (ALIGNMENT, "quality")]
    if any(now is None or before is None or before.mean() <= 0 for now, before in scores):
        return None
    return np.mean([now[:prompts, :seeds] / before[:prompts, :seeds].mean() for now, before in scores], axis=0)


none, most, whole = (fidelity(share) for share in (0.0, 0.7, 1.0))
page.conclude(
    {
        "C5a": [measure(score, m, *more) for measure, score, *more in (
            (found.mean, ORIGINAL), (found.share, ALIGNMENT), (found.change, "quality", "a")) for m in OWN],
        "C5b": [*(found.share(ALIGNMENT, m, of=plain) for m in OWN), *(loss_share(found, "quality", m, "a", plain) for m in OWN)],
        "C5c": [found.change("diversity", m) for m in OWN],
        "C5e": [found.mean(ORIGINAL, OWN[2]), None if most is None else student_mean(most - whole),
                None if most is None else student_mean((most - whole) / 3 - (none - most) / 7)],
    },  # fmt: skip
    run,
)
left = " and ".join(f"{told(found.mean(ORIGINAL, m))} under {m.name}" for m in OWN[::2])
page.answer(
    f"Of a memorized picture there is left, as similarity to the original, {left}; without mitigation pictures of two seeds differ by",
    f"{told(found.mean('diversity'))}, under {OWN[2].name} by {told(found.mean('diversity', OWN[2]))}.",
    "Of prompts that are not memorized this share of alignment is kept:",
    "; ".join(f"{label} {told(found.share(ALIGNMENT, OWN[0], of=label))} under {OWN[0].name}, {told(found.share(ALIGNMENT, OWN[2], of=label))} under {OWN[2].name}"
              for label in dict.fromkeys((plain, DESCRIPTIONS)))
    + ". That is what a remedy costs where nothing had to be remedied.",
)
print(found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-key", "caption": "Similarity to the original picture under each edit, one dot for each prompt (mean over seeds), boxes for quartiles. A remedy should bring memorized prompts down; that it brings prompts down which were seen once is its cost. Alignment and quality stand below."}, "image": {"alt": "Similarity to the original picture by mitigation, one dot per prompt: memorized prompts, titles seen once, and descriptions", "width": "100%"}}
show.by_prompt(found, EDITS);

# %% [markdown]
# If padding carries memorized pictures, it is cheap to be rid of them: pad with `!` instead of `<eot>` (`pad-swap`), set the one `<eot>` state left to zero
# as well (`pad-swap-eot-mask`), or set 70 % of the padding to zero (`pad-mask`). Kim and No say that each suppresses memorized pictures and keeps alignment
# and quality (C5a), does no harm elsewhere (C5b), makes pictures differ by seed again (C5c), and that 70 % of the padding is enough while all of it spoils
# pictures (C5e). That no other method costs less (C5d) is judged [beside all the others](16_all_mitigations).
#
# In anyone's own pipeline each is one call: `memlib.mitigate(pipe, "pad-swap")`.
#
# ## Reported beside measured

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-beside", "caption": "What Kim and No report (diamonds: SSCD on Stable Diffusion 1.4, 458 memorized prompts) beside what was measured here (dots with 95 % intervals). Models and descriptors differ: compare order and direction, not values."}, "image": {"alt": "Reported and measured similarity to the original picture under three mitigations, on one axis with intervals", "width": "100%"}}
reported = reported_at("clip", ("Table 4", "Table 5", "Section 4.2"), ["none", *(key for m in OWN for key in m.reported)])
show.reported_beside(found, reported, "sscd_to_original", {m.reported[0]: m for m in OWN});

# %% [markdown]
# ## The pictures
#
# Each column is one prompt with its first seed, made now. A low similarity says that the old picture is gone, not what came instead: look for columns that
# turn into one and the same blob. Pictures that differ from seed to seed may be spoiled, too: the table of diversity below has the prompt's states alone (a)
# beside the remedies, which Kim and No themselves call severe degradation.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-pictures", "caption": "The original picture, the three mitigations, and the training picture; first memorized prompts, then titles that were seen once."}, "image": {"alt": "Original pictures, pictures under three mitigations, and training pictures, one column per prompt: memorized prompts, then titles seen once", "width": "100%"}}
show.sheet(found, ["none", *OWN]);

# %% [markdown]
# ## Is it about memorization?
#
# Where an interval holds zero, the edit changes both kinds of prompt alike. Titles seen once are the matched contrast: the same kind of caption.

# %% tags=["hide-input"]
show.contrasts(found, EDITS)

# %% tags=["hide-input"]
damage = {"edit": [show.name_of(m) for m in ["a", *EDITS]], "diversity, memorized": [told(found.change("diversity", m)) for m in ["a", *EDITS]]}
for label in found.rows:
    damage |= {f"alignment kept, {label}": [told(found.share(ALIGNMENT, m, of=label)) for m in ["a", *EDITS]],
               f"quality lost as a share of that under (a), {label}": [told(loss_share(found, "quality", m, "a", label)) for m in ["a", *EDITS]]}  # fmt: skip
Captioned(pd.DataFrame(damage).set_index("edit"), "What an edit costs: change of diversity across seeds, share of alignment kept, share of quality lost")

# %% [markdown]
# Alignment is taken with the prompt, as Kim and No do. Titles say little of what their pictures show, so that their alignment is low and its shares are wide;
# descriptions say it, and their column is the one to read for what a remedy costs.
#
# ## How much of the padding, and which
#
# Left: similarity to the original on memorized prompts, the last positions zeroed first; the other ways to choose them, which the text leaves open, stand in
# the table. Right: fidelity of prompts that are not memorized, the mean of alignment and quality, each as a share of its mean without mitigation.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-share", "caption": "What is left and what is kept when more and more of the padding is set to zero; bands are 95 % intervals. The left panel should fall early, the right one late."}, "image": {"alt": "Similarity to the original against the share of padding set to zero, and fidelity on prompts that are not memorized against the same share", "width": "100%"}}
def curve(values, ends=None):
    """Estimates by per cent of the padding, of the first prompts with their first seed."""
    return {round(100 * share): student_mean(here[:n_sweep, :1], ends) for share in SHARES if (here := values(share)) is not None}


orders = {which: curve(lambda share, which=which: found.values(ORIGINAL, at(share, which)), (0.0, 1.0)) for which in MASK_ORDERS}
panels = {f"similarity to original, memorized ({n_sweep} prompts)": {"similarity": orders["last"]},
          f"fidelity, {plain} ({n_sweep} prompts)": {"fidelity": curve(lambda share: fidelity(share, n_sweep, 1))}}  # fmt: skip
panels = {title: drawn for title, drawn in panels.items() if all(drawn.values())}
plots.bands(panels, "padding set to zero (%)", "similarity, fidelity", (-0.1, 1.6), width=4.8) if panels else print("Similarity and fidelity: not measured.");

# %% tags=["hide-input"]
by_order = pd.DataFrame({which: {f"{share} %": told(estimate) for share, estimate in points.items()} for which, points in orders.items()})
Captioned(by_order.rename_axis("padding zeroed"), "Similarity to the original by share and by which positions are zeroed first", folded=True)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-strip", "caption": "One memorized prompt with more and more of its padding set to zero, the last positions first."}, "image": {"alt": "One memorized prompt: pictures with 0, 30, 50, 70, 90 and 100 per cent of the padding set to zero", "width": "100%"}}
strip = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
one = found.groups[MEMORIZED]
plots.montage({"memorized": np.concatenate([one.some_pictures(at(share), [0], 1)[:, 0] for share in strip])}, [f"{share:.0%}" for share in strip]);

# %% [markdown]
# ## `!` or `<sot>`?
#
# A news summary has the start token where Kim and No have `!`. Memorized prompts, `<eot>` set to zero in both, paired by prompt and seed.

# %% tags=["hide-input"]
difference = {score: told(found.change(score, SOT, OWN[1])) for score in SCORES}
Captioned(pd.DataFrame({"score": list(difference), "difference": list(difference.values())}).set_index("score"), f"{SOT.name} minus {OWN[1].name}")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md).

# %% tags=["hide-input"]
print(f"Quality under the prompt's states alone, which is to be the measure of harm, changes by {told(found.change('quality', 'a', of=plain))} on {plain}; "
      "where nothing is lost under it, parts that compare with it have no measure.")
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# What a miniature cannot say: MiniSD was trained with one padding only and on simpler captions than those of the web, so that what `!` does to prompts that
# are not memorized need not be what it does to Stable Diffusion. See [](../book/substrates.md).
#
# ## All numbers

# %% tags=["hide-input"]
show.all_numbers(found, ["none", "a", *EDITS], SCORES)

# %% tags=["hide-input"]
Captioned(reported.set_index(["place", "method", "metric"])[["value", "sd"]].astype(object).fillna("–"), "What Kim and No report", folded=True)

# %% tags=["hide-input"]
for remark in filter(None, (m.remark(run.substrate.tokenizer) for m in (*OWN, SOT))):
    print(remark)
Captioned(pd.DataFrame(describe()).set_index("mitigation").loc[["none", *(m.name for m in (*OWN, SOT))]], "The mitigations of this page", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts()

# %% tags=["remove-cell"]
page.glue({f"sim_{m.name}_{short}": found.mean(ORIGINAL, m, label) for m in OWN for short, label in (("mem", MEMORIZED), ("other", plain))})

# %% tags=["remove-input"]
run.provenance()
