"""Turning a checkpoint from one layout into another."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._bitmask_layouts import to_sparse24, to_sparse_bitmask
from fastsparse.checkpoint._compress import decompress
from fastsparse.checkpoint._executor import Task, map_bounded, workers
from fastsparse.checkpoint._format import TWO_FOUR, Entry, Packed, needs_stub, prefix_for
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._transform import transform
from fastsparse.checkpoint._work import TensorResult, flat_bytes, unpack
from fastsparse.checkpoint._writer import check_target
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero, Pattern

__all__ = ["convert"]

_FORMS = {"sparse-bitmask": "sparse-bitmask", "sparse-24": "sparse-24-bitmask"}
"""What can be written packed, and what compressed-tensors calls it."""


def convert(
    src: StrPath,
    dst: StrPath,
    to: str,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    trust_shards: bool = False,
) -> Report:
    """Turn a checkpoint from one layout of compressed-tensors into another, or into a dense one.

    Nothing is pruned: the dense tensors are equal before and after (a −0.0 that was stored may become 0.0).

    Parameters
    ----------
    src : path-like
        A ``.safetensors`` file or a model folder, dense or packed by compressed-tensors 0.3 to 0.14.0.1 or by
        fastsparse.
    dst : path-like
        The file or folder to write, as `checkpoint.compress` does. `config.json` says what it holds.
    to : {"sparse-bitmask", "sparse-24", "dense"}
        What to write. In a packed layout are the tensors that are packed already, and those that `checkpoint.compress`
        would take by itself, if their packed form is not larger, for ``"sparse-24"`` if they obey 2:4. The report says
        why others are dense.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.
    overwrite : bool
        Whether an existing `dst` is replaced, as by `checkpoint.compress`.
    trust_shards : bool
        As for `checkpoint.compress`.

    Raises
    ------
    FastSparseError
        If no tensor can be stored in the layout, or `dst` is `src`, exists, or another run is writing it.
    FormatError
        If the source is not valid, or in a layout that is not supported: marlin-24, or one that is unknown.
    OSError
        If a file cannot be read or written.
    """
    if to == "dense":
        return decompress(src, dst, progress=progress, overwrite=overwrite, trust_shards=trust_shards)
    if to not in _FORMS:
        raise FastSparseError(f"to: expected {', '.join(_FORMS)} or dense, got {to!r}")
    started = time.perf_counter()
    source = Reader(src, trust_shards=trust_shards)
    source.check_formats()
    check_target(source, dst, overwrite)
    stored = {name: sum(entry.nbytes for entry in source.keys(name)) for name in source.tensors}
    size = sum(stored.values())
    ticker = Ticker(progress, [("counting", size), ("packing", size)])
    with workers() as pool:
        jobs = []
        taken = set(source.tensors)
        with closing(map_bounded(pool, _looks(source, to, stored), _largest(source))) as looks:
            for name, (kept, reason) in zip(source.tensors, looks, strict=True):
                jobs.append(_job(source, name, stored[name], to, kept, reason, taken))
                ticker.tick(stored[name], name)
        if all(job.packed is None for job in jobs):
            reasons = "; ".join(f"{job.name!r}: {job.reason}" for job in jobs[:3]) or "it has no tensors"
            raise FastSparseError(f"{source.path}: nothing to store as {to}: {reasons}")
        report = transform(
            source, dst, jobs, _run, pool=pool, ticker=ticker, overwrite=overwrite, form=_FORMS[to], scratch=1
        )
    return replace(report, seconds=time.perf_counter() - started)


def _largest(source: Reader) -> int:
    return max((found.nbytes for found in source.tensors.values()), default=0)


def _looks(source: Reader, to: str, stored: Mapping[str, int]) -> Iterator[Task[tuple[int, str | None]]]:
    for name, found in source.tensors.items():
        reason = _why_dense(found, name, to)
        if reason is None:
            yield Task(_look, (source, name, to), peak=stored[name] + 2 * found.nbytes)
        else:
            yield Task(_refused, (reason,), peak=0, here=True)


def _refused(reason: str) -> tuple[int, str | None]:
    return 0, reason


_OTHER_NAME = "packed, compressed-tensors would read it under another name"


def _why_dense(found: Packed | Entry, name: str, to: str) -> str | None:
    """Why a tensor of this name, shape and dtype is not stored packed; None where its values decide."""
    if name != "weight" and not name.endswith(".weight"):
        return _OTHER_NAME
    if not found.shape:
        return "a scalar"
    if isinstance(found, Entry):
        chosen = _DEFAULT.choose(name, found.dtype, found.shape)
        if not isinstance(chosen, Pattern):
            return chosen
    if to == "sparse-24" and (len(found.shape) != 2 or found.shape[1] % 4):
        return "no matrix with groups of 4"
    return None


_DEFAULT = Recipe(default=Nonzero())


def _look(source: Reader, name: str, to: str) -> tuple[int, str | None]:
    """How many elements of a tensor the layout keeps, or why it cannot hold it."""
    with source.error_context(name):
        array = _packed(source, name)
        if to == "sparse-24":
            try:
                kept, reason = to_sparse24(array)[0].size, None
            except FastSparseError:
                kept, reason = 0, "not 2:4"
        else:
            kept, reason = _nonzero(array).nnz, None
    source.release(name)
    return kept, reason


def _packed(source: Reader, name: str) -> BitmaskArray:
    found = source.tensors[name]
    array = source.packed(found) if isinstance(found, Packed) else ops.pack(source.array(found))
    return array if isinstance(array, BitmaskArray) else array.dequantize()


def _nonzero(array: BitmaskArray) -> BitmaskArray:
    """The tensor without kept elements that are zero."""
    return array if ops.select(array.values, Nonzero()).count == array.nnz else ops.pack(array.to_dense())


def _job(source: Reader, name: str, stored: int, to: str, kept: int, reason: str | None, taken: set[str]) -> Job:
    """What becomes of a tensor."""
    found = source.tensors[name]
    entry = Entry(name, found.dtype, found.shape, found.nbytes)
    shard = source.shard_of(found)
    prefix = prefix_for(name, taken) if reason is None else None
    if prefix is not None and needs_stub(name, prefix):
        reason = _OTHER_NAME
    if reason is not None or prefix is None:
        return Job(name, entry, shard, stored, reason=reason or "other tensors have the names of its parts")
    known = found.pattern if isinstance(found, Packed) else None
    if to == "sparse-24":
        packed = Packed(name, prefix, found.dtype, found.shape, TWO_FOUR, True, "2:4")
    else:
        layout = "matrix" if len(found.shape) == 2 else "last-axis"
        exact = known is None or (isinstance(found, Packed) and found.exact and kept == _kept(source, found))
        packed = Packed(name, prefix, found.dtype, found.shape, known or Nonzero(), exact, layout)
    calibrated = isinstance(found, Packed) and found.calibrated
    job = Job(name, entry, shard, stored, replace(packed, calibrated=calibrated), kept, calibrated=calibrated)
    if job.size > entry.nbytes:
        return Job(name, entry, shard, stored, reason=f"packed it would be larger, {job.size} bytes")
    taken.update(packed.keys)
    return job


def _kept(source: Reader, found: Packed) -> int:
    """How many elements a tensor keeps as it is stored."""
    return math.prod(source.entries[found.key("compressed")].shape)


def _run(source: Reader, job: Job) -> TensorResult:
    """Packs or unpacks the tensor of a job."""
    if job.packed is None:
        return unpack(source, job)
    array = _packed(source, job.name)
    parts: dict[str, NDArray[Any]] = {"shape": np.array(job.packed.shape, np.int64)}
    if job.packed.layout == "2:4":
        parts["compressed"], parts["bitmask"] = to_sparse24(array)
    else:
        parts["compressed"], parts["bitmask"], parts["row_offsets"] = to_sparse_bitmask(_nonzero(array))
    if parts["compressed"].size != job.kept:
        raise FastSparseError(f"{source.path}: tensor {job.name!r} changed while it was read")
    done = TensorResult(
        {job.packed.key(part): flat_bytes(content) for part, content in parts.items()}, source.digest(job.name)
    )
    source.release(job.name)
    return done
