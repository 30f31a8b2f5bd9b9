"""Options and arguments that several commands have."""

from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._foreign import refuse_missing
from fastsparse.checkpoint._recipe import check_expression, meant_pattern
from fastsparse.patterns import Pattern

__all__ = [
    "Bits",
    "Clip",
    "Expressions",
    "Json",
    "Model",
    "Overwrite",
    "Packed",
    "Source",
    "TrustShards",
    "WeightBits",
    "parse_expression",
    "parse_pattern",
    "parse_share",
]


def _here(path: Path) -> Path:
    refuse_missing(path)
    return path


Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and progress on stderr as JSON lines.")]
Clip = Annotated[
    float | None,
    typer.Option(metavar="X", help="Count no token for more than X times the median norm; 2 suits language models."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="A .safetensors file or a model folder.")]
Packed = Annotated[Path, typer.Argument(metavar="PATH", help="A .safetensors file or a model folder.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The folder of a language model, with its tokenizer.", callback=_here)
]
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
        return meant_pattern(text)
    except FastSparseError as error:
        raise typer.BadParameter(str(error)) from None


def parse_expression(text: str) -> str:
    try:
        check_expression("RE", text)
    except FastSparseError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def parse_share(text: str | float) -> float:
    """``45%`` or ``0.45`` as a share from 0 to 1."""
    number = str(text).strip()
    try:
        share = float(number.removesuffix("%")) / 100 if number.endswith("%") else float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        meant = f"; did you mean {number}%?" if 1 < share <= 100 else ""
        raise typer.BadParameter(f"expected a share such as 45% or 0.45, got {number!r}{meant}")
    return share
