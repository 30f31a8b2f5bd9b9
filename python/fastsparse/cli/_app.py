"""The application that the commands register with."""

from typing import Annotated

import typer

from fastsparse import _backend

__all__ = ["app"]

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Prune checkpoints on the CPU and store them as bit masks plus kept values.",
    epilog="""
    Begin with: fastsparse demo. A command's own --help has examples.

    Exit codes: 0 done, 1 failed (one line on stderr says why), 2 the command line
    was not understood, 130 interrupted. Data is written to stdout, messages and progress to stderr.
    """,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(_backend.version())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...
