"""Compressing and decompressing whole checkpoints."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import replace

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._executor import workers
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._inspect import stored_row
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._plan import choose
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._transform import transform
from fastsparse.checkpoint._work import prune_or_pack, unpack
from fastsparse.checkpoint._writer import check_target
from fastsparse.patterns import Pattern

__all__ = ["compress", "decompress"]


def compress(
    src: StrPath,
    dst: StrPath,
    recipe: Recipe | Pattern | str,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    config: str = "fastsparse",
    trust_shards: bool = False,
) -> Report:
    """Prune a checkpoint and store it packed.

    A tensor is packed while the one before it is written, so that memory holds two of them. `dst` appears only when all
    is written and flushed; a failure leaves nothing of it. Of a folder, the shards that a run finished before it was
    killed are taken over where they are what this one would write.

    Parameters
    ----------
    src : path-like
        A ``.safetensors`` file or a model folder, without packed tensors.
    dst : path-like
        The file or folder to write; of a folder it has the shards, the index and all other files.
    recipe : Recipe, Pattern or str
        A pattern or its short form prunes the usual tensors, see `Recipe`.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name, always in the calling thread.
    executor : concurrent.futures.Executor, optional
        Its workers select and pack, one thread each, and have to see `src` under the same path. The result is the same
        to the byte, and is written by the caller.
    overwrite : bool
        Whether an existing `dst` is replaced, in one step. A folder is replaced as a whole, and only if it holds a
        model or nothing.
    config : {"fastsparse", "compressed-tensors"}
        Who the packed folder is for. By default `config.json` names fastsparse, and each packed tensor has an empty one
        under its own name, at which loaders that do not know the layout stop with an error. ``"compressed-tensors"``
        writes the section that its versions up to 0.14.0.1 read, and leaves the empty tensors out; later versions load
        such a folder as random weights.
    trust_shards : bool
        Whether the shards of a folder are taken as they are where the index says something else of their tensors; the
        new index is made from what is there.

    Raises
    ------
    FastSparseError
        If a tensor holds NaN, a pattern does not fit its shape, the source holds packed tensors, the bounds of a global
        recipe cannot be met, `dst` is `src`, exists, or another run is writing it.
    FormatError
        If the source is not valid.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tempfile, os
    >>> import numpy as np
    >>> from fastsparse import checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dense, packed = os.path.join(folder, "dense.safetensors"), os.path.join(folder, "packed.safetensors")
    ...     checkpoint.save({"fc.weight": np.arange(1, 4097, dtype=np.float32).reshape(64, 64)}, dense)
    ...     report = checkpoint.compress(dense, packed, "75%")
    ...     (report.bytes_before, report.bytes_after), checkpoint.open(packed)["fc.weight"]
    ((16384, 5136), <BitmaskArray 64×64 float32, 75.0 % sparse, 5.1 kB (0.31 of dense)>)
    """
    started = time.perf_counter()
    if config not in ("fastsparse", "compressed-tensors"):
        raise FastSparseError(f"config: expected 'fastsparse' or 'compressed-tensors', got {config!r}")
    chosen = choose(src, recipe, trust_shards=trust_shards, stubs=config == "fastsparse")
    if chosen.recipe.bits is not None and config != "fastsparse":
        raise FastSparseError(
            f"config: {config} reads no weights of {chosen.recipe.bits} bits, leave out bits or config"
        )
    source = chosen.source
    check_target(source, dst, overwrite)
    packing = "packing", sum(entry.nbytes for entry in source.entries.values())
    ticker = Ticker(progress, [*chosen.phases, packing])
    with workers(executor) as pool:
        todo = chosen.plan(pool, ticker)
        form = "sparse-bitmask" if config == "compressed-tensors" else None
        report = transform(
            source,
            dst,
            todo.jobs,
            prune_or_pack,
            pool=pool,
            ticker=ticker,
            overwrite=overwrite,
            form=form,
            scratch=0 if chosen.recipe.bits is None else 1,
        )
    tensors = (*report.tensors, *todo.copied)
    return replace(report, tensors=tensors, seconds=time.perf_counter() - started)


def decompress(
    src: StrPath,
    dst: StrPath,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    trust_shards: bool = False,
) -> Report:
    """Store a checkpoint with all of its tensors dense; what was pruned is zero.

    Parameters
    ----------
    src : path-like
        A checkpoint, as `open` takes it.
    dst : path-like
        The file or folder to write.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.
    overwrite : bool
        Whether an existing `dst` is replaced, as by `compress`.
    trust_shards : bool
        As for `compress`.

    Raises
    ------
    FastSparseError
        If `dst` is `src`, exists, or another run is writing it.
    FormatError
        If the source is not valid, or in a layout that is not supported: marlin-24, or one that is unknown.
    OSError
        If a file cannot be read or written.
    """
    started = time.perf_counter()
    source = Reader(src, trust_shards=trust_shards)
    source.check_formats()
    check_target(source, dst, overwrite)
    jobs, rows = [], []
    for name, found in source.tensors.items():
        row = stored_row(source, name)
        rows.append(replace(row, bytes_before=row.bytes_after, bytes_after=row.bytes_before))
        entry = Entry(name, found.dtype, found.shape, found.nbytes)
        jobs.append(Job(name, entry, source.shard_of(found), row.bytes_after, reason=row.reason))
    ticker = Ticker(progress, [("unpacking", sum(job.stored for job in jobs))])
    with workers() as pool:
        report = transform(
            source, dst, jobs, unpack, pool=pool, ticker=ticker, overwrite=overwrite, packed=False, rows=rows
        )
    return replace(report, seconds=time.perf_counter() - started)
