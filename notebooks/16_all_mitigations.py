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
# # Which remedy leaves least of a copy, and what does it cost?
#
# Claims A3, B7 and C5d: Ren and others, abstract {cite:p}`attn`; Jain and others, Section 6, Tables 1 to 5 {cite:p}`basin`; Kim and No, Appendix A.2,
# Table 6 {cite:p}`clip`.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
substrate = "minisd-v1"  # minisd-v1, sd14, sd21, or a folder with a diffusers pipeline: the pre-trained model
profile = "check"  # check: tables from the reference run, a few pictures measured anew; live: all measured now; reference: and kept
small_model = "auto"  # model of scenario 1; auto: the substrate's own, or a folder written by memlib.training.finetune
large_model = "auto"  # model of scenario 1b, likewise
class_model = "auto"  # model of scenario 2
duplicated_model = "auto"  # model of scenario 3
memorized = "memorized"  # prompt set of scenario 4: "memorized" is the substrate's own; or a name or file (csv, txt, jsonl)
control = "auto"  # prompts of the memorized ones' kind, seen once in training: "auto", "none", or a name or file
not_memorized = "not memorized"  # the second contrast, of another kind of caption: likewise
scenarios = None  # of small, large, class, duplicated, pretrained; None: all of them
methods = None  # names of mitigations; None: all that are registered
only_pretrained = ["amg", "bright-ending", "han-batch", "han-sample", "nemo", "prss", "sail", "wanda"]  # in the last scenario alone; None: everywhere
checked = ["none", "pad-mask"]  # methods that a check measures anew in every scenario, on the prompts that are shown
shown = ["none", "pad-swap", "pad-mask", "random-token", "dynamic-transition", "dynamic-transition-opposite"]  # methods whose pictures are shown
strengths = True  # every strength of a method in the curves; False: its registered setting alone, everywhere
swept = ["pretrained"]  # scenarios in which strengths are tried; None: all of them
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

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is measured", "code_prompt_hide": "How it is measured"}
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pandas as pd
from IPython.display import display

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, Page, told
from memlib.mitigations import REGISTRY, describe, get
from memlib.results import figures as plots
from memlib.results import times as bench
from memlib.results.effects import loss_share, shares_of_effect, shortfall
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED, alignment_with_changed
from memlib.results.evidence import MEMORIZED, SEEN_ONCE, Evidence, gather, scoring
from memlib.results.measure import scored
from memlib.results.orders import listed, orders, tally
from memlib.results.pareto import areas, rank
from memlib.results.scenarios import SCENARIOS, SIMILARITY, TRANSITION, at_transition, each, strips, summary, transition_under
from memlib.results.settings import KEPT, LEFT, alternatives, compared, curves, settings_of
from memlib.results.table import SCORES, join, matrix, of_methods, rows_of

page = Page("A3", "B7", "C5d")
plots.style()
NONE, REN, OTHERS = get("none"), get("ren"), "not memorized"
chosen = [NONE, *(get(name) for name in (REGISTRY if methods is None else methods) if name != "none")]
dear = {get(name).name for name in only_pretrained or ()}
by_name, families = {m.name: m for m in chosen}, {m.name: m.family for m in chosen}
waiting = [m for m in chosen if m.name.startswith(("static-transition", "dynamic-transition"))]
rewriting = [m for m in chosen if m.name in ("random-token", "random-number")]
models = {"small": small_model, "large": large_model, "class": class_model, "duplicated": duplicated_model}


def placed(begins):
    """The methods, static transitions at the median of the scenario's own steps."""
    return [at_transition(m, begins[m]) if m.name.startswith("static") else m for m in chosen]


def by_picture(key, begins):
    """What is measured of a scenario's prompts, then of others: registered settings, strengths on few seeds, and what texts do otherwise."""
    own, sweeps = key == "pretrained", strengths and (swept is None or key in swept)

    def rows(group):
        if group.label == SEEN_ONCE:
            return scored(group.part(None, n_other_seeds), [NONE, REN], [KEPT, "quality"])
        if group.label == OTHERS:
            group, extra = group.part(None, n_other_seeds), []
        else:
            begins.update({m: transition_under(m, group) for m in waiting})
            extra = [rows_of(group, m, TRANSITION, steps_found) for m, steps_found in begins.items()]
        here = [m for m in placed(begins) if own or m.name not in dear]
        few, every = group.part(None, n_swept_seeds if sweeps else None), [setting for m in here for setting in settings_of(m, sweeps)]
        extra += [scored(group, here, evaluations=True), scored(few, every, [LEFT, KEPT, BY_CHANCE])]
        if own and group.label != OTHERS:
            others_do = [m for *_, ours, theirs in alternatives(here) for m in (ours, theirs) if m not in here]
            extra += [scored(few, others_do, evaluations=True), scored(group, ["a"], ["quality"])]
            changed = {m: alignment_with_changed(group, m) for m in rewriting}
            extra += [rows_of(group, m, WITH_CHANGED, found) for m, found in changed.items() if found is not None]
        return join(extra)

    return rows


