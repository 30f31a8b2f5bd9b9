"""`fastsparse inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import Json, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import print_json

__all__ = ["inspect"]


def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help=".safetensors files or model folders.")],
    headers: Annotated[bool, typer.Option("--headers", help="Read headers only, no zeros of dense tensors.")] = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Show what checkpoints hold, and how sparse it is. Of several, --json prints a list.

    Dense tensors are read once: "found" is the strictest pattern that their zeros obey, beyond their share.
    """
    if as_json and not headers and len(paths) > 1:
        for path in paths:  # what cannot be opened is named before any tensor is read
            checkpoint.inspect(path, trust_shards=trust_shards)
    reports = []
    for at, path in enumerate(paths):
        with progress_of(as_json) as progress:
            report = checkpoint.inspect(path, detect=not headers, progress=progress, trust_shards=trust_shards)
        if as_json:
            reports.append(report.to_dict())
        elif len(paths) == 1:
            print(report)
        else:
            print(f"{report.source}\n{report}" if at == 0 else f"\n{report.source}\n{report}", flush=True)
    if as_json:
        print_json(reports if len(paths) > 1 else reports[0])
