"""`fastsparse bench`."""

from enum import StrEnum
from typing import Annotated

import typer

from fastsparse.cli._options import parse_share
from fastsparse.cli._show import print_json

__all__ = ["bench"]


def _shape(text: str) -> tuple[int, int]:
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        raise typer.BadParameter(f"{text!r} is no shape: expected rows and columns, for example 4096x11008")
    return int(sizes[0]), int(sizes[1])


def _percent(text: str | float) -> float:
    """A share; whole numbers are percent here."""
    return parse_share(f"{text}%" if str(text).isdecimal() else text)


_BATCH = "Rows of activations; may be repeated."


class Computed(StrEnum):
    """What the layers that are measured consist of."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def bench(
    shape: Annotated[str, typer.Option(metavar="ROWSxCOLUMNS", help="Size of the layer.")] = "4096x11008",
    dtype: Annotated[Computed, typer.Option(help="Dtype of weights and activations.")] = Computed.float32,
    batch: Annotated[list[int], typer.Option(metavar="N", min=1, help=_BATCH)] = [1, 4, 16, 64],  # noqa: B006
    sparsity: Annotated[
        list[float],
        typer.Option(
            parser=_percent,
            metavar="SHARE",
            show_default="50%, 75%, 90%, 95%",
            help="Share of zeros, such as 90%, 90 or 0.9; may be repeated.",
        ),
    ] = [0.5, 0.75, 0.9, 0.95],  # noqa: B006
    seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to measure, about.")] = 6.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure dense layers against packed ones on this machine.

    The result says from which sparsity on the packed ones win, at which batch size.
    """
    from fastsparse.cli import _measure  # with what it needs, nothing the other commands do

    result = _measure.measure(_shape(shape), dtype.value, batch, sorted(sparsity), seconds)
    if as_json:
        print_json(result.to_dict())
    else:
        print(result)