def measured(key, group):
    """The evidence of one scenario, its curves over strengths, and a few pictures; on the pre-trained model of other prompts as well."""
    run, label, own = group.experiment, group.label, key == "pretrained"
    sets = {label: group.prompts, **({SEEN_ONCE: control, OTHERS: not_memorized} if own else {})}
    anew = scoring([m for m in chosen if m.name in checked], [SIMILARITY, KEPT, "quality"])
    fewest = {label: n_shown, SEEN_ONCE: 0, OTHERS: n_shown}
    found = gather(page.name, run, sets, by_picture(key, {}), profile, n_prompts, fewest, anew)
    begins = {m: found.values(TRANSITION, m, label) for m in waiting}
    here = placed(begins)

    def first(of):  # strengths have fewer seeds
        few = found.rows[of]["seed"].isna() | (found.rows[of]["seed"] < n_swept_seeds).fillna(False)
        return found.rows[of][few.to_numpy(bool)]

    seen, few = [m for m in here if m.name in shown], found.groups[label]
    guided = {m.title: steps_found >= 0 for m, steps_found in begins.items() if m.name.startswith("dynamic")}
    r = SimpleNamespace(found=found, rows=of_methods(found.rows[label], here), methods=here, guided=guided, curves=curves(first(label), first(label), here, strengths),
                        model=run.substrate.name, prompts=few.prompts.prompts, pictures=strips(few, seen, n_shown),
                        threshold=run.thresholds.get("copy_threshold"), provenance=run.provenance())  # fmt: skip
    if own:
        other = found.groups[OTHERS]
        r.others, r.other_curves = of_methods(found.rows[OTHERS], here), curves(first(label), first(OTHERS), here, strengths)
        r.other_pictures, r.other_prompts = strips(other, seen, n_shown), other.prompts.prompts
        r.differences = compared(first(label), alternatives(here), [SIMILARITY, KEPT, "quality"]), compared(found.rows[label], [], [SIMILARITY, KEPT], rewriting)
    return r


with redirect_stdout(StringIO()) as said:
    found = each(measured, models, scenarios, memorized=memorized, n_prompts=None, **page.settings)
pre = found.get("pretrained")
run = page.experiment(n_seeds=1)
EDITS = ("pad-swap", "pad-swap-eot-mask", "pad-mask")
needed = {} if pre is None else {m.name: float(v[0]) for m in pre.methods if (v := matrix(pre.rows, EVALUATIONS, m)) is not None}
# Time can decide only between methods that need no more U-Net evaluations than none: what evaluates the U-Net more often takes longer.
quick = [by_name[name] for name, rows in needed.items() if name in ("none", "ren", *EDITS) or rows <= needed["none"]]
taken = bench.times(bench.Sampler(run.substrate, steps, guidance, scheduler), quick, run.group(memorized, n_timed or bench.TURNS).prompts.prompts, n_timed)
cost, in_all = taken.against(EDITS, ["sot-pad"]), {key: (r.rows, r.methods) for key, r in found.items()}
e = Evidence({}, {}, "") if pre is None else pre.found
page.conclude({
    "A3": [e.change(SIMILARITY, REN, NONE), e.share(KEPT, REN, NONE), e.share(KEPT, REN, NONE, SEEN_ONCE),
           loss_share(e, "quality", REN, "a", MEMORIZED, NONE), taken.ratio("seconds", "ren")],
    "B7": [shortfall(in_all, name) for name in ("wen-3", "ren", "random-token", "random-number")],
    "C5d": [cost[name] for name in ("evaluations_to_none", "seconds_to_none", "seconds_to_cheapest")],
}, run)  # fmt: skip
page.answer(
    f"Similarity to the training picture is {told(e.mean(SIMILARITY, NONE))} without mitigation; zeroing 70 % of the padding changes it by",
    f"{told(e.change(SIMILARITY, get('pad-mask'), NONE))}, masking attention ({REN.name}) by {told(e.change(SIMILARITY, REN, NONE))}, `!` for padding by",
    f"{told(e.change(SIMILARITY, get('pad-swap'), NONE))}.",
    f"Prompts that are not memorized keep {told(e.share(KEPT, get('pad-mask'), NONE, OTHERS))}, {told(e.share(KEPT, REN, NONE, OTHERS))} and",
    f"{told(e.share(KEPT, get('pad-swap'), NONE, OTHERS))} of their alignment.",
)
print("" if pre is None else pre.found.words)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-key", "caption": "What is left of the training picture (better to the left) against the alignment that is kept (better above), a panel for each scenario. A method is a curve over its strengths in the colour of its family, the strongest filled; the star is no mitigation. Settings that no other one beats in both are joined by steps and have names and 95 % intervals. In the last panel alignment is that of prompts that are not memorized: memorized titles do not say what their picture shows, so that this panel is the one that tells."}, "image": {"alt": "Similarity to training left against alignment with the prompt kept, a panel for each scenario, each mitigation a curve over its strengths in the colour of its family", "width": "100%"}}
HARM = "4, alignment of prompts not memorized"
panels = {SCENARIOS[key].label: r.curves for key, r in found.items() if r.curves[0]}
usual = {SCENARIOS[key].label: {m.name: m.title for m in r.methods} for key, r in found.items()}
if pre is not None and pre.other_curves[0]:
    panels[HARM], usual[HARM] = pre.other_curves, usual[SCENARIOS["pretrained"].label]
