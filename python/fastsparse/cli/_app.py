"""The application that the commands register with."""

from typing import Annotated

import typer

from fastsparse import _backend

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Prune checkpoints on the CPU and store them as bit masks plus kept values.",
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
