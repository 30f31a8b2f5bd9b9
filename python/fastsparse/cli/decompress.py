"""`fastsparse decompress`."""

from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import Json, Overwrite, Source, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import show

__all__ = ["decompress"]


def decompress(
    src: Source,
    dst: Annotated[str, typer.Argument(metavar="DST", help="What to write.")],
    overwrite: Overwrite = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Store a checkpoint with all of its tensors dense."""
    with progress_of(as_json) as progress:
        report = checkpoint.decompress(src, dst, progress=progress, overwrite=overwrite, trust_shards=trust_shards)
    show(report, as_json)
