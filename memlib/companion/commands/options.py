"""Options that several commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Substrate = Annotated[str, typer.Option(help="A substrate's name or a checkpoint's folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of sampling.")]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance.")]
Scheduler = Annotated[str, typer.Option(help="ddim, dpm or another that sampling knows.")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="The store's folder (default: MEMLIB_STORE, or _build/store).")]
Table = Annotated[Path | None, typer.Option("--csv", help="Write the table to this file too.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (one each for two commands side by side).")]
