"""`fastsparse sweep` and `fastsparse report`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastsparse import checkpoint
from fastsparse._table import Column, line_width, table, wrap
from fastsparse.analysis._html import percent
from fastsparse.analysis._sweep import DEFAULT
from fastsparse.checkpoint._page import ENERGY_IS_NOT_QUALITY
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
from fastsparse.packed import byte_count
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
_MinSize = Annotated[int, typer.Option(min=0, help="Leave tensors of up to this many elements out.")]
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
    """Show what many patterns would keep of a checkpoint; propose how to spread zeros."""
    if total is not None and recipe is None:
        raise typer.BadParameter("--total is the share of --recipe; give a file for it")
    _check([html, recipe], [path, statistics], overwrite)
    with progress_of(as_json) as progress:
        found = checkpoint.sweep(
            path,
            patterns or DEFAULT,
            include=include or (),
            exclude=exclude or (),
            min_size=min_size,
            statistics=None if statistics is None else _load(statistics),
            magnitudes=html is not None,
            progress=progress,
            trust_shards=trust_shards,
        )
    texts = {}
    if html is not None:
        texts[html] = found.to_html()
    if recipe is not None:
        texts[recipe] = found.recipe(0.5 if total is None else total).to_toml()
    write_outputs(texts)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)


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
    """Write a page about a checkpoint: layers, energy, magnitudes, patterns, sizes."""
    _check([html], [path, statistics], overwrite)
    with progress_of(False) as progress:
        found = checkpoint.sweep(
            path,
            include=include or (),
            exclude=exclude or (),
            min_size=min_size,
            statistics=None if statistics is None else _load(statistics),
            magnitudes=True,
            progress=progress,
            trust_shards=trust_shards,
        )
    write_outputs({html: found.to_html()})


def _load(path: Path) -> "Statistics":
    from fastsparse.calibration import load_statistics  # slow to import

    return load_statistics(path)


def _check(outputs: list[Path | None], inputs: list[Path | None], overwrite: bool) -> None:
    """Refuses outputs that cannot be written or are inputs, before any work."""
    read = [file for path in inputs if path is not None for file in files_of(path)]
    check_outputs([path for path in outputs if path is not None], read, overwrite)


_COLUMNS = (
    Column("pattern"),
    Column("zeros", right=True),
    Column("energy kept", right=True),
    Column("size", right=True),
    Column("of dense", right=True),
)


def _show(found: checkpoint.CheckpointSweep) -> None:
    """What each pattern would keep of all tensors together."""
    rows = [
        (
            str(row.pattern),
            percent(row.sparsity, 1),
            percent(row.kept_energy, 2),
            byte_count(row.packed_bytes),
            percent(row.ratio, 1),
        )
        for row in found.totals
    ]
    width = line_width(sys.stdout)
    print("\n".join(table(_COLUMNS, rows, [None] * len(rows), width)))
    left_out = len(found.tensors) - len(found.swept)
    print(f"{len(found.swept)} tensors swept, {left_out} left out, in {found.seconds:.2f} s")
    print("\n".join(wrap(ENERGY_IS_NOT_QUALITY, width)))
