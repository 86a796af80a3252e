"""The one command of the package: ``memlib --help`` is a table of its contents.

Commands are thin: each reads its options, calls a function of a room, and prints what came out. What a command needs is imported when it runs, so that
help costs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from memlib.base.errors import exit_status
from memlib.companion.commands import bench, book, check, lists, report, results, scale, store, training

STOPPED = "Stopped; what was finished is kept, and the same command goes on from there."

app = typer.Typer(
    name="memlib",
    help="Experiments on why text-to-image diffusion models reproduce training pictures, and what helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(book.app, name="book")
app.add_typer(training.minisd, name="minisd")
app.add_typer(training.minisd2, name="minisd2")
app.add_typer(lists.app, name="prompts")
app.add_typer(store.app, name="store")
app.add_typer(bench.app, name="bench")
app.add_typer(results.app, name="results")
app.add_typer(scale.app, name="distributed")
for command in (
    report.report, report.convert, check.check, check.coverage, check.premises, check.published, check.methods, check.cost, lists.weights, training.finetune,
):  # fmt: skip
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`arguments`, by default the process's own) and return its exit status.

    0 after success, 1 after bad input (one sentence on stderr) or where a check found something, 2 after a wrong option, 130 after Ctrl-C.
    """

    def run() -> int | None:
        command = typer.main.get_command(app)
        try:
            status = command.main(args=None if arguments is None else list(arguments), prog_name="memlib", standalone_mode=False)
        except Exception as error:
            if not hasattr(error, "show"):  # a wrong option is an error that shows itself; its class is not public
                raise
            error.show()
            return 2
        if status == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return status

    return exit_status(run, STOPPED)
