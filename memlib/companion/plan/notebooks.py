"""Carrying out a notebook's cells for a plan: in this process, with placeholders in the place of figures, pictures and scores."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import nbformat

from memlib.base.errors import InputError
from memlib.companion.plan.counting import Counter, counting
from memlib.companion.plan.demand import Demand
from memlib.companion.plan.store import PlanningStore

SHOWN = 160  # Characters of an exception's text that a gap quotes.
# Imported before stores are replaced, so that what notebooks import later holds no stand-in afterwards.
WITH_STORES = ("memlib.experiment.run", "memlib.sampling.calibration", "memlib.probes.detectors", "memlib.mitigations", "memlib.mitigations.weights")


class Planner:
    """Plans notebooks one after the other, so that what several ask for counts once; use it as a context manager.

    Substrates are loaded once each. `device` and `dtype` are those of the notebooks' own parameters.
    """

    def __init__(self, store: str | Path | None = None):
        self.counter = Counter()
        self.store = PlanningStore(store, self.counter)
        self.substrates: dict[tuple, Any] = {}
        self._open = ExitStack()
        self._began = False

    def __enter__(self) -> Planner:
        import matplotlib

        self._open.enter_context(matplotlib.rc_context({"backend": "agg"}))
        self._open.enter_context(self._stand_ins())
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def demand(self, notebook: Path, parameters: Mapping[str, Any]) -> Demand:
        """What `notebook` asks for with these parameters, beyond what those before it asked for.

        A cell that fails is a gap, and the next ones are tried. Raises InputError where the notebook itself refuses to begin: for a
        substrate that is not at hand, for instance.
        """
        self.store.demand = demand = Demand(notebook.stem)
        self.counter.rows, self._began = 0, False
        names: dict[str, Any] = {"__name__": "__main__"}
        cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        with contextlib.chdir(notebook.parent), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for number, cell in enumerate(cells, 1):
                try:
                    exec(compile(_python(cell.source), f"{notebook.name}, cell {number}", "exec"), names)
                except Exception as error:
                    if isinstance(error, InputError) and not self._began:
                        raise
                    demand.gaps.append(f"its cell {number} cannot be followed ({type(error).__name__}: {str(error)[:SHOWN]})")
                if "parameters" in cell.metadata.get("tags", []):
                    names.update(parameters)
        demand.evaluations += self.counter.rows  # timings and the like, which go past the store
        return demand

    @contextmanager
    def _stand_ins(self) -> Iterator[None]:
        import IPython.display
        import matplotlib.pyplot
        import myst_nb

        import memlib.experiment.run
        import memlib.models.substrate
        from memlib.base.store import Store
        from memlib.mitigations import pruning
        from memlib.results import figures as plots
        from memlib.sampling.stored import PictureStore

        for name in WITH_STORES:
            importlib.import_module(name)
        # Thresholds and weights to prune are kept in a store that is opened where they are looked for, whatever the experiment's is.
        holders = [
            (module, kind.__name__) for name, module in list(sys.modules.items()) for kind in (Store, PictureStore)
            if name.startswith("memlib.") and not name.startswith("memlib.companion.plan") and getattr(module, kind.__name__, None) is kind
        ]  # fmt: skip
        replaced: list[tuple[Any, str, Any]] = [
            *((module, name, self._opened) for module, name in holders if module.__name__ not in ("memlib.base.store", "memlib.sampling.stored")),
            (Store, "write", _refuse_to_write),
            (memlib.experiment.run, "load", self._loader(memlib.experiment.run.load)),
            (memlib.models.substrate, "load", self._loader(memlib.models.substrate.load)),
            (myst_nb, "glue", lambda *_, **__: None),
            (IPython.display, "display", lambda *_, **__: None),
            (matplotlib.pyplot, "show", lambda *_, **__: None),
        ]
        replaced += [(plots, name, MagicMock()) for name in plots.__all__ if callable(getattr(plots, name))]
        with ExitStack() as stack:
            for owner, name, value in replaced:
                stack.enter_context(patch.object(owner, name, value))
            for remembered in (pruning._found, pruning._spent):
                stack.enter_context(patch.dict(remembered))
            yield

    def _opened(self, *_: Any, **__: Any) -> PlanningStore:
        self._began = True
        return self.store

    def _loader(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(name: str | Path, device: Any = "auto", dtype: Any = "auto", **options: Any) -> Any:
            key = (str(name), str(device), str(dtype))
            if key not in self.substrates:
                self.substrates[key] = load(name, device, dtype, **options)
                self._open.enter_context(counting(self.substrates[key], self.counter))
            return self.substrates[key]

        return loaded


def _refuse_to_write(store: Any, path: Path, content: bytes) -> Path:
    """In the place of a store's writing: what a network that only counts gave must never be taken for a result."""
    raise RuntimeError(f"a plan writes nothing into the store, and {path.name} was to be written")


def _python(source: str) -> str:
    """A cell's source without IPython's own lines."""
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in source.splitlines())


def quiet_threads() -> None:
    """Keep tokenizers from warning of processes that are begun later."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
