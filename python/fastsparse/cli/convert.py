"""`fastsparse convert`."""

from enum import StrEnum
from typing import Annotated

import typer

from fastsparse import compressed_tensors
from fastsparse.cli._options import Json, Overwrite, Source, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import show

__all__ = ["convert"]


class Layout(StrEnum):
    """What `convert` writes."""

    SPARSE_BITMASK = "sparse-bitmask"
    SPARSE_24 = "sparse-24"
    DENSE = "dense"


def convert(
    src: Source,
    dst: Annotated[str, typer.Argument(metavar="DST", help="What to write.")],
    to: Annotated[Layout, typer.Option("--to", help="The layout, one of those of compressed-tensors.")],
    overwrite: Overwrite = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of compressed-tensors to another layout.

    Read are the layouts of its versions 0.3 to 0.14; nothing is pruned.
    """
    with progress_of(as_json) as progress:
        report = compressed_tensors.convert(
            src, dst, to.value, progress=progress, overwrite=overwrite, trust_shards=trust_shards
        )
    show(report, as_json)
