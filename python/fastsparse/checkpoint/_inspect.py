"""What a checkpoint holds, from its headers."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from fastsparse.checkpoint._format import Entry, density
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._report import Report, TensorReport

__all__ = ["inspect", "stored_row"]


def inspect(path: StrPath, *, trust_shards: bool = False) -> Report:
    """What a checkpoint holds, from its headers: no tensor is read.

    Parameters
    ----------
    path : path-like
        A checkpoint, as `open` takes it.
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
    rows = tuple(stored_row(source, name) for name in source.tensors)
    return Report(source.path, None, rows, time.perf_counter() - started)


def stored_row(source: Reader, name: str) -> TensorReport:
    """A tensor as it lies in a file."""
    found = source.tensors[name]
    stored = sum(entry.nbytes for entry in source.keys(name))
    if isinstance(found, Entry):
        row = TensorReport(name, found.shape, found.dtype, None, None, stored, stored, reason="stored dense")
        if name not in source.pruned:
            return row
        pattern, share = source.pruned[name]
        return replace(row, pattern=str(pattern), sparsity=1 - share)
    kept = math.prod(source.entries[found.key("compressed")].shape)
    chosen = None if found.pattern is None else str(found.pattern)
    sparsity = 1 - density(kept, found.shape)
    return TensorReport(name, found.shape, found.dtype, chosen, sparsity, found.nbytes, stored, bits=found.bits)
