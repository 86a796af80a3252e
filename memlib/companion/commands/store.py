"""``memlib store``: looks after kept pictures and scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlib.base.declared import NotNegative
from memlib.base.errors import InputError
from memlib.companion.commands.options import StoreFolder, option

if TYPE_CHECKING:  # commands import what they need when they are called, so that `memlib --help` comes at once
    from memlib.base.store import Store

app = typer.Typer(help="Look after the pictures and scores of a store.", no_args_is_help=True)
SHOWN = 10  # Paths printed of each kind of finding.


@app.command()
def stats(store: StoreFolder = None) -> None:
    """How many entries there are, how large, and what they were made with."""
    from memlib.base.store import care

    for row in care.stats(_open(store), progress=True):
        print(f"{row['kind']:9} {row['entries']:8,} {care.size(row['bytes']):>9}  {row['weights']:12}  {row['made with']}")


@app.command()
def verify(
    store: StoreFolder = None, remove: Annotated[bool, typer.Option("--remove", help="Remove broken entries (they would be made again anyway).")] = False
) -> int:
    """Read every entry and compare it with its checksum and key; status 1 if one is broken."""
    from memlib.base.store import care

    opened = _open(store)
    found = care.verify(opened, progress=True)
    print(f"{found.sound['pictures']:,} pictures and {found.sound['scores']:,} scores are sound.")
    for what, paths in (("broken", found.broken), ("foreign", found.foreign)):
        for path in paths[:SHOWN]:
            print(f"{what}: {path.relative_to(opened.root)}")
        if len(paths) > SHOWN:
            print(f"{what}: {len(paths) - SHOWN:,} more")
    if remove:
        for path in found.broken:
            path.unlink(missing_ok=True)
        print(f"{len(found.broken):,} broken entries removed.")
        return 0
    return int(bool(found.broken))


@app.command()
def merge(others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Other stores' folders.")], store: StoreFolder = None) -> None:
    """Take over what other stores hold; a sound entry is never overwritten."""
    from memlib.base.store import care

    opened = _open(store)
    for other in others:
        done = care.merge(opened, care.open_store(other), progress=True)
        parts = [f"{done.taken:,} taken over", f"{done.already_there:,} were there"]
        rest = ((done.repaired, "of our own were broken and replaced"), (done.broken, "broken there, left"), (done.foreign, "no entries, left"))
        parts += [f"{count:,} {what}" for count, what in rest if count]
        if done.conflicts:
            shown = ", ".join(path.stem[:12] for path in done.conflicts[:SHOWN])
            parts.append(f"{len(done.conflicts):,} differ from ours, which were kept ({shown})")
        print(f"{other}: {', '.join(parts)}.")


@app.command()
def prune(
    store: StoreFolder = None,
    older_than: Annotated[float | None, option(NotNegative, "Entries written more than so many days ago.", metavar="DAYS")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Entries made with this: steps=10, guidance.scale=7.5, weights=0123abcd.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="pictures or scores alone.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it nothing is changed.")] = False,
) -> None:
    """Say which entries an age or recipe means, and with --yes remove them."""
    from memlib.base.store import care
    from memlib.base.store.entries import KINDS

    if kind is not None and kind not in KINDS:
        raise InputError(f"Unknown kind {kind!r}: use {' or '.join(KINDS)}.")
    chosen = care.Chosen(older_than, dict(map(_pair, where or ())), (kind,) if kind else tuple(KINDS))
    count, total = care.prune(_open(store), chosen, remove=yes, progress=True)
    print(f"{count:,} entries, {care.size(total)}, {'removed.' if yes else 'would be removed; add --yes to do so.'}")


def _open(folder: Path | None) -> Store:
    from memlib.base.paths import store_folder
    from memlib.base.store.care import open_store

    return open_store(folder or store_folder())


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise InputError(f"What entries were made with is written NAME=VALUE, not {text!r}.")
    return name.strip(), value.strip()
