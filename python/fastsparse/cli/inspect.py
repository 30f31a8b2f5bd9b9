"""`fastsparse inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import Json, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import print_json, show

__all__ = ["inspect"]


def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help=".safetensors files or model folders.")],
    headers: Annotated[bool, typer.Option("--headers", help="Read headers only, no zeros of dense tensors.")] = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Show what checkpoints hold, and how sparse it is. Of several, --json prints a list.

    Dense tensors are read once: "found" is the strictest pattern that their zeros obey.
    """
    reports = []
    for path in paths:
        with progress_of(as_json) as progress:
            reports.append(checkpoint.inspect(path, detect=not headers, progress=progress, trust_shards=trust_shards))
    if len(paths) == 1:
        show(reports[0], as_json)
        return
    if as_json:
        print_json([report.to_dict() for report in reports])
        return
    for at, report in enumerate(reports):
        print(f"{report.source}\n{report}" if at == 0 else f"\n{report.source}\n{report}")
