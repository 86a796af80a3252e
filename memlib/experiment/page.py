"""What every page of the book does around its own story: it starts, states its claims, judges them, and says where its numbers come from.

A notebook makes one `Page` in the cell after its parameters. What differs from page to page (which pictures, which quantities) stays in the notebook.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment import parameters
from memlib.experiment.captioned import Captioned
from memlib.experiment.provenance import Provenance, provenance
from memlib.experiment.run import Experiment
from memlib.judging.claims import Claim, claim, reported
from memlib.judging.estimates import Estimate
from memlib.judging.judge import Measured, registration
from memlib.judging.judge import judge as concluded
from memlib.judging.verdicts import PART_SIGNS, Verdict, many

NOT_MEASURED = "not measured"
# What `Experiment` takes by the names that notebooks give to their parameters.
SETTINGS = ("substrate", "n_seeds", "steps", "guidance", "scheduler", "device", "dtype", "batch_size")
REPORTED_COLUMNS = ("place", "setting", "method", "metric", "value", "sd", "source")
# Backends that put figures under the cells of a notebook; with another one (MPLBACKEND=Agg in the shell, say) a page would have none.
NOTEBOOK_BACKENDS = ("inline", "ipympl", "widget", "nbagg")


def told(estimate: Estimate | None, digits: int = 2) -> str:
    """An estimate with its interval as text, or "not measured"."""
    return NOT_MEASURED if estimate is None else estimate.text(digits)


def at_hand(read: Callable[..., Any], *details: Any, what: str = "") -> Any:
    """What `read` returns for `details`, or None and a printed line on what is missing where it raises InputError; `what` begins that line."""
    try:
        return read(*details)
    except InputError as missing:
        print(f"{what}: {NOT_MEASURED}. {missing}" if what else f"{NOT_MEASURED}: {missing}")
        return None


class Page:
    """One page under way: its parameters are checked, its claims at hand, its verdicts kept as they are made.

    Making it refuses parameters that the notebook does not have, gives those that came as text (``papermill -p``) their types, and sees that
    figures are shown. Raises InputError for a parameter that is unknown or of another kind, and for an unknown claim.
    """

    def __init__(self, *claims: str):
        self.started = time.monotonic()
        self.claims: dict[str, Claim] = {name: claim(name) for name in claims}
        self.verdicts: dict[str, Verdict] = {}
        self._glued: set[str] = set()
        self._namespace = vars(sys.modules["__main__"])  # a kernel's, too, is the main module's
        parameters.check_namespace(self._namespace)
        show_figures()

    @property
    def name(self) -> str:
        """This notebook's name, by which its reference run is kept."""
        return next(str(each.notebook) for each in self.claims.values())

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters of this notebook that an `Experiment` takes, by name."""
        return {name: self._namespace[name] for name in SETTINGS if name in self._namespace}

    def experiment(self, **changed: Any) -> Experiment:
        """The `Experiment` of this notebook's parameters; `changed` goes before them."""
        return Experiment(**{**self.settings, **changed})

    def reported(self, columns: Iterable[str] = REPORTED_COLUMNS) -> pd.DataFrame:
        """What the texts report for this page's claims, each figure once; what a text leaves out is a dash."""
        rows = pd.concat([each.reported_rows() for each in self.claims.values()]).drop_duplicates()
        return listed(rows, columns)

    def conclude(
        self, measured: Mapping[str, Measured], on: Experiment | str, because: Mapping[str, str] | None = None, trainings: Mapping[str, Any] | None = None
    ) -> None:
        """Judge every claim of the page by the registration and show the verdicts, with effects, intervals and numbers.

        `measured` has by claim an estimate for each of its parts (`memlib.judging.judge.judge`), in their order; a claim that it lacks was not
        measured, `because` of a sentence by claim. `trainings` has by claim the verdicts by training.
        """
        from IPython.display import display

        substrate, strict = (on, None) if isinstance(on, str) else (on.substrate.name, on.thresholds.get("copy_threshold"))
        for name in self.claims:
            reason, several = (because or {}).get(name, ""), (trainings or {}).get(name)
            self.verdicts[name] = concluded(name, measured.get(name, {}), substrate, strict, trainings=several, because=reason)
        display(*self.verdicts.values())

    def answer(self, *sentences: str) -> None:
        """Show the page's answer, in sentences that were made from its numbers."""
        from IPython.display import Markdown, display

        display(Markdown(" ".join(sentences)))

    def criteria(self) -> Captioned:
        """What each part asks and why, what the text's own figure answers, and what was measured; begins with when the criteria were fixed."""
        fixed = registration()
        before = " The model was measured before that, under other criteria." if any(v.before for v in self.verdicts.values()) else ""
        print(f"Fixed on {fixed.registered['date']} (data/registration.yml, commit {fixed.registered['commit']}).{before} Whole intervals decide, either way.")
        lines = []
        for name, verdict in self.verdicts.items():
            for part in verdict.parts:
                own = "none reported" if part.reported is None else f"{part.reported:.3g}: {part.reported_outcome}"
                wanted = f"{part.quantity} {part.asked}{f'; {part.why}' if part.why else ''}"
                lines.append({"claim": name, "part": part.part, "asked": wanted, "the text's own figure": own, "measured": told(part.estimate),
                              "outcome": f"{PART_SIGNS[part.outcome]} {part.outcome}"})  # fmt: skip
        return Captioned(pd.DataFrame(lines).set_index(["claim", "part"]), "What each part of a claim asks, and what came out")

    def what_would_change(self) -> Captioned:
        """How far each interval is from what would turn it, and how many prompts an undecided part would take."""
        lines = []
        for name, verdict in self.verdicts.items():
            for part in verdict.parts:
                if part.estimate is None or part.bound is None:
                    words = "a measurement"
                elif part.outcome == "undecided":
                    found = f"{many(part.needed)} {verdict.unit}s, if mean and spread stayed as they are" if part.needed else ""
                    words = found or "more of them; the mean lies on the bound"
                else:
                    far = abs(part.estimate.value - part.bound)
                    words = f"a mean {far:.2f} {'lower' if part.estimate.value > part.bound else 'higher'}, beyond {part.bound:.2f}"
                lines.append({"claim": name, "part": part.part, "outcome": part.outcome, "what would change it": words})
        return Captioned(pd.DataFrame(lines).set_index(["claim", "part"]), "What would change this verdict")

    def run_it(self) -> Captioned:
        """The command that runs this notebook elsewhere, and its parameters with what each means."""
        sources = self._namespace.get("In", [])
        # The first cell that explains what it assigns: some pages have no substrate.
        found = next((lines for source in sources if (lines := re.findall(r"^(\w+) = (.*?)  # (.*)$", source, re.MULTILINE))), [])
        examples = {"substrate": "sd14", "n_prompts": "4"}
        print(f".venv/bin/papermill notebooks/{self.name}.ipynb out.ipynb", *(f"-p {name} {examples[name]}" for name, *_ in found if name in examples))
        lines = [{"parameter": name, "here": repr(self._namespace.get(name)), "default": value, "meaning": words} for name, value, words in found]
        return Captioned(
            pd.DataFrame(lines, columns=["parameter", "here", "default", "meaning"]).set_index("parameter"), "Parameters (papermill -p name value)"
        )

    def print_verdicts(self, *only: str) -> None:
        """Print claim and verdict, one a line: the output that tests of the committed notebooks compare."""
        for name, verdict in self.verdicts.items():
            if not only or name in only:
                print(name, verdict.verdict)

    def glue(self, values: Mapping[str, Any], digits: int = 2) -> None:
        """Keep numbers for the prose under their names, estimates as text with `digits` decimals, and each verdict as ``verdict_<claim>``."""
        from myst_nb import glue

        verdicts = {f"verdict_{name}": verdict.verdict for name, verdict in self.verdicts.items()}
        for name, value in {**verdicts, **values}.items():
            if name in verdicts and name in self._glued:
                continue
            self._glued.add(name)
            glue(name, told(value, digits) if value is None or isinstance(value, Estimate) else value, display=False)

    def provenance(self, facts: Mapping[str, str], device: Any = None) -> Provenance:
        """The last line of a page that has no `Experiment` (whose own `provenance` says more)."""
        return provenance(facts, self.started, device)


def listed(rows: pd.DataFrame, columns: Iterable[str] = REPORTED_COLUMNS) -> pd.DataFrame:
    """Rows of what a text reports as a table for a page: these columns, numbered anew, a dash where the text gives nothing."""
    return rows[list(columns)].reset_index(drop=True).astype(object).fillna("–")


def reported_at(text: str, places: Iterable[str], methods: Iterable[str] | None = None) -> pd.DataFrame:
    """What `text` reports at these tables or sections, of `methods` alone where they are given (`memlib.judging.claims.reported`)."""
    rows = reported(text=text)
    rows = rows[rows["place"].isin(list(places))]
    return rows if methods is None else rows[rows["method"].isin(list(methods))]


def show_figures() -> None:
    """In a kernel, see that figures appear under their cells whatever MPLBACKEND says; elsewhere do nothing."""
    shell = parameters.shell()
    if shell is None or not hasattr(shell, "kernel"):
        return
    import matplotlib

    if not any(name in matplotlib.get_backend().lower() for name in NOTEBOOK_BACKENDS):
        shell.run_line_magic("matplotlib", "inline")
