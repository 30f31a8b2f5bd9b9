"""The sparse layouts of compressed-tensors 0.3 to 0.14.0.1, which no maintained package reads or writes any more.

Arrays go in and out here; `fastsparse.checkpoint` opens whole files and model folders in these layouts, and `convert`
turns them into each other. `docs/interop.md` says what is supported. Nothing of that package is imported, and nothing
that a config names is.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import checkpoint, ops
from fastsparse._errors import FastSparseError, FormatError
from fastsparse._layout import METADATA_KEY, TWO_FOUR, Entry, Packed, density, prefix_for, write_record
from fastsparse._open import Checkpoint, StrPath, matrix_bits
from fastsparse._plan import Job, Progress, Ticker, flat_bytes
from fastsparse._report import Report
from fastsparse._resume import Done, Shard
from fastsparse._run import Task, ahead, workers
from fastsparse._target import Target, check_formats, check_target
from fastsparse.masks import Bitmask, checked_shape
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero, Pattern
from fastsparse.recipe import Recipe

__all__ = ["convert", "from_sparse24", "from_sparse_bitmask", "to_sparse24", "to_sparse_bitmask"]

_FORMS = {"sparse-bitmask": "sparse-bitmask", "sparse-24": "sparse-24-bitmask"}
"""What can be written packed, and what compressed-tensors calls it."""


def from_sparse_bitmask(compressed: ArrayLike, bitmask: ArrayLike, shape: tuple[int, ...]) -> BitmaskArray:
    """A tensor of the sparse-bitmask layout.

    Parameters
    ----------
    compressed : array_like, ``[nnz]``
        Kept elements, row-major.
    bitmask : array_like of uint8, ``[…, ceil(last/8)]``
        The mask; every run along the last axis starts on a byte.
    shape : tuple of int
        Shape of the tensor.

    Raises
    ------
    FormatError
        If the parts contradict each other or a padding bit is set.

    Examples
    --------
    >>> import numpy as np
    >>> bits = np.uint8([[0x82, 0x02], [0x00, 0x02]])
    >>> from_sparse_bitmask(np.float32([7, 56.3, 1, 2]), bits, (2, 10)).to_dense()[0]
    array([ 0. ,  7. ,  0. ,  0. ,  0. ,  0. ,  0. , 56.3,  0. ,  1. ], dtype=float32)
    """
    size, bits = checked_shape(shape), np.asarray(bitmask)
    if not size:
        raise FormatError("shape: a scalar has no last axis that a mask could lie along")
    wanted = (*size[:-1], -(-size[-1] // 8))
    if bits.dtype != np.uint8 or bits.shape != wanted:
        raise FormatError(f"bitmask: expected uint8 of shape {wanted}, got {bits.dtype} of shape {bits.shape}")
    return BitmaskArray.from_parts(compressed, matrix_bits(bits, size), size)


def to_sparse_bitmask(s: BitmaskArray) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """The parts of a tensor in the sparse-bitmask layout, with the bytes that compressed-tensors gives them.

    Parameters
    ----------
    s : BitmaskArray
        Of at least one dimension.

    Returns
    -------
    compressed : ndarray, ``[nnz]``
        Kept elements, row-major.
    bitmask : ndarray of uint8, ``[…, ceil(last/8)]``
        The mask; every run along the last axis starts on a byte.
    row_offsets : ndarray of int64, ``[…]``
        Exclusive sums of the counts of those runs, over the first axis, as compressed-tensors has them: of a matrix
        where its rows start in `compressed`, of more dimensions no offsets.

    Raises
    ------
    FastSparseError
        If the tensor is a scalar.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> to_sparse_bitmask(fs.pack(np.int8([[0, 3], [4, 5]])))
    (array([3, 4, 5], dtype=int8), array([[2], [3]], dtype=uint8), array([0, 1]))
    """
    if not s.shape:
        raise FastSparseError("s: a scalar has no last axis that a mask could lie along")
    if len(s.shape) == 2:
        return s.values, s.bitmask, s.row_offsets[:-1]
    counts = s.mask.to_bool().sum(axis=-1, dtype=np.int64)
    offsets = np.asarray(np.cumsum(counts, axis=0) - counts if counts.ndim else np.int64(0))
    if s.shape[-1] % 8 == 0:
        bits = s.bitmask.reshape(*s.shape[:-1], s.shape[-1] // 8)
    else:
        bits = np.packbits(s.mask.to_bool(), axis=-1, bitorder="little")
    return s.values, bits, offsets


def from_sparse24(compressed: ArrayLike, bitmask: ArrayLike, shape: tuple[int, ...]) -> BitmaskArray:
    """A matrix of the sparse-24-bitmask layout.

    Parameters
    ----------
    compressed : array_like, ``[rows, cols/2]``
        Two elements of every four, row-major. Groups with fewer than two non-zeros have zeros among them, which stay
        kept elements; `fs.pack` of the dense tensor leaves them out.
    bitmask : array_like of uint8, ``[rows, ceil(cols/8)]``
        Two bits in every four, in whichever places.
    shape : tuple of int
        Rows and columns; the array ``[2, 1]`` of files is taken as well.

    Returns
    -------
    BitmaskArray
        With the pattern ``2:4``.

    Raises
    ------
    FormatError
        If the parts contradict each other, a group has not exactly two bits, or the shape is no matrix with groups of
        4.

    Examples
    --------
    >>> import numpy as np
    >>> compressed = np.float32([[7, 3, 5, 56.3], [1, 2, 0, -0.0]])
    >>> from_sparse24(compressed, np.uint8([[0xCA], [0xC3]]), (2, 8)).to_dense()
    array([[ 0. ,  7. ,  0. ,  3. ,  0. ,  0. ,  5. , 56.3],
           [ 1. ,  2. ,  0. ,  0. ,  0. ,  0. ,  0. , -0. ]], dtype=float32)
    """
    size, values = checked_shape(np.ravel(shape)), np.asarray(compressed)
    if len(size) != 2 or size[1] % 4:
        raise FormatError(f"shape: expected a matrix with a multiple of 4 columns, got {size}")
    if values.shape != (size[0], size[1] // 2):
        raise FormatError(f"compressed: expected shape {(size[0], size[1] // 2)}, got {values.shape}")
    return BitmaskArray.from_parts(values.reshape(-1), bitmask, size, pattern=TWO_FOUR)


def to_sparse24(s: BitmaskArray) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The parts of a matrix in the sparse-24-bitmask layout; the inverse of `from_sparse24`.

    A group with fewer than two kept elements is filled up with zeros, the lowest places first. One with more gives up
    those that are zero.

    Parameters
    ----------
    s : BitmaskArray
        A matrix with a multiple of 4 columns and at most two non-zeros in every four.

    Returns
    -------
    compressed : ndarray, ``[rows, cols/2]``
        Two elements of every four.
    bitmask : ndarray of uint8, ``[rows, ceil(cols/8)]``
        Two bits in every four.

    Raises
    ------
    FastSparseError
        If it is something else; the message has the first group with three non-zeros.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> to_sparse24(fs.pack(np.int8([[0, 7, 0, 3, 0, 0, 5, 0]])))
    (array([[7, 3, 0, 5]], dtype=int8), array([[90]], dtype=uint8))
    """
    if len(s.shape) != 2 or s.shape[1] % 4:
        raise FastSparseError(f"s: expected a matrix with a multiple of 4 columns, got shape {s.shape}")
    rows, cols = s.shape
    if s.pattern == TWO_FOUR and 2 * s.nnz == rows * cols:
        return s.values.reshape(rows, cols // 2), s.bitmask
    dense = s.to_dense()
    kept = s.bitmask
    if _FILLED[kept].min(initial=1) == 0:
        kept = ops.pack(dense).bitmask
    filled = _FILLED[kept]
    if filled.min(initial=1) == 0:
        row, byte = divmod(int(np.argmin(filled)), filled.shape[1])
        column = 8 * byte + (4 if _FILLED[kept[row, byte] & 15] else 0)
        raise FastSparseError(
            f"s: three or four non-zeros in columns {column} to {column + 3} of row {row}; 2:4 has two at most"
        )
    if cols % 8:
        filled[:, -1] &= 15
    packed = ops.pack(dense, Bitmask.from_bits(filled, s.shape))
    return packed.values.reshape(rows, cols // 2), packed.bitmask


def _fill(half: int) -> int:
    """Four bits with the lowest that are missing for two; 0 where there are more than two."""
    while half.bit_count() < 2:
        half |= half + 1
    return half if half.bit_count() == 2 else 0


_FILLED = np.array(
    [
        low | high << 4 if low and high else 0
        for low, high in ((_fill(byte & 15), _fill(byte >> 4)) for byte in range(256))
    ],
    np.uint8,
)
"""A byte of a mask with two bits in each half; 0 where a half has more."""


def convert(
    src: StrPath, dst: StrPath, to: str, *, progress: Progress | None = None, overwrite: bool = False
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
        return checkpoint.decompress(src, dst, progress=progress, overwrite=overwrite)
    if to not in _FORMS:
        raise FastSparseError(f"to: expected {', '.join(_FORMS)} or dense, got {to!r}")
    started = time.perf_counter()
    source = Checkpoint(src)
    check_formats(source)
    check_target(source, dst, overwrite)
    stored = {name: sum(entry.nbytes for entry in source._keys(name)) for name in source}
    ticker = Ticker(progress, 2 * sum(stored.values()))
    rows = []
    with workers() as pool:
        jobs = []
        taken = set(source)
        with closing(ahead(pool, _looks(source, to, stored), _largest(source))) as looks:
            for name, (kept, reason) in zip(source, looks, strict=True):
                jobs.append(_job(source, name, to, kept, reason, taken))
                ticker.tick(stored[name], name)
        if all(job.packed is None for job in jobs):
            reasons = "; ".join(f"{job.name!r}: {job.reason}" for job in jobs[:3]) or "it has no tensors"
            raise FastSparseError(f"{source.path}: nothing to store as {to}: {reasons}")
        shards = [_shard(source, shard, jobs) for shard in source._shards]
        report = Report(source.path, None, tuple(job.report() for job in jobs), 0.0)
        work = {
            job.name: Task(
                _run, (source, job), peak=stored[job.name] + 2 * job.entry.nbytes, held=job.report().bytes_after
            )
            for job in jobs
        }
        with (
            Target(source, dst, shards, overwrite, report, _FORMS[to]) as target,
            closing(target.fill(pool, work, _largest(source))) as written,
        ):
            for job, (name, _) in zip(jobs, written, strict=True):
                rows.append(replace(job.report(), bytes_before=stored[name]))
                ticker.tick(stored[name], name)
    seconds = time.perf_counter() - started
    return Report(source.path, os.fspath(dst), tuple(rows), seconds, tuple(target.resumed))


def _largest(source: Checkpoint) -> int:
    return max((found.nbytes for found in source._tensors.values()), default=0)


def _shard(source: Checkpoint, shard: str, jobs: list[Job]) -> Shard:
    """What a shard will hold."""
    own = [job for job in jobs if job.shard == shard]
    record = [(job.packed, density(job.kept, job.entry.shape)) for job in own if job.packed is not None]
    metadata = {**source._metadata[shard], METADATA_KEY: write_record(record)}
    return Shard(shard, [job.name for job in own], [entry for job in own for entry in job.entries], metadata)


def _looks(source: Checkpoint, to: str, stored: Mapping[str, int]) -> Iterator[Task[tuple[int, str | None]]]:
    for name, found in source._tensors.items():
        reason = _why_dense(found, name, to)
        if reason is None:
            yield Task(_look, (source, name, to), peak=stored[name] + 2 * found.nbytes)
        else:
            yield Task(_refused, (reason,), peak=0, here=True)


def _refused(reason: str) -> tuple[int, str | None]:
    return 0, reason


def _why_dense(found: Packed | Entry, name: str, to: str) -> str | None:
    """Why a tensor of this name, shape and dtype is not stored packed; None where its values decide."""
    if name != "weight" and not name.endswith(".weight"):
        return "packed, compressed-tensors would read it under another name"
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


def _look(source: Checkpoint, name: str, to: str) -> tuple[int, str | None]:
    """How many elements of a tensor the layout keeps, or why it cannot hold it."""
    with source._blame(name):
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


def _packed(source: Checkpoint, name: str) -> BitmaskArray:
    found = source._tensors[name]
    return source._packed(found) if isinstance(found, Packed) else ops.pack(source._array(found))


def _nonzero(array: BitmaskArray) -> BitmaskArray:
    """The tensor without kept elements that are zero."""
    return array if ops.select(array.values, Nonzero()).count == array.nnz else ops.pack(array.to_dense())


def _job(source: Checkpoint, name: str, to: str, kept: int, reason: str | None, taken: set[str]) -> Job:
    """What becomes of a tensor."""
    found = source._tensors[name]
    entry = Entry(name, found.dtype, found.shape, found.nbytes)
    shard = source._shard_of(found)
    prefix = prefix_for(name, taken) if reason is None else None
    if reason is not None or prefix is None:
        return Job(name, entry, shard, reason=reason or "other tensors have the names of its parts")
    known = found.pattern if isinstance(found, Packed) else None
    if to == "sparse-24":
        packed = Packed(name, prefix, found.dtype, found.shape, TWO_FOUR, True, "2:4")
    else:
        layout = "matrix" if len(found.shape) == 2 else "last-axis"
        exact = known is None or (isinstance(found, Packed) and found.exact and kept == _kept(source, found))
        packed = Packed(name, prefix, found.dtype, found.shape, known or Nonzero(), exact, layout)
    job = Job(name, entry, shard, packed, kept)
    size = job.report().bytes_after
    if size > entry.nbytes:
        return Job(name, entry, shard, reason=f"packed it would be larger, {size} bytes")
    taken.update(packed.keys)
    return job


def _kept(source: Checkpoint, found: Packed) -> int:
    """How many elements a tensor keeps as it is stored."""
    return math.prod(source._entries[found.key("compressed")].shape)


def _run(source: Checkpoint, job: Job) -> Done:
    """Packs or unpacks the tensor of a job."""
    found = source._tensors[job.name]
    if job.packed is None:
        if isinstance(found, Entry):
            return Done({job.name: source._raw(found)}, source.digest(job.name))
        return Done({job.name: flat_bytes(source._packed(found).to_dense())}, source.digest(job.name))
    array = _packed(source, job.name)
    parts: dict[str, NDArray[Any]] = {"shape": np.array(job.packed.shape, np.int64)}
    if job.packed.layout == "2:4":
        parts["compressed"], parts["bitmask"] = to_sparse24(array)
    else:
        parts["compressed"], parts["bitmask"], parts["row_offsets"] = to_sparse_bitmask(_nonzero(array))
    if parts["compressed"].size != job.kept:
        raise FastSparseError(f"{source.path}: tensor {job.name!r} changed while it was read")
    done = Done({job.packed.key(part): flat_bytes(content) for part, content in parts.items()}, source.digest(job.name))
    source.release(job.name)
    return done
