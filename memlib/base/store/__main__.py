"""The commands that look after a store: python -m memlib.base.store verify | stats | merge OTHER ... | prune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from memlib.base.errors import InputError, exit_status
from memlib.base.paths import store_folder
from memlib.base.store.care import Chosen, Merged, merge, open_store, prune, size, stats, verify
from memlib.base.store.entries import KINDS

SHOWN = 10  # Paths printed of each kind of finding.


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m memlib.base.store", description="Looks after the pictures and scores of a store.")
    commands = main.add_subparsers(dest="command", required=True)
    texts = {
        "verify": "read every entry and compare it with its checksum and key; status 1 if one is broken",
        "stats": "how many entries there are, how large, and what they were made with",
        "merge": "take over what other stores hold; a sound entry is never overwritten",
        "prune": "say which entries an age or recipe means, and with --yes remove them",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--store", type=Path, help="the store's folder (default: MEMLIB_STORE, or _build/store)")
        if name == "verify":
            command.add_argument("--remove", action="store_true", help="remove broken entries (they would be made again anyway)")
        if name == "merge":
            command.add_argument("others", nargs="+", type=Path, metavar="OTHER", help="another store's folder")
        if name == "prune":
            command.add_argument("--older-than", type=float, metavar="DAYS", help="entries written more than so many days ago")
            command.add_argument("--where", action="append", default=[], metavar="NAME=VALUE",
                                 help="entries made with this, such as steps=10, guidance.scale=7.5 or weights=0123abcd")  # fmt: skip
            command.add_argument("--kind", choices=tuple(KINDS), help="pictures or scores alone")
            command.add_argument("--yes", action="store_true", help="remove them; without it nothing is changed")
    return main


def run(options: argparse.Namespace) -> int:
    """Carry out one command; the exit status is 1 where `verify` leaves broken entries."""
    store = open_store(options.store or store_folder())
    if options.command == "stats":
        for row in stats(store, progress=True):
            print(f"{row['kind']:9} {row['entries']:8,} {size(row['bytes']):>9}  {row['weights']:12}  {row['made with']}")
        return 0
    if options.command == "merge":
        for other in options.others:
            print(f"{other}: {_merged(merge(store, open_store(other), progress=True))}")
        return 0
    if options.command == "prune":
        chosen = Chosen(options.older_than, dict(map(_pair, options.where)), (options.kind,) if options.kind else tuple(KINDS))
        count, total = prune(store, chosen, remove=options.yes, progress=True)
        print(f"{count:,} entries, {size(total)}, {'removed.' if options.yes else 'would be removed; add --yes to do so.'}")
        return 0
    found = verify(store, progress=True)
    print(f"{found.sound['pictures']:,} pictures and {found.sound['scores']:,} scores are sound.")
    _list("broken", found.broken, store.root)
    _list("foreign", found.foreign, store.root)
    if options.remove:
        for path in found.broken:
            path.unlink(missing_ok=True)
        print(f"{len(found.broken):,} broken entries removed.")
        return 0
    return int(bool(found.broken))


def _merged(done: Merged) -> str:
    parts = [f"{done.taken:,} taken over", f"{done.already_there:,} were there"]
    rest = ((done.repaired, "of our own were broken and replaced"), (done.broken, "broken there, left"), (done.foreign, "no entries, left"))
    parts += [f"{count:,} {what}" for count, what in rest if count]
    if done.conflicts:
        parts.append(f"{len(done.conflicts):,} differ from ours, which were kept ({', '.join(p.stem[:12] for p in done.conflicts[:SHOWN])})")
    return ", ".join(parts) + "."


def _list(what: str, paths: Sequence[Path], root: Path) -> None:
    for path in paths[:SHOWN]:
        print(f"{what}: {path.relative_to(root)}")
    if len(paths) > SHOWN:
        print(f"{what}: {len(paths) - SHOWN:,} more")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise InputError(f"What entries were made with is written NAME=VALUE, not {text!r}.")
    return name.strip(), value.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options), "Stopped; every entry is whole, and what was taken over or removed so far stays so.")


if __name__ == "__main__":
    sys.exit(main())
