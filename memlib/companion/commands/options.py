"""Options that several commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge

from memlib.base.declared import Count, check, in_words
from memlib.experiment.parameters import KINDS

TwoOrMore = Annotated[int, Ge(2)]


def option(kind: Any, help: str = "", **others: Any) -> Any:
    """An option whose value is checked as a parameter of this kind is everywhere (`memlib.base.declared`); each of its values where it may be repeated."""

    def checked(parameter: typer.CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                check(one, kind, f"option --{str(parameter.name).replace('_', '-')}")
        return value

    return typer.Option(help=f"{help} [{in_words(kind)}]".strip(), callback=checked, **others)


Substrate = Annotated[str, typer.Option(help="A substrate's name or a checkpoint's folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")]
Steps = Annotated[int, option(KINDS["steps"], "Steps of sampling.")]
Guidance = Annotated[float, option(KINDS["guidance"], "Scale of classifier-free guidance.")]
Scheduler = Annotated[str, typer.Option(help="ddim, dpm or another that sampling knows.")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="The store's folder (default: MEMLIB_STORE, or _build/store).")]
Table = Annotated[Path | None, typer.Option("--csv", help="Write the table to this file too.")]
Threads = Annotated[int | None, option(Count, "CPU threads (one each for two commands side by side).")]
