"""What every page of the book does around its own story: it starts, states its claims, judges them, and says where its numbers come from.

A notebook makes one `Page` in the cell after its parameters. What differs from page to page (which pictures, which quantities) stays in the notebook.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment import parameters
from memlib.experiment.provenance import Provenance, provenance
from memlib.experiment.run import Experiment
from memlib.judging.claims import Claim, claim, judge, not_testable, reported
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import Verdict

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
    def settings(self) -> dict[str, Any]:
        """The parameters of this notebook that an `Experiment` takes, by name."""
        return {name: self._namespace[name] for name in SETTINGS if name in self._namespace}

    def experiment(self, **changed: Any) -> Experiment:
        """The `Experiment` of this notebook's parameters; `changed` goes before them."""
        return Experiment(**{**self.settings, **changed})

    def show_claims(self, thresholds: Mapping[str, float] | None = None, quantities: bool = False) -> None:
        """Print each claim with its criterion and what would refute it, with `quantities` in words, and the numbers that criteria name."""
        for each in self.claims.values():
            print(f"{each.id}  {each.statement}\n     holds if: {each.criterion}\n     refuted if: {each.refuted_if.words}")
            print("".join(f"     {name}: {words}\n" for name, words in each.quantities.items()) if quantities else "")
        if thresholds:
            print(", ".join(f"{name}: {value:.3f}" for name, value in thresholds.items()))

    def reported(self, columns: Iterable[str] = REPORTED_COLUMNS) -> pd.DataFrame:
        """What the texts report for this page's claims, each figure once; what a text leaves out is a dash."""
        rows = pd.concat([each.reported_rows() for each in self.claims.values()]).drop_duplicates()
        return listed(rows, columns)

    def unmeasured(self) -> dict[str, Estimate | None]:
        """The quantities of this page's claims, all of them None: what a page begins with that fills in what it can measure."""
        return dict.fromkeys(name for each in self.claims.values() for name in each.quantities)

    def judge(
        self,
        quantities: Mapping[str, Estimate | None],
        on: Experiment | str,
        own: Mapping[str, Mapping[str, Estimate | None]] | None = None,
        not_testable_because: Mapping[str, str] | None = None,
        show: bool = True,
        **options: Any,
    ) -> dict[str, Verdict]:
        """Judge every claim of the page, show the verdicts (unless `show` is False) and return them by claim.

        `quantities` serve all claims; `own` has, by claim, those that go before them; `on` is the run, or the name of what was measured;
        `not_testable_because` has by claim the sentence why it cannot be tested here. `options` go to `memlib.judging.claims.judge`.
        Raises InputError for a quantity that a criterion needs and that was not passed.
        """
        from IPython.display import display

        substrate, thresholds = (on, {}) if isinstance(on, str) else (on.substrate.name, on.thresholds)
        for name, each in self.claims.items():
            if reason := (not_testable_because or {}).get(name):
                self.verdicts[name] = not_testable(each, substrate, reason)
                continue
            at_hand = {**quantities, **(own or {}).get(name, {})}
            self.verdicts[name] = judge(each, {q: at_hand[q] for q in each.quantities if q in at_hand}, thresholds, substrate, **options)
        if show:
            display(*self.verdicts.values())
        return self.verdicts

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
