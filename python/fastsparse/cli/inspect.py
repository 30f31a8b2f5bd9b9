"""`fastsparse inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import Json, TrustShards
from fastsparse.cli._show import print_json, show

__all__ = ["inspect"]


def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help=".safetensors files or model folders.")],
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Show what checkpoints hold, from their headers. Of several, --json prints a list."""
    if len(paths) == 1:
        show(checkpoint.inspect(paths[0], trust_shards=trust_shards), as_json)
        return
    reports = [checkpoint.inspect(path, trust_shards=trust_shards) for path in paths]
    if as_json:
        print_json([report.to_dict() for report in reports])
        return
    for at, report in enumerate(reports):
        print(f"{report.source}\n{report}" if at == 0 else f"\n{report.source}\n{report}")
