"""`fastsparse compress`."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse.cli._options import (
    Expressions,
    Json,
    Overwrite,
    Source,
    TrustShards,
    WeightBits,
    parse_expression,
    parse_pattern,
    parse_share,
)
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import show
from fastsparse.patterns import Pattern

__all__ = ["compress"]


class Config(StrEnum):
    """For whom the packed folder is."""

    FASTSPARSE = "fastsparse"
    COMPRESSED_TENSORS = "compressed-tensors"


def compress(
    src: Source,
    dst: Annotated[str | None, typer.Argument(metavar="DST", help="What to write; not needed with --plan.")] = None,
    default: Annotated[
        Pattern | None,
        typer.Option(
            "--pattern",
            parser=parse_pattern,
            metavar="PATTERN",
            help="50%, 50%/row, 2:4 (two zeros in every four), top8/64, 75%/4x1, threshold=0.01 or nonzero.",
        ),
    ] = None,
    include: Annotated[
        Expressions,
        typer.Option("--include", parser=parse_expression, metavar="RE", help="Prune tensors of this name as well."),
    ] = None,
    exclude: Annotated[
        Expressions,
        typer.Option("--exclude", parser=parse_expression, metavar="RE", help="Leave tensors of this name dense."),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Leave tensors of up to this many elements dense.  [default: 2048]"),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--global", help="Let the tensors compete: the share of PATTERN goes over all of them.")
    ] = False,
    min_sparsity: Annotated[
        float | None,
        typer.Option(parser=parse_share, metavar="SHARE", help="With --global: at least this share in each tensor."),
    ] = None,
    max_sparsity: Annotated[
        float | None,
        typer.Option(parser=parse_share, metavar="SHARE", help="With --global: at most this share in each tensor."),
    ] = None,
    bits: WeightBits = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe, in TOML.")] = None,
    config: Annotated[
        Config,
        typer.Option("--config", help="Whose section config.json gets, so that who else loads the folder may tell."),
    ] = Config.FASTSPARSE,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be done and what it would cost; write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Prune a checkpoint and store it packed."""
    if (default is None) == (recipe is None):
        raise typer.BadParameter("give --pattern or --recipe, one of the two")
    if dst is None and not plan:
        raise typer.BadParameter("DST is missing")
    wanted = checkpoint.Recipe(default=default) if recipe is None else checkpoint.Recipe.from_toml(recipe)
    wanted = replace(
        wanted,
        include=wanted.include + tuple(include or ()),
        exclude=wanted.exclude + tuple(exclude or ()),
        min_size=wanted.min_size if min_size is None else min_size,
        scope="global" if whole else wanted.scope,
        min_sparsity=wanted.min_sparsity if min_sparsity is None else min_sparsity,
        max_sparsity=wanted.max_sparsity if max_sparsity is None else max_sparsity,
        bits=wanted.bits if bits is None else bits.value,
    )
    with progress_of(as_json) as progress:
        if plan or dst is None:
            report = checkpoint.plan(src, wanted, progress=progress, trust_shards=trust_shards, kept_energy=True).report
        else:
            report = checkpoint.compress(
                src, dst, wanted, progress=progress, overwrite=overwrite, config=config.value, trust_shards=trust_shards
            )
    show(report, as_json)
