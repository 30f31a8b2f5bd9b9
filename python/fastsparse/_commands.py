"""The commands: data goes to stdout, messages and progress to stderr."""

import errno
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import rich.console
import rich.progress
import typer

from fastsparse import _backend, checkpoint, compressed_tensors
from fastsparse._errors import FastSparseError
from fastsparse.patterns import Pattern, pattern

__all__ = ["run"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Prune checkpoints on the CPU and store them as bit masks plus kept values.",
)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="fastsparse")
    except SystemExit as error:
        if error.code == 130:  # typer's way, without a word, to say that it was interrupted
            raise KeyboardInterrupt from None
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (FastSparseError, OSError, MemoryError) as error:
        advice = _ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        print(f"fastsparse: {str(error) or type(error).__name__}{advice}", file=sys.stderr)
        return 1
    return 0


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room and run it again, nothing was left behind"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; check who may read and write there"),
    errno.EROFS: "; name a target on a disk that can be written",
    errno.EFBIG: "; the disk or a limit allows no file of that size, name another target",
    errno.EIO: "; the disk is failing, read or write elsewhere",
}
"""What to do about a refusal of the operating system that does not say so itself."""


def _pattern(text: str) -> Pattern:
    try:
        return pattern(text)
    except FastSparseError as error:
        raise typer.BadParameter(str(error)) from None


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"{text!r} is not a regular expression: {error}") from None
    return text


def _version(wanted: bool) -> None:
    if wanted:
        print(_backend.version())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and progress on stderr as JSON lines.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="A .safetensors file or a model folder.")]
Packed = Annotated[Path, typer.Argument(metavar="PATH", help="A .safetensors file or a model folder.")]
Expressions = list[str] | None


