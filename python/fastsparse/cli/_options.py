"""Options and arguments that several commands have."""

from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._recipe import check_expression
from fastsparse.patterns import Pattern, pattern

__all__ = [
    "Bits",
    "Expressions",
    "Json",
    "Overwrite",
    "Packed",
    "Source",
    "TrustShards",
    "WeightBits",
    "parse_expression",
    "parse_pattern",
]


Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and progress on stderr as JSON lines.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="A .safetensors file or a model folder.")]
Packed = Annotated[Path, typer.Argument(metavar="PATH", help="A .safetensors file or a model folder.")]
TrustShards = Annotated[
    bool, typer.Option("--trust-shards", help="Take the shards of a folder as they are where the index disagrees.")
]
Expressions = list[str] | None


class Bits(IntEnum):
    """In how many bits kept weights are stored, where that is not their dtype."""

    EIGHT = 8


WeightBits = Annotated[
    Bits | None, typer.Option("--bits", help="Store what is kept as int8, with a scale for each row: 8.")
]


def parse_pattern(text: str) -> Pattern:
    try:
        return pattern(text)
    except FastSparseError as error:
        raise typer.BadParameter(str(error)) from None


def parse_expression(text: str) -> str:
    try:
        check_expression("RE", text)
    except FastSparseError as error:
        raise typer.BadParameter(str(error)) from None
    return text