missing = "Not measured: similarity to training or alignment is not at hand for this substrate."
plots.trade_off(panels, families, SIMILARITY, KEPT) if panels else print(missing);

# %% [markdown]
# Papers compare mitigations at one setting each, on prompts and seeds of their own. Here everything that is registered meets the same prompts with the same
# initial noise in every [scenario](14_scenarios): a model fine-tuned on a small set, on one ten times larger, on class captions, on duplicates, and the
# pre-trained model with its own memorized prompts. Jain and others say that earlier methods work only in the scenario that they were made for (B7), Ren and
# others that masking attention keeps quality and speed (A3), Kim and No that their edits cost less than any other method (C5d). Pictures take 25 steps.
#
# What follows for use stands on [a page of its own](../book/which_mitigation.md). A method that was told which training pictures to avoid (`amg`) is no
# remedy for anyone who does not know them.
#
# ## Reported beside measured
#
# Values of other models and metrics cannot be compared, the order of two methods in one table can. Each pair that a table of the texts tells apart is
# *confirmed* if the paired difference here lies wholly on the same side of zero, *reversed* if wholly on the other, else *open*.

# %% tags=["hide-input"]
survived = []
for key, r in found.items():
    scored = {m.name: {score: matrix(r.rows, score, m) for score in SCORES} for m in r.methods}
    survived += orders("basin", SCENARIOS[key].place, scored) + (orders("clip", "Table 4", scored) if key == "pretrained" else [])
Captioned(tally(survived).reset_index(), "Orders of two methods in the texts' tables, and whether they are so here")

# %% tags=["hide-input"]
Captioned(listed(survived), "Orders that are confirmed or reversed", folded=True)

# %% [markdown]
# ## The pictures
#
# First seed, registered settings of a handful of methods, made now, and the training pictures.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-memorized", "caption": "Memorized prompts of the pre-trained model under a handful of methods, and the training pictures."}, "image": {"alt": "Memorized prompts of the pre-trained model, one column per prompt: pictures under a handful of mitigations, one row each, and training pictures", "width": "60%"}}
plots.montage(pre.pictures, pre.prompts[:n_shown]) if pre is not None else None;

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-others", "caption": "Prompts that are not memorized under the same methods: what a remedy costs where nothing had to be remedied."}, "image": {"alt": "Prompts that are not memorized, one column per prompt: pictures under a handful of mitigations, one row each", "width": "60%"}}
plots.montage(pre.other_pictures, pre.other_prompts[:n_shown]) if pre is not None else None;

# %% [markdown]
# ## Which method leads?
#
# The area that a method's settings dominate together in the figure above, in units of the rectangle from the worst corner (no mitigation, and the alignment
# with the prompts of *other* pictures) to a similarity of 0 at unharmed alignment: 1 would mean that nothing is left and nothing lost, and it is more where a
# method raises alignment above what it is without any. More settings can only
# dominate more; the table has the registered setting alone beside it, and in how many resamples a method came *first*.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-area", "caption": "Dominated area of each method with its 95 % interval (bootstrap over prompts), a panel for each scenario, the largest first. Intervals that overlap cannot be told apart with so few prompts."}, "image": {"alt": "Dominated area of each mitigation with its interval, a panel for each scenario, the largest first", "width": "100%"}}
ranked = {title: rank(curves_, corner, usual[title], same_prompts=title != HARM) for title, (curves_, corner) in panels.items() if corner is not None}
ranked = {title: by for title, by in ranked.items() if by}  # none where alignment is not above that with the prompts of other pictures
plots.dominance(ranked, families) if ranked else print("No ranking: not measured.");

