"""`python -m memlib.companion.bench`: times what is registered, and the sampling of pictures, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from memlib.base.errors import exit_status

COMMANDS = {
    "mitigations": "time all mitigations as a ratio to none",
    "sampling": "time the sampling of pictures, lever by lever, against diffusers' pipeline",
    "workers": "time several worker processes against one",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from memlib.companion.bench import mitigations, sampling, workers

    main = argparse.ArgumentParser(prog="python -m memlib.companion.bench", description=__doc__.split(": ", 1)[1])
    commands = main.add_subparsers(dest="command", required=True)
    for name, module in (("mitigations", mitigations), ("sampling", sampling), ("workers", workers)):
        command = commands.add_parser(name, help=COMMANDS[name], description=COMMANDS[name])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 after bad input, 130 after an interruption."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: options.run(options), "Stopped; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
