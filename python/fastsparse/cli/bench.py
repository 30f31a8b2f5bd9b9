"""`fastsparse bench`."""

import json
from enum import StrEnum
from typing import Annotated

import typer

__all__ = ["bench"]


def _shape(text: str) -> tuple[int, int]:
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        raise typer.BadParameter(f"{text!r} is no shape: expected rows and columns, for example 4096x11008")
    return int(sizes[0]), int(sizes[1])


class Computed(StrEnum):
    """What the layers that are measured consist of."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def bench(
    shape: Annotated[str, typer.Option(help="Rows and columns of the layer.")] = "4096x11008",
    dtype: Annotated[Computed, typer.Option(help="Dtype of weights and activations.")] = Computed.float32,
    batch: Annotated[list[int], typer.Option(min=1, help="Rows of activations; may be repeated.")] = [1, 4, 16, 64],  # noqa: B006
    sparsity: Annotated[list[int], typer.Option(min=0, max=100, help="Percent; may be repeated.")] = [50, 75, 90, 95],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure, about.")] = 6.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure dense layers against packed ones here: from which sparsity on they win, at which batch size."""
    from fastsparse.cli import _measure  # with what it needs, nothing the other commands do

    result = _measure.measure(
        _shape(shape), dtype.value, batch, [percent / 100 for percent in sorted(sparsity)], seconds
    )
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)
