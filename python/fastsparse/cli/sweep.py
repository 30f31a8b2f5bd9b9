"""`fastsparse sweep` and `fastsparse report`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastsparse import checkpoint
from fastsparse.analysis._sweep import DEFAULT
from fastsparse.cli._options import (
    Expressions,
    Json,
    Overwrite,
    Packed,
    TrustShards,
    parse_expression,
    parse_pattern,
    parse_share,
)
from fastsparse.cli._outputs import check_outputs, files_of, write_outputs
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import print_json
from fastsparse.patterns import Pattern

if TYPE_CHECKING:
    from fastsparse.calibration import Statistics

__all__ = ["report", "sweep"]

_Patterns = Annotated[
    list[Pattern] | None,
    typer.Option(
        "--pattern",
        parser=parse_pattern,
        metavar="PATTERN",
        help="A pattern; may be repeated.  [default: 10% … 90%, 2:4]",
    ),
]
_Include = Annotated[
    Expressions,
    typer.Option("--include", parser=parse_expression, metavar="RE", help="Sweep tensors of this name as well."),
]
_Exclude = Annotated[
    Expressions,
    typer.Option("--exclude", parser=parse_expression, metavar="RE", help="Leave tensors of this name out."),
]
_MinSize = Annotated[int, typer.Option(metavar="N", min=0, help="Leave tensors of up to this many elements out.")]
_Statistics = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What fastsparse calibrate wrote: weights count times their inputs."),
]


def sweep(
    path: Packed,
    patterns: _Patterns = None,
    html: Annotated[Path | None, typer.Option(metavar="OUT", help="Write a page to look at.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="OUT", help="Write the recipe that loses least.")] = None,
    total: Annotated[
        float | None,
        typer.Option(
            parser=parse_share, metavar="SHARE", help="The share of zeros that the recipe makes.  [default: 50%]"
        ),
    ] = None,
    include: _Include = None,
    exclude: _Exclude = None,
    min_size: _MinSize = 2048,
    statistics: _Statistics = None,
    overwrite: Overwrite = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Show what patterns would keep of a checkpoint.

    With --recipe, propose how to spread zeros over its tensors.
    """
    if total is not None and recipe is None:
        raise typer.BadParameter("--total is the share of --recipe; give a file for it")
    share = 0.5 if total is None else total
    options = include, exclude, min_size, statistics, overwrite, trust_shards
    outputs: list[_Output] = [(html, checkpoint.CheckpointSweep.to_html)] if html is not None else []
    outputs += [(recipe, lambda found: found.recipe(share).to_toml())] if recipe is not None else []
    found = _sweep(path, outputs, *options, patterns=patterns, magnitudes=html is not None, as_json=as_json)
    if as_json:
        print_json(found.to_dict())
    else:
        print(found)


def report(
    path: Packed,
    html: Annotated[Path, typer.Option(metavar="OUT", help="The page to write.")],
    include: _Include = None,
    exclude: _Exclude = None,
    min_size: _MinSize = 2048,
    statistics: _Statistics = None,
    overwrite: Overwrite = False,
    trust_shards: TrustShards = False,
) -> None:
    """Write a page about a checkpoint.

    It shows layers, energy, magnitudes, patterns found and sizes, and needs no network.
    """
    options = include, exclude, min_size, statistics, overwrite, trust_shards
    _sweep(path, [(html, checkpoint.CheckpointSweep.to_html)], *options)
    print(f"{html}: open it in a browser", file=sys.stderr)


_Output = tuple[Path, Callable[[checkpoint.CheckpointSweep], str]]
"""A file to write, and what goes into it."""


def _sweep(
    path: Path,
    outputs: Sequence[_Output],
    include: Expressions,
    exclude: Expressions,
    min_size: int,
    statistics: Path | None,
    overwrite: bool,
    trust_shards: bool,
    patterns: list[Pattern] | None = None,
    magnitudes: bool = True,
    as_json: bool = False,
) -> checkpoint.CheckpointSweep:
    """Sweeps a checkpoint and writes the outputs; those that cannot be written, or are inputs, are refused before."""
    inputs = [file for read in (path, statistics) if read is not None for file in files_of(read)]
    check_outputs([target for target, _ in outputs], inputs, overwrite)
    with progress_of(as_json) as progress:
        found = checkpoint.sweep(
            path,
            patterns or DEFAULT,
            include=include or (),
            exclude=exclude or (),
            min_size=min_size,
            statistics=None if statistics is None else _load(statistics),
            magnitudes=magnitudes,
            progress=progress,
            trust_shards=trust_shards,
        )
    write_outputs({target: text(found) for target, text in outputs})
    return found


def _load(path: Path) -> "Statistics":
    from fastsparse.calibration import load_statistics  # slow to import

    return load_statistics(path)