@app.command()
def compress(
    src: Source,
    dst: Annotated[Path | None, typer.Argument(metavar="DST", help="What to write; not needed with --plan.")] = None,
    default: Annotated[
        Pattern | None,
        typer.Option(
            "--pattern",
            parser=_pattern,
            metavar="PATTERN",
            help="50%, 50%/row, 2:4 (two zeros in every four), top8/64, 75%/4x1, threshold=0.01 or nonzero.",
        ),
    ] = None,
    include: Annotated[
        Expressions,
        typer.Option("--include", parser=_expression, metavar="RE", help="Prune tensors of this name as well."),
    ] = None,
    exclude: Annotated[
        Expressions,
        typer.Option("--exclude", parser=_expression, metavar="RE", help="Leave tensors of this name dense."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(min=0, help="Leave tensors of up to this many elements dense.  [default: 2048]")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--global", help="Let the tensors compete: the share of PATTERN goes over all of them.")
    ] = False,
    min_sparsity: Annotated[
        float | None, typer.Option(min=0, max=1, help="With --global: at least this share in each tensor.")
    ] = None,
    max_sparsity: Annotated[
        float | None, typer.Option(min=0, max=1, help="With --global: at most this share in each tensor.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe, in TOML.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done; write nothing.")] = False,
    overwrite: Overwrite = False,
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
    )
    with _progress(as_json) as progress:
        if plan or dst is None:
            report = checkpoint.plan(src, wanted, progress=progress).report
        else:
            report = checkpoint.compress(src, dst, wanted, progress=progress, overwrite=overwrite)
    _show(report, as_json)


@app.command()
def decompress(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="What to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Store a checkpoint with all of its tensors dense."""
    with _progress(as_json) as progress:
        report = checkpoint.decompress(src, dst, progress=progress, overwrite=overwrite)
    _show(report, as_json)


class Layout(StrEnum):
    """What `convert` writes."""

    SPARSE_BITMASK = "sparse-bitmask"
    SPARSE_24 = "sparse-24"
    DENSE = "dense"


@app.command()
def convert(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="What to write.")],
    to: Annotated[Layout, typer.Option("--to", help="The layout, one of those of compressed-tensors.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of compressed-tensors 0.3 to 0.14 into another layout or a dense one; nothing is pruned."""
    with _progress(as_json) as progress:
        report = compressed_tensors.convert(src, dst, to.value, progress=progress, overwrite=overwrite)
    _show(report, as_json)


@app.command()
def inspect(path: Packed, as_json: Json = False) -> None:
    """Show what a checkpoint holds, from its header."""
    _show(checkpoint.inspect(path), as_json)


@app.command()
def verify(
    path: Packed,
    against: Annotated[
        Path | None, typer.Option(metavar="SRC", help="The dense checkpoint that it was made from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every tensor of a checkpoint; with --against, that nothing is lost that was not to go."""
    with _progress(as_json) as progress:
        report = checkpoint.verify(path, against, progress=progress)
    _show(report, as_json)


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


@app.command()
def bench(
    shape: Annotated[str, typer.Option(help="Rows and columns of the layer.")] = "4096x11008",
    dtype: Annotated[Computed, typer.Option(help="Dtype of weights and activations.")] = Computed.float32,
    batch: Annotated[list[int], typer.Option(min=1, help="Rows of activations; may be repeated.")] = [1, 4, 16, 64],  # noqa: B006
    sparsity: Annotated[list[int], typer.Option(min=0, max=100, help="Percent; may be repeated.")] = [50, 75, 90, 95],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure, about.")] = 6.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure dense layers against packed ones here: from which sparsity on they win, at which batch size."""
    from fastsparse import _bench  # with what it needs, nothing the other commands do

    result = _bench.measure(_shape(shape), dtype.value, batch, [percent / 100 for percent in sorted(sparsity)], seconds)
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)


@contextmanager
def _progress(as_json: bool) -> Iterator[checkpoint.Progress]:
    """A line of JSON for each tensor where the report is JSON; else a bar on a terminal, plain lines otherwise."""
    console = rich.console.Console(stderr=True)
    if as_json or not console.is_terminal:
        yield (_Events() if as_json else _Lines()).tick
        return
    bar = rich.progress.Progress(
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


class _Pace:
    """How fast the work goes, and how long the rest will take at that."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def pace(self, done: int, total: int) -> tuple[float, float]:
        """Bytes in a second, and seconds left."""
        elapsed = time.perf_counter() - self._started
        return done / elapsed, elapsed * (total - done) / max(done, 1)


class _Events(_Pace):
    """One event for each tensor that was counted, written or checked."""

    def tick(self, done: int, total: int, name: str) -> None:
        rate, left = self.pace(done, total)
        event = {"event": "progress", "tensor": name, "done": done, "total": total}
        print(json.dumps({**event, "rate": round(rate), "eta": round(left, 3)}), file=sys.stderr, flush=True)


class _Lines(_Pace):
    """One line for every tenth of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._tenths = 0

    def tick(self, done: int, total: int, name: str) -> None:
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths:
            self._tenths = tenths
            rate, left = self.pace(done, total)
            print(f"{10 * tenths} %  {_size(int(rate))}/s, {left:.0f} s left  {name}", file=sys.stderr, flush=True)


_CELLS = ("{:<{}}",) * 4 + ("{:>{}}",) * 4 + ("{:<{}}",)


def _show(report: checkpoint.Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    heading = ("tensor", "shape", "dtype", "pattern", "sparsity", "kept energy", "before", "after", "")
    rows: list[tuple[str, ...]] = [heading, *(_row(tensor) for tensor in report.tensors)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.format, _CELLS, row, widths)).rstrip())
    change = f"{report.bytes_after / report.bytes_before:.1%}" if report.bytes_before else "100.0%"
    print(
        f"{len(report.tensors)} tensors, {report.packed} packed, {report.sparsity:.1%} zeros where pruned: "
        f"{_size(report.bytes_before)} → {_size(report.bytes_after)} ({change}) in {report.seconds:.2f} s"
        + (f", {len(report.resumed)} finished shards of a killed run taken over" if report.resumed else "")
    )


def _row(tensor: checkpoint.TensorReport) -> tuple[str, ...]:
    """The cells of a tensor's line."""
    return (
        tensor.name,
        "×".join(map(str, tensor.shape)) or "scalar",
        tensor.dtype,
        tensor.pattern or "–",
        "–" if tensor.sparsity is None else f"{tensor.sparsity:.1%}",
        "–" if tensor.kept_energy is None else f"{tensor.kept_energy:.2%}",
        _size(tensor.bytes_before),
        _size(tensor.bytes_after),
        tensor.reason or "",
    )


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
