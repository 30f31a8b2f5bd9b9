"""`fastsparse prune`."""

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import (
    Clip,
    Expressions,
    Json,
    Model,
    Overwrite,
    WeightBits,
    parse_expression,
    parse_pattern,
)
from fastsparse.cli._progress import progress_of
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
    dst: Annotated[
        Path | None, typer.Argument(metavar="DST", help="The packed folder to write; not needed with --plan.")
    ] = None,
    pattern: Annotated[
        Pattern | None, typer.Option("--pattern", parser=parse_pattern, metavar="PATTERN", help="50%, 50%/row, 2:4, …")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Calibration text, or .safetensors with input_ids.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `calibrate` stored, in the place of --data: no forward pass is run."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe, in TOML; options take precedence.")
    ] = None,
    method: Annotated[Method | None, typer.Option(help="How to prune.  [default: sparsegpt]")] = None,
    refine: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Steps of refinement afterwards.  [default: 10]")
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", min=1, help="Pieces of the text.  [default: 64]")] = None,
    length: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Tokens of each piece.  [default: 512]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Draw the pieces from all of the text; by default it is its beginning."),
    ] = None,
    clip: Clip = None,
    allocation: Annotated[
        Allocation | None, typer.Option(help="How the share is spread over layers.  [default: uniform]")
    ] = None,
    exclude: Annotated[
        Expressions,
        typer.Option("--exclude", parser=parse_expression, metavar="RE", help="Leave tensors of this name dense."),
    ] = None,
    bits: WeightBits = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show which layers would be pruned; write nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Prune a language model with calibration text.

    It is stored packed. One block of the model is in memory at a time. A run that was ended goes on after the last
    finished block.
    """
    given = checkpoint.Recipe() if recipe is None else checkpoint.Recipe.from_toml(recipe)
    wanted = replace(
        given,
        default=given.default if pattern is None else pattern,
        exclude=given.exclude + tuple(exclude or ()),
        calibration=_set(
            given.calibration or checkpoint.Calibration(), samples=samples, length=length, seed=seed, clip=clip
        ),
        method=_set(given.method or checkpoint.Method(), name=_value(method), refine=refine),
        bits=given.bits if bits is None else bits.value,
        allocation=_set(given.allocation or checkpoint.Allocation(), kind=_value(allocation)),
    )
    calibration = wanted.calibration
    assert calibration is not None, "it was set"
    if wanted.default is None and not wanted.rules:
        raise typer.BadParameter("give --pattern, or a recipe with a default or rules")
    if plan:
        from fastsparse.torch import _folder

        _show(_folder.plan_folder(model, wanted).to_dict(), as_json)
        return
    text = data if data is not None or calibration.data is None else Path(calibration.data)
    if dst is None:
        raise typer.BadParameter("DST is missing")
    if (text is None and statistics is None) or (data is not None and statistics is not None):
        raise typer.BadParameter("give --data, a recipe with [calibration] data, or --statistics, one of these")
    from fastsparse.torch import _folder, _language  # with torch, which the other commands do not need

    if statistics is not None:
        from fastsparse.calibration import load_statistics  # slow to import

        batches: Any = load_statistics(statistics)
    else:
        assert text is not None, "checked"
        batches = _language.read_tokens(text, model, calibration.samples, calibration.length, calibration.seed)
    with progress_of(as_json) as progress:
        report, written = _folder.prune_folder(model, dst, wanted, batches, overwrite=overwrite, progress=progress)
    _show({**written.to_dict(), **report.to_dict()}, as_json)
    if not as_json:
        again = f", {len(written.resumed)} blocks and shards taken over" if written.resumed else ""
        print(f"{byte_count(written.bytes_before)} → {byte_count(written.bytes_after)}{again}")


def _set(section: Any, **values: Any) -> Any:
    """A section of a recipe with the values that were given."""
    return replace(section, **{name: value for name, value in values.items() if value is not None})


def _value(choice: StrEnum | None) -> str | None:
    return None if choice is None else choice.value


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from fastsparse.torch import LayerReport, ModelReport

    print(ModelReport(tuple(LayerReport(**layer) for layer in report["layers"]), report["seconds"]))
