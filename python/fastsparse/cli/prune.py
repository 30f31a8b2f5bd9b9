"""`fastsparse prune`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastsparse.cli._options import Expressions, Json, Model, Overwrite, WeightBits, parse_expression, parse_pattern
from fastsparse.packed import byte_count
from fastsparse.patterns import Pattern

__all__ = ["prune"]


class Method(StrEnum):
    """How the weights are chosen and changed."""

    sparsegpt = "sparsegpt"
    wanda = "wanda"
    alps = "alps"
    magnitude = "magnitude"


class Allocation(StrEnum):
    """How the share is spread over the layers."""

    uniform = "uniform"
    owl = "owl"
    loss = "loss"


def prune(
    model: Model,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The packed folder to write.")],
    pattern: Annotated[
        Pattern, typer.Option("--pattern", parser=parse_pattern, metavar="PATTERN", help="50%, 50%/row, 2:4, …")
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Calibration text, or .safetensors with input_ids.")
    ],
    method: Annotated[Method, typer.Option(help="How to prune.")] = Method.sparsegpt,
    refine: Annotated[int, typer.Option(min=0, help="Steps of refinement afterwards.")] = 10,
    samples: Annotated[int, typer.Option(min=1, help="Pieces of the text.")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each piece.")] = 512,
    allocation: Annotated[Allocation, typer.Option(help="How the share is spread over layers.")] = Allocation.uniform,
    exclude: Annotated[
        Expressions,
        typer.Option("--exclude", parser=parse_expression, metavar="RE", help="Leave tensors of this name dense."),
    ] = None,
    bits: WeightBits = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Prune a language model with calibration text. It is held in memory as a whole and stored packed."""
    from fastsparse.torch import _language  # with torch, which the other commands do not need

    batches = _language.read_tokens(data, model, samples, length)
    report, written = _language.prune_folder(
        model,
        dst,
        str(pattern),
        batches,
        method=method.value,
        refine=refine,
        allocation=allocation.value,
        exclude=tuple(exclude or ()),
        weight_bits=None if bits is None else bits.value,
        overwrite=overwrite,
        progress=lambda done, total, name: typer.echo(f"{done}/{total}  {name}", err=True),
    )
    if as_json:
        print(json.dumps({**written.to_dict(), **report.to_dict()}, indent=2))
        return
    for layer in report.pruned:
        error = "–" if layer.layer_error is None else f"{layer.layer_error:.4f}"
        print(f"{layer.name}  {layer.method}  {layer.pattern}  error {error}  {layer.reason or ''}".rstrip())
    print(
        f"{len(report.pruned)} layers pruned, {report.sparsity:.1%} zeros, in {report.seconds:.0f} s: "
        f"{byte_count(written.bytes_before)} → {byte_count(written.bytes_after)}"
    )