# %% tags=["hide-input"]
dominated = areas(ranked).fillna(NOT_MEASURED).rename_axis("method") if ranked else pd.DataFrame()
Captioned(dominated.set_axis([": ".join(column) for column in dominated.columns], axis=1), "Dominated areas", folded=True)

# %% [markdown]
# ## Do earlier methods work elsewhere?

# %% tags=["hide-input"]
shares = {name: by for name, by in shares_of_effect(in_all).items() if by}
effect = pd.DataFrame({name: {SCENARIOS[key].label: told(by.get(key)) for key in SCENARIOS} for name, by in shares.items()})
Captioned(effect.rename_axis("scenario"), "How much an earlier method lowers similarity, as a share of what the better of Jain's own methods does there")

# %% [markdown]
# ## Is it about memorization?
#
# Share of alignment that is kept: on memorized prompts, whose alignment a removed copy may lose by design, and on prompts that are not memorized, which have
# nothing to lose but harm.

# %% tags=["hide-input"]
remedies = [] if pre is None else [m for m in pre.methods if m.name != "none"]
harm = {m.name: e.share(KEPT, m, NONE, OTHERS) for m in remedies}
lines = {m.name: {"change of similarity to training": told(e.change(SIMILARITY, m, NONE)), MEMORIZED: told(e.share(KEPT, m, NONE)), OTHERS: told(harm[m.name])}
         for m in remedies}  # fmt: skip
Captioned(pd.DataFrame(lines).T.rename_axis("method"), "Share of alignment with the prompt that is kept, and what happens to copies; pre-trained model")

# %% [markdown]
# ## What was asked
#
# Criteria, reasons and intervals are explained in the [method](../book/method.md). B7 takes the scenario where a method falls furthest short; its interval is
# corrected for that choice.

# %% tags=["hide-input"]
page.criteria()

# %% [markdown]
# ## What would change this verdict

# %% tags=["hide-input"]
page.what_would_change()

# %% [markdown]
# ## All numbers
#
# *Guided* is the number of pictures in which guidance ever begins: without a transition the prompt is ignored, and a low similarity is then no mitigation.
# U-Net evaluations count rows: a guided step of one picture is two.

# %% tags=["hide-input"]
print(said.getvalue())
for key, r in found.items():
    display(Captioned(summary(r.rows, r.methods, SCORES, r.guided, r.threshold).rename_axis("method"), f"Scenario {SCENARIOS[key].label}, model {r.model}", folded=True))
    print(r.found.words)

# %% tags=["hide-input"]
if pre is not None:
    shown_here = summary(pre.others, pre.methods, ("similarity to original", KEPT, "quality")).rename_axis("method")
    display(Captioned(shown_here, "Prompts that are not memorized", folded=True))

# %% tags=["hide-input"]
differences = pd.concat(pre.differences) if pre is not None else pd.DataFrame(columns=["point", "method"])
Captioned(differences.set_index(["point", "method"]).fillna("–"), "What public programs do otherwise (points of the page of discrepancies)", folded=True)

# %% tags=["hide-input"]
print(taken.source)
Captioned(taken.table().rename_axis("method").sort_values(["U-Net evaluations per picture", "seconds per picture"]), "Time, one picture at a time", folded=True)

# %% tags=["hide-input"]
costs, source = bench.kept_table(substrate)
print(source)
Captioned(costs.set_axis([": ".join(column) for column in costs.columns], axis=1).rename_axis("method"), "Time and memory of all methods, by memlib bench mitigations", folded=True)

# %% tags=["hide-input"]
described = pd.DataFrame(describe()).set_index("mitigation").loc[[m.name for m in chosen], ["what it does", "source", "extra cost"]]
described["strengths"] = ["–" if m.strengths is None else f"{m.strengths[0]}: {', '.join(f'{v:g}' for v in m.strengths[1])}" for m in chosen]
Captioned(described, "The methods, with their strengths from weak to strong", folded=True)

# %% [markdown]
# ## Run it

# %% tags=["hide-input"]
page.run_it()

# %% tags=["remove-cell"]
# NBVAL_CHECK_OUTPUT
page.print_verdicts("B7")  # the others hang on time, which differs from machine to machine

# %% tags=["remove-input"]
for key, r in found.items():
    print(f"{SCENARIOS[key].label}: {r.provenance}\n")
run.provenance()
