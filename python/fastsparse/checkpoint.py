"""Checkpoints: safetensors files and model folders whose tensors are pruned and packed without holding the whole.

How to use them is described in `docs/checkpoints.md`, the file format in `docs/format.md`. This module needs the native
module, whichever backend computes.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError, FormatError
from fastsparse._layout import METADATA_KEY, Entry, Packed, density, dtype_name, prefix_for, write_record
from fastsparse._open import Checkpoint, StrPath, open
from fastsparse._plan import (
    Job,
    Plan,
    Progress,
    Ticker,
    choose,
    flat_bytes,
    kept_energy,
    make_plan,
    mask_of,
    parts_of,
    plan,
    task,
)
from fastsparse._report import Report, TensorReport
from fastsparse._resume import Done, Shard
from fastsparse._run import Task, workers
from fastsparse._target import Target, check_formats, check_target, writing
from fastsparse.masks import Bitmask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero, Pattern
from fastsparse.recipe import Recipe, Rule

__all__ = [
    "Checkpoint",
    "Job",
    "Plan",
    "Progress",
    "Recipe",
    "Report",
    "Rule",
    "TensorReport",
    "compress",
    "decompress",
    "inspect",
    "open",
    "plan",
    "save",
    "verify",
]


_PIECE = 64 << 20
"""Bytes of a tensor that `verify` holds against the source at once."""


def compress(
    src: StrPath,
    dst: StrPath,
    recipe: Recipe | Pattern | str,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
) -> Report:
    """Prune a checkpoint and store it packed.

    A tensor is packed while the one before it is written, so that memory holds two of them. `dst` appears only when all
    is written and flushed; a failure leaves nothing behind. Of a folder, the shards that a run finished before it was
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
    chosen = choose(src, recipe)
    source = chosen.source
    check_target(source, dst, overwrite)
    sizes = sum(entry.nbytes for entry in source._entries.values())
    ticker = Ticker(progress, sizes + chosen.bytes_to_plan)
    rows = []
    with workers(executor) as pool:
        todo = make_plan(chosen, pool, ticker)
        shards = [_packed_shard(source, shard, todo.jobs) for shard in source._shards]
        largest = max((job.entry.nbytes for job in todo.jobs), default=0)
        work = {job.name: task(source, job) for job in todo.jobs}
        with (
            Target(source, dst, shards, overwrite, todo.report) as target,
            closing(target.fill(pool, work, largest)) as written,
        ):
            for job, (name, energy) in zip(todo.jobs, written, strict=True):
                rows.append(job.report(energy))
                ticker.tick(job.entry.nbytes, name)
    seconds = time.perf_counter() - started
    return Report(source.path, os.fspath(dst), tuple(rows), seconds, tuple(target.resumed))


def _packed_shard(source: Checkpoint, shard: str, jobs: Iterable[Job]) -> Shard:
    """What a shard will hold."""
    own = [job for job in jobs if job.shard == shard]
    packed = [(job.packed, job.density) for job in own if job.packed is not None]
    pruned = {job.name: (job.pruned, job.density) for job in own if job.pruned is not None}
    metadata = {**source._metadata[shard], METADATA_KEY: write_record(packed, pruned)}
    return Shard(shard, [job.name for job in own], [entry for job in own for entry in job.entries], metadata)


def decompress(src: StrPath, dst: StrPath, *, progress: Progress | None = None, overwrite: bool = False) -> Report:
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
    source = Checkpoint(src)
    check_formats(source)
    check_target(source, dst, overwrite)
    rows = {name: _stored(source, name) for name in source}
    entries = {
        name: Entry(name, found.dtype, found.shape, found.nbytes) if isinstance(found, Packed) else found
        for name, found in source._tensors.items()
    }
    where = {name: source._shard_of(found) for name, found in source._tensors.items()}
    shards = []
    for shard in source._shards:
        own = [name for name in entries if where[name] == shard]
        shards.append(Shard(shard, own, [entries[name] for name in own], source._metadata[shard]))
    largest = max((entry.nbytes for entry in entries.values()), default=0)
    ticker = Ticker(progress, sum(entry.nbytes for entry in entries.values()))
    work = {
        name: Task(_dense, (source, name), row.bytes_after + row.bytes_before, row.bytes_before, row.reason is not None)
        for name, row in rows.items()
    }
    with (
        workers() as pool,
        Target(source, dst, shards, overwrite) as target,
        closing(target.fill(pool, work, largest)) as written,
    ):
        for name, _ in written:
            ticker.tick(entries[name].nbytes, name)
    turned = tuple(replace(row, bytes_before=row.bytes_after, bytes_after=row.bytes_before) for row in rows.values())
    seconds = time.perf_counter() - started
    return Report(source.path, os.fspath(dst), turned, seconds, tuple(target.resumed))


