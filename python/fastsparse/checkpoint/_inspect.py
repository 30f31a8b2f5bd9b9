"""What a checkpoint holds, from its headers."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, TypeVar

from fastsparse import _backend
from fastsparse.analysis._detect import detect_in_mask
from fastsparse.checkpoint._format import PACKABLE, Entry, Packed, density
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._report import Report, TensorInfo, TensorReport
from fastsparse.packed import BitmaskArray

__all__ = ["inspect", "stored_row", "with_zeros"]


def inspect(
    path: StrPath, *, detect: bool = False, progress: Progress | None = None, trust_shards: bool = False
) -> Report:
    """What a checkpoint holds, from its headers: no tensor is read unless its zeros are asked for.

    Parameters
    ----------
    path : path-like
        A checkpoint, as `open` takes it.
    detect : bool
        Whether dense tensors are read, each once, for their zeros and the patterns that these obey, see `fs.detect`.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name, where tensors are read.
    trust_shards : bool
        Whether the shards of a folder are taken as they are where the index says something else of their tensors.

    Raises
    ------
    FormatError
        If the header is not valid.
    OSError
        If the file cannot be read.
    """
    started = time.perf_counter()
    source = Reader(path, trust_shards=trust_shards)
    rows = [stored_row(source, name) for name in source.tensors]
    if detect:
        rows = _with_zeros(source, rows, progress)
    return Report(source.path, None, tuple(rows), time.perf_counter() - started)


def _with_zeros(source: Reader, rows: list[TensorReport], progress: Progress | None) -> list[TensorReport]:
    """The rows with the zeros of those tensors of which nothing is recorded."""
    ticker = Ticker(progress, [("reading", sum(row.bytes_after for row in rows))])
    read = []
    for row in rows:
        if row.sparsity is None and row.dtype in PACKABLE:
            with source.error_context(row.name):
                row = with_zeros(row, source)
            source.release(row.name)
        read.append(row)
        ticker.tick(row.bytes_after, row.name)
    return read


_Row = TypeVar("_Row", bound=TensorInfo)


def with_zeros(row: _Row, source: Reader) -> _Row:
    """The row with the zeros of its tensor, and what they obey; the elements are read unless they are packed."""
    found = source.tensors[row.name]
    if isinstance(found, Packed):
        array = source.packed(found)
        packed: Any = array if isinstance(array, BitmaskArray) else array.packed
        shape, bits, row_offsets = packed.shape, packed.bitmask, packed.row_offsets
    else:
        shape, bits, row_offsets = _backend.active.nonzero(source.array(found))
    share = 1 - int(row_offsets[-1]) / row.elements if row.elements else 0.0
    obeyed = tuple(str(one) for one in detect_in_mask(shape, bits, row_offsets))
    return replace(row, zeros=share, found=obeyed)


def stored_row(source: Reader, name: str) -> TensorReport:
    """A tensor as it lies in a file."""
    found = source.tensors[name]
    stored = sum(entry.nbytes for entry in source.keys(name))
    if isinstance(found, Entry):
        row = TensorReport(name, found.shape, found.dtype, None, None, stored, stored, reason="stored dense")
        if name not in source.pruned:
            return row
        made = source.pruned[name]
        return replace(row, pattern=str(made.pattern), sparsity=1 - made.density, calibrated=made.calibrated)
    kept = math.prod(source.entries[found.key("compressed")].shape)
    chosen = None if found.pattern is None else str(found.pattern)
    sparsity = 1 - density(kept, found.shape)
    row = TensorReport(name, found.shape, found.dtype, chosen, sparsity, found.nbytes, stored)
    return replace(row, bits=found.bits, calibrated=found.calibrated)
