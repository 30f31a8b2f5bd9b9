"""What coremltools' pruning keeps, bit for bit.

    magnitude   zero where |w| <= np.percentile(|w|, 100 q): every tie goes
    blocks      the same with |w| replaced by the l2 norm of its block, computed in the dtype of the weights
    n:m         the n smallest of each m along a dimension, zeros behind the last ones included
    threshold   zero where |w| <= the threshold, rounded to the dtype of the weights

and of what that keeps only what is not zero. Nothing is sorted for a percentile: selecting k zeros and k + 2 differs in
two elements, those in the places k and k + 1. Norms are made by the very operations that coremltools has NumPy do,
because the order of the additions shows in the last bit, but a few rows at a time, which stay in the cache.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import _backend, ops
from fastsparse._errors import FastSparseError
from fastsparse.masks import Bitmask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Nonzero, Threshold

__all__ = ["by_block", "by_magnitude", "by_n_m", "by_threshold"]

_SLAB = 1 << 20
"""Bytes of weights whose norms are computed at a time: they and their squares fit into the second-level cache."""


def by_threshold(w: NDArray[Any], threshold: float) -> BitmaskArray:
    """What is above a threshold."""
    return ops.compress(w, Threshold(float(w.dtype.type(threshold))))


def by_magnitude(w: NDArray[Any], sparsity: float) -> BitmaskArray:
    """What is above a percentile of the magnitudes."""
    if sparsity == 0 or not w.size:
        return ops.pack(w)
    if sparsity * 100 == 100:
        return ops.pack(np.zeros_like(w))
    cut = _percentile(lambda *places: _in_order(w, *places), w.size, sparsity * 100)
    if not math.isfinite(cut):
        raise FastSparseError(f"w: infinities leave the {sparsity:%} percentile of the magnitudes undefined")
    return ops.compress(w, Threshold(float(cut)))


def by_block(w: NDArray[Any], sparsity: float, length: int, axis: int) -> BitmaskArray:
    """What lies in blocks along an axis, 0 or 1, whose norm is above a percentile of the norms of all elements."""
    if sparsity == 0 or not w.size:
        return ops.pack(w)
    if sparsity * 100 == 100:
        return ops.pack(np.zeros_like(w))
    norms = _norms(w, length, axis)
    if np.isnan(norms).any():
        ops.select(w, "50%")  # says where
    channels, rest = w.shape[axis], w.shape[axis] % length
    if rest:
        # Each norm counts once for every element of its block, and the last block of a channel has fewer.
        of_each = np.repeat(norms, length, axis=axis).take(range(channels), axis)
        cut = _percentile(lambda *places: _in_order(of_each, *places), w.size, sparsity * 100)
    else:
        cut = _percentile(lambda *places: _in_order(norms, *(p // length for p in places)), w.size, sparsity * 100)
    keep = np.repeat(~(norms <= cut), length, axis=axis)
    if rest:
        keep = keep[:channels] if axis == 0 else keep[:, :channels]
    return _without_zeros(w, Bitmask.from_bool(keep))


def by_n_m(w: NDArray[Any], zeros: int, of: int, axis: int) -> BitmaskArray:
    """What n:m along an axis, 0 or 1, keeps; zeros behind the last elements make the groups full."""
    mask = ops.select(w, NM(zeros=zeros, of=of, axis=axis, tail="keep"))
    rest = w.shape[axis] % of
    left = zeros - (of - rest)
    if rest and left > 0:
        keep = mask.to_bool()
        tail = (slice(None),) * axis + (slice(w.shape[axis] - rest, None),)
        keep[tail] = ops.select(w[tail], NM(zeros=left, of=rest, axis=axis)).to_bool()
        mask = Bitmask.from_bool(keep)
    return _without_zeros(w, mask)


def _without_zeros(w: NDArray[Any], mask: Bitmask) -> BitmaskArray:
    return ops.pack(w, mask & ops.select(w, Nonzero()))


def _in_order(values: NDArray[Any], place: int, following: int) -> tuple[Any, Any]:
    """The magnitudes in two places of all magnitudes in order, the same or neighbours; 0 is the smallest."""
    flat = values.reshape(-1)
    fewer, more = (
        _backend.active.select(flat, ("exact", zeros), None, None, None)[1][0] for zeros in (place, following + 1)
    )
    differ = fewer ^ more
    found = [
        flat[8 * byte + bit] for byte in np.flatnonzero(differ != 0) for bit in range(8) if differ[byte] >> bit & 1
    ]
    a, *_, b = sorted(abs(value) for value in 2 * found)
    return a, b


def _percentile(in_order: Callable[[int, int], tuple[Any, Any]], count: int, q: float) -> Any:
    """`np.percentile` of `count` values, given those in two places: linear, in the dtype of the values."""
    where = (count - 1) * (q / 100)
    place = math.floor(where)
    share = where - place
    a, b = in_order(place, min(place + 1, count - 1))
    with np.errstate(invalid="ignore"):  # infinite norms
        distance, kind = b - a, b.dtype.type
        return b - distance * kind(1 - share) if share >= 0.5 else a + distance * kind(share)


def _norms(w: NDArray[Any], length: int, axis: int) -> NDArray[Any]:
    """The l2 norms of the blocks: shape of `w`, along the axis one for each block."""
    row = max(w.nbytes // w.shape[0], 1)
    step = max(_SLAB // row, 2)
    if axis == 0:
        step = -(-step // length) * length
    # A slab of a single row would be laid out, and summed, in another order than one of several.
    slabs = [*pairwise([*range(0, max(w.shape[0] - 1, 1), step), w.shape[0]])]
    threads = min(_backend.active.get_num_threads(), len(slabs))
    shares = [slabs[len(slabs) * i // threads : len(slabs) * (i + 1) // threads] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        norms = [*chain.from_iterable(pool.map(lambda own: _norms_of(w, own, length, axis), shares))]
    return np.concatenate(norms)


def _norms_of(w: NDArray[Any], slabs: list[tuple[int, int]], length: int, axis: int) -> list[NDArray[Any]]:
    """Those of some slabs of rows, one slab after the other in the same memory."""
    norms = []
    squares = np.empty(0)
    for start, stop in slabs:
        first = np.swapaxes(w[start:stop], 0, 1) if axis == 1 else w[start:stop]
        missing = -first.shape[0] % length
        if missing:
            first = np.pad(first, [(0, missing)] + [(0, 0)] * (w.ndim - 1))
        blocks = first.reshape(first.shape[0] // length, length, *first.shape[1:])
        if squares.shape != blocks.shape or squares.strides != blocks.strides:
            squares = np.empty_like(blocks)
        with np.errstate(over="ignore", under="ignore"):
            np.multiply(blocks, blocks, out=squares)
            found = np.sqrt(np.sum(squares, axis=1))
        norms.append(np.swapaxes(found, 0, 1) if axis == 1 else found)
    return norms