def _dense(source: Checkpoint, name: str) -> Done:
    """A tensor with its dense bytes."""
    found = source._tensors[name]
    if isinstance(found, Entry):
        return Done({name: source._raw(found)}, source.digest(name))
    done = Done({name: flat_bytes(source._packed(found).to_dense())}, source.digest(name))
    source.release(name)
    return done


def save(
    tensors: Mapping[str, BitmaskArray | NDArray[Any]],
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Store packed tensors and arrays as they are.

    Parameters
    ----------
    tensors : mapping
        From names to `BitmaskArray` and `numpy.ndarray`. Each value is asked for twice, and used once at a time.
    path : path-like
        The file to write.
    metadata : mapping of str to str, optional
        Goes to the file's metadata; by default that of `tensors`, if it is a `Checkpoint`.
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    FastSparseError
        If a name or a dtype cannot be stored, or `path` exists or is being written by another run.
    OSError
        If the file cannot be written.
    """
    if metadata is None:
        metadata = tensors.metadata if isinstance(tensors, Checkpoint) else {}
    taken = set(tensors)
    packed: dict[str, Packed] = {}
    entries: list[Entry] = []
    record = []
    for name, tensor in tensors.items():
        dtype = dtype_name(tensor.dtype, name)
        if isinstance(tensor, BitmaskArray):
            prefix = prefix_for(name, taken)
            if prefix is None:
                raise FastSparseError(f"tensor {name!r}: other tensors have the names of its parts")
            packed[name] = Packed(name, prefix, dtype, tensor.shape, tensor.pattern, tensor.pattern is not None)
            taken.update(packed[name].keys)
            entries.extend(packed[name].entries(tensor.nnz).values())
            record.append((packed[name], density(tensor.nnz, tensor.shape)))
        else:
            entries.append(Entry(name, dtype, tensor.shape, tensor.nbytes))
    extra = {METADATA_KEY: write_record(record)} if record else {}
    with writing(path, entries, {**metadata, **extra}, overwrite) as writer:
        for name, tensor in tensors.items():
            parts = parts_of(packed[name], tensor) if isinstance(tensor, BitmaskArray) else {name: flat_bytes(tensor)}
            for key, part in parts.items():
                writer.write(key, part)


def inspect(path: StrPath) -> Report:
    """What a checkpoint holds, from its headers: no tensor is read.

    Raises
    ------
    FormatError
        If the header is not valid.
    OSError
        If the file cannot be read.
    """
    started = time.perf_counter()
    source = Checkpoint(path)
    rows = tuple(_stored(source, name) for name in source)
    return Report(source.path, None, rows, time.perf_counter() - started)


def _stored(source: Checkpoint, name: str) -> TensorReport:
    """A tensor as it lies in a file."""
    found = source._tensors[name]
    stored = sum(entry.nbytes for entry in source._keys(name))
    if isinstance(found, Entry):
        row = TensorReport(name, found.shape, found.dtype, None, None, stored, stored, reason="stored dense")
        if name not in source._pruned:
            return row
        pattern, share = source._pruned[name]
        return replace(row, pattern=str(pattern), sparsity=1 - share)
    kept = math.prod(source._entries[found.key("compressed")].shape)
    chosen = None if found.pattern is None else str(found.pattern)
    sparsity = 1 - density(kept, found.shape)
    return TensorReport(name, found.shape, found.dtype, chosen, sparsity, found.nbytes, stored)


def verify(path: StrPath, against: StrPath | None = None, *, progress: Progress | None = None) -> Report:
    """Check every invariant of every tensor of a checkpoint.

    Parameters
    ----------
    path : path-like
        A checkpoint, as `open` takes it.
    against : path-like, optional
        The dense checkpoint that it was made from. Then every tensor has to be there, dense ones and kept elements with
        the same bits, and each mask has to be the one that the recorded pattern selects. Where no pattern is recorded,
        what was dropped is not judged.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.

    Returns
    -------
    Report
        With the kept energies where `against` is given.

    Raises
    ------
    FormatError
        If something is wrong; the message names every tensor that is.
    OSError
        If a file cannot be read.
    """
    started = time.perf_counter()
    checked = Checkpoint(path)
    dense = None if against is None else Checkpoint(against)
    problems: list[str] = []
    if dense is not None:
        problems += [f"tensor {name!r} is missing" for name in dense if name not in checked]
    ticker = Ticker(progress, sum(entry.nbytes for entry in checked._entries.values()))
    rows = []
    for name in checked:
        row = _stored(checked, name)
        try:
            row = replace(row, kept_energy=_check(checked, dense, name))
        except FastSparseError as error:
            problems.append(str(error).removeprefix(f"{checked.path}: "))
        rows.append(row)
        ticker.tick(row.bytes_after, name)
    if problems:
        raise FormatError(f"{checked.path}: " + "; ".join(problems))
    return Report(checked.path, None, tuple(rows), time.perf_counter() - started)


def _check(checked: Checkpoint, dense: Checkpoint | None, name: str) -> float | None:
    """Checks one tensor; returns the kept energy where that is known."""
    found = checked._tensors[name]
    energy = None
    if dense is not None:
        original = dense._tensors.get(name)
        with checked._blame(name):
            if not isinstance(original, Entry):
                raise FormatError("it is not a dense tensor of the source")
            if (original.dtype, original.shape) != (found.dtype, found.shape):
                raise FormatError(f"the source has {original.dtype} {list(original.shape)}")
            if isinstance(found, Packed):
                energy = _check_kept(checked._packed(found), found, dense._array(original))
            elif name in checked._pruned:
                energy = _check_zeros(checked._array(found), checked._pruned[name], dense._array(original))
            elif not _same(checked._raw(found), dense._raw(original)):
                raise FormatError("it differs from the source")
        dense.release(name)
    elif isinstance(found, Packed):
        checked._packed(found)
    elif name in checked._pruned:
        with checked._blame(name):
            _check_zeros(checked._array(found), checked._pruned[name])
    checked.release(name)
    return energy


def _check_kept(array: BitmaskArray, found: Packed, w: NDArray[Any]) -> float | None:
    """Holds a packed tensor against the original; returns the kept energy."""
    for start, stop in _pieces(w):
        part, own = (array.rows(start, stop), w[start:stop]) if w.ndim > 1 else (array, w)
        if not np.array_equal(flat_bytes(ops.pack(own, part.mask).values), flat_bytes(part.values)):
            raise FormatError("kept elements differ from the source")
    if found.pattern is not None and mask_of(w, found.pattern, found.exact) != array.mask:
        raise FormatError(f"the mask is not the one that {found.pattern!r} selects")
    return kept_energy(array.values, w)


def _check_zeros(dense: NDArray[Any], pruned: tuple[Pattern, float], w: NDArray[Any] | None = None) -> float | None:
    """Holds a dense tensor against what is recorded of its zeros, and against the original; returns the kept energy."""
    pattern, share = pruned
    if density(ops.select(dense, Nonzero()).count, dense.shape) != share:
        raise FormatError(f"it has other zeros than recorded: the density {share!r} is wrong")
    if w is None:
        return None
    bits = ops.select(w, pattern).bits
    for start, stop in _pieces(w):
        part, own = (bits[start:stop], w[start:stop]) if w.ndim > 1 else (bits, w)
        expected = ops.apply_mask(own, Bitmask.from_bits(part, own.shape))
        if not np.array_equal(flat_bytes(expected), flat_bytes(dense[start:stop] if w.ndim > 1 else dense)):
            raise FormatError(f"it is not what {pattern!r} makes of the source")
    return kept_energy(dense, w)


def _same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return all(np.array_equal(a[at : at + _PIECE], b[at : at + _PIECE]) for at in range(0, a.size, _PIECE))


def _pieces(w: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Some rows at a time, so that what is made of them is small; of fewer than two dimensions all at once."""
    if w.ndim < 2:
        yield 0, w.size
        return
    step = max(1, _PIECE * len(w) // max(w.nbytes, 1))
    for start in range(0, len(w), step):
        yield start, min(start + step, len(w))
