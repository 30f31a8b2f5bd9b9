"""`fastsparse verify`."""

from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import Json, Packed, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._table import show

__all__ = ["verify"]


def verify(
    path: Packed,
    against: Annotated[
        Path | None, typer.Option(metavar="SRC", help="The dense checkpoint that it was made from.")
    ] = None,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Check every tensor of a checkpoint; with --against, that nothing is lost that was not to go."""
    with progress_of(as_json) as progress:
        report = checkpoint.verify(path, against, progress=progress, trust_shards=trust_shards)
    show(report, as_json)
