"""``memlib results``: scores that travel from machine to machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Pass the table of scores of a substrate on, and take in that of others.", no_args_is_help=True)


@app.command("export")
def export(
    substrate: Annotated[str, typer.Argument(help="A substrate's name or a checkpoint's folder.")],
    out: Annotated[Path | None, typer.Option(help="The Parquet file to write (default: scores-NAME.parquet).")] = None,
) -> None:
    """Write all that was measured here on a substrate to one file, with its provenance."""
    from memlib.results import exchange

    path = out or Path(f"scores-{Path(substrate).name}.parquet")
    counts = exchange.export(substrate, path)
    print(f"{path}: {', '.join(f'{count:,} rows of {table}' for table, count in counts.items())}. It holds prompts and numbers, no pictures.")


@app.command("import")
def take_in(file: Annotated[Path, typer.Argument(help="A file that `memlib results export` wrote.")]) -> None:
    """Put somebody's rows among those here, marked as imported; rows that conflict or say nothing of where they come from are refused."""
    from memlib.results import exchange

    taken = exchange.take_in(file)
    print(f"{', '.join(f'{count:,} new rows in {table}' for table, count in taken.new.items())}; {taken.there:,} were here already.")
    for run in taken.runs:
        print(f"  {run['substrate']}: {run['sampler']}; {run['hardware']}; {run['date']}; commit {run['commit']}; {run['versions']}")
