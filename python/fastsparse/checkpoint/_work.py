"""The work on one tensor: pure functions of the source and a job, which give the same bytes wherever they run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import SCALE, Entry, Packed
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._reader import Reader, native
from fastsparse.masks import Bitmask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero, Pattern, Unstructured
from fastsparse.quantized import QuantizedArray

__all__ = [
    "TensorResult",
    "count_kept",
    "flat_bytes",
    "kept_energy",
    "mask_of",
    "pack",
    "parts_of",
    "prune_or_pack",
    "unpack",
]


@dataclass(frozen=True)
class TensorResult:
    """A tensor, ready to be written: the bytes of its keys, the digest of what was read for it, the kept energy."""

    parts: Mapping[str, NDArray[np.uint8]]
    source: str
    kept_energy: float | None = None


def prune_or_pack(source: Reader, job: Job) -> TensorResult:
    """Does what a plan says about a tensor: packs it, makes zeros in it, or takes it as it is."""
    if job.packed is not None:
        return _pack(source, job, job.packed)
    if job.pruned is not None:
        return _prune(source, job, job.pruned)
    return TensorResult({job.entry.key: source.raw(job.entry)}, source.digest(job.name))


def _prune(source: Reader, job: Job, pattern: Pattern) -> TensorResult:
    w = source.array(job.entry)
    with source.error_context(job.name):
        dense = ops.prune(w, pattern)
    done = TensorResult({job.entry.key: flat_bytes(dense)}, source.digest(job.name), kept_energy(dense, w))
    source.release(job.name)
    return done


def _pack(source: Reader, job: Job, packed: Packed) -> TensorResult:
    assert packed.pattern is not None, "a plan packs by a pattern"
    w = source.array(job.entry)
    with source.error_context(job.name):
        array = pack(w, packed.pattern, packed.exact)
        if array.nnz != job.kept:
            raise FastSparseError("it changed while it was read")
        energy = kept_energy(array.values, w)
        stored = array if packed.bits is None else array.quantize(packed.bits)
    done = TensorResult(parts_of(packed, stored), source.digest(job.name), energy)
    source.release(job.name)
    return done


def unpack(source: Reader, job: Job) -> TensorResult:
    """A tensor with its dense bytes."""
    found = source.tensors[job.name]
    if isinstance(found, Entry):
        return TensorResult({job.name: source.raw(found)}, source.digest(job.name))
    done = TensorResult({job.name: flat_bytes(source.packed(found).to_dense())}, source.digest(job.name))
    source.release(job.name)
    return done


def pack(w: NDArray[Any], chosen: Pattern, exact: bool) -> BitmaskArray:
    """What the pattern keeps, without zeros; `exact` says that it keeps none."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w)
    if exact:
        return ops.compress(w, chosen)
    return ops.pack(w, mask_of(w, chosen, exact))


def mask_of(w: NDArray[Any], chosen: Pattern, exact: bool) -> Bitmask:
    """The mask of what `pack` gives."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w).mask  # `select` refuses NaN, which is not zero
    mask = ops.select(w, chosen)
    return mask if exact else mask & ops.select(w, Nonzero())


def count_kept(w: NDArray[Any], chosen: Pattern) -> tuple[int, bool]:
    """How many elements a pattern keeps that are not zero, and whether those are all that it keeps."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w).nnz, True
    nonzero = ops.select(w, Nonzero())
    fixed = chosen.kept_count(w.shape)
    if fixed is not None and nonzero.count == w.size:
        return fixed, True
    if fixed is not None and isinstance(chosen, Unstructured) and chosen.per == "tensor":
        return min(fixed, nonzero.count), fixed <= nonzero.count
    mask = ops.select(w, chosen)
    kept = (mask & nonzero).count
    return kept, kept == mask.count


def parts_of(packed: Packed, tensor: BitmaskArray | QuantizedArray) -> dict[str, NDArray[np.uint8]]:
    """The bytes of a packed tensor's keys."""
    array = tensor if isinstance(tensor, BitmaskArray) else tensor.packed
    parts: dict[str, NDArray[Any]] = {
        "shape": np.array(packed.shape, np.int64),
        "compressed": array.values,
        "bitmask": array.bitmask,
        "row_offsets": array.row_offsets[:-1],
        "stub": array.values[:0],
    }
    if isinstance(tensor, QuantizedArray):
        parts[SCALE] = tensor.scale
    return {entry.key: flat_bytes(parts[part]) for part, entry in packed.entries(array.nnz).items()}


def flat_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def kept_energy(kept: NDArray[Any], w: NDArray[Any]) -> float | None:
    """Sum of squares of the kept elements over that of all."""
    sum_of_squares = native().sum_of_squares
    total = sum_of_squares(w)
    share = sum_of_squares(kept) / total if total else 1.0
    return share if math.isfinite(share) else None
