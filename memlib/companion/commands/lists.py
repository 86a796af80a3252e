"""``memlib prompts`` and ``memlib weights``: published lists and metrics' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlib.base.declared import Count
from memlib.base.errors import InputError, NotMeasured
from memlib.base.writing import write_table
from memlib.companion.commands.options import option

app = typer.Typer(help="Published prompt lists: what there is, fetching, token lengths, the main set of clip.", no_args_is_help=True)


@app.command("list")
def names() -> None:
    """Names, licences and contents of the published lists, and by what their files are recognised."""
    from memlib.prompts.published import load_sources, pinned

    for name, source in load_sources().items():
        print(f"{name:16} {source.title} [licence: {source.licence}; {pinned(source)}]")


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of `memlib prompts list`, or all.")]) -> None:
    """Fetch published lists into the cache."""
    from memlib.prompts import published

    sources = published.load_sources()
    for name in dict.fromkeys(sources if "all" in names else names):
        if name not in sources:
            raise InputError(f"Unknown published list {name!r}: use one of {', '.join(sources)}, or all.")
        print(f"{name}: {published.fetch(sources[name])} ({published.pinned(sources[name])})")


@app.command()
def lengths(
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the lists that are not at hand.")] = False,
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="Webster's labels (columns caption, overfit_type).")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write (default: data/token_lengths.csv).")] = None,
) -> None:
    """Count the token lengths of the published lists."""
    from memlib.prompts import lengths as counting
    from memlib.prompts.published import load_sources

    path, table = output or counting.statistics_file(), counting.statistics(fetch, labels)
    try:
        write_table(path, table)
    except OSError as error:
        raise InputError(f"The statistics cannot be written to {path} ({error.strerror}): name another file.") from error
    print(table[["list", "category", "n", "median", "longest", "at_least_40", "at_least_40_with_special"]].to_string(index=False))
    lacking = sorted({source.name for source in load_sources().values()} - set(table["list"]))
    print(f"{path}; not at hand: {', '.join(lacking) or 'none'}")


@app.command()
def select(
    substrate: str = "sd14",
    out: Annotated[Path, typer.Option(help="The prompt file to write.")] = Path("clip-458.csv"),
    bound: Annotated[float, option(float, "Lowest copy similarity, with every seed.")] = 0.75,
    seeds: Annotated[int, option(Count)] = 10,
    verbatim: Annotated[str, typer.Option(help="A prompt set or file of matching-verbatim prompts.")] = "webster-mv86",
    addresses: Annotated[str, typer.Option(help="A list with their addresses.")] = "webster500",
    candidates: Annotated[str, typer.Option(help="A list of further prompts with addresses.")] = "membench",
    count: Annotated[int | None, option(Count, "At most so many of these, for a trial.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where training pictures are kept (default: MEMLIB_TRAINING, or ~/.cache/memlib/training).")] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Leave out prompts without a training picture.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try dead addresses again.")] = False,
) -> None:
    """Build the main prompt set of clip (458 prompts) from the published lists, by its own rules."""
    from memlib.companion import selection

    found = selection.from_lists(substrate, (verbatim, addresses, candidates), count, seeds, bound, folder, retry)
    if complete:
        found.table = found.table[found.table["training_picture"] != ""]
    write_table(out, found.table)
    print(found.as_text())
    print(f"Written to {out}: give it to a notebook as -p memorized {out.resolve()}.")


def weights(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Files to fetch, or all; without a name they are listed.")] = None,
) -> int:
    """List the weights of the published metrics, or fetch them."""
    from memlib.metrics.weights import table, weight_file

    failed = 0
    for name in table() if names in (None, [], ["all"]) else names:
        try:
            print(f"{name}: {weight_file(name, download=bool(names))}")
        except (InputError, NotMeasured) as error:
            failed += bool(names)
            print(f"{name}: {error}")
    return int(failed > 0)
