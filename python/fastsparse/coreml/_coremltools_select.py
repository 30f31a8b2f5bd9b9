"""What coremltools' pruning keeps, bit for bit.

    magnitude   zero where |w| <= np.percentile(|w|, 100 q): every tie is pruned
    blocks      the same with |w| replaced by the l2 norm of its block, computed in the dtype of the weights
    n:m         the n smallest of each m along a dimension, zeros after the last ones included; of equal ones those
                that the sorting of NumPy puts first
    threshold   zero where |w| <= the threshold, rounded to the dtype of the weights

and of what that keeps only what is not zero. Nothing is sorted for a percentile: selecting k zeros and k + 2 differs in
two elements, those in the places k and k + 1. Norms are added up in the order of NumPy, because that shows in the last
bit. Up to 16 float16 NumPy sorts by insertion, which leaves equal ones in order; how it sorts others depends on the
machine, and equal ones among them keep the lower index here.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import _backend, ops
from fastsparse._errors import FastSparseError
from fastsparse.masks import Bitmask, matrix_view, new_mask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Nonzero, Threshold

__all__ = ["by_block", "by_magnitude", "by_n_m", "by_threshold", "without_zeros"]


_INSERTION = 16
"""Up to how many float16 NumPy sorts by insertion."""


def by_threshold(w: NDArray[Any], threshold: float) -> BitmaskArray:
    """What is above a threshold."""
    return ops.compress(w, Threshold(float(w.dtype.type(threshold))))


def by_magnitude(w: NDArray[Any], sparsity: float) -> BitmaskArray:
    """What is above a percentile of the magnitudes."""
    if sparsity == 0 or not w.size:
        return ops.pack(w)
    if sparsity * 100 == 100:
        return ops.pack(np.zeros_like(w))
    cut, (_, b), rest = _percentile(lambda *places: _in_order(w, *places), w.size, sparsity * 100)
    if not math.isfinite(cut):
        raise FastSparseError(f"w: infinities leave the {sparsity:%} percentile of the magnitudes undefined")
    return ops.pack(w, rest) if cut < b else ops.compress(w, Threshold(float(cut)))


def by_block(w: NDArray[Any], sparsity: float, length: int, axis: int) -> BitmaskArray:
    """What lies in blocks along an axis, 0 or 1, whose norm is above a percentile of the norms of all elements."""
    if sparsity == 0 or not w.size:
        return ops.pack(w)
    if sparsity * 100 == 100:
        return ops.pack(np.zeros_like(w))
    norms = _backend.active.block_norms(w, length, axis)
    if np.isnan(norms).any():
        ops.select(w, "50%")  # says where
    channels = w.shape[axis]
    if channels % length:
        # Each norm counts once for every element of its block, and the last block of a channel has
        # fewer.
        each, times = np.repeat(norms, length, axis=axis).take(range(channels), axis), 1
    else:
        each, times = norms, length

    def in_order(*places: int) -> tuple[tuple[Any, ...], Bitmask]:
        pair, rest = _in_order(each, *(place // times for place in places))
        return tuple(map(w.dtype.type, pair)), rest

    cut, *_ = _percentile(in_order, w.size, sparsity * 100)
    if np.isnan(cut):  # between infinite norms: nothing is below that
        return ops.pack(w)
    mask = new_mask(*_backend.active.blocks_above(norms, w.shape, float(cut), length, axis))
    # A kept block of many holds a zero, as a rule: `without_zeros` would then pack everything
    # twice.
    return ops.pack(w, mask & ops.select(w, Nonzero()))


def by_n_m(w: NDArray[Any], zeros: int, of: int, axis: int) -> BitmaskArray:
    """What n:m along an axis, 0 or 1, keeps; zeros after the last elements make the groups full."""
    rest = w.shape[axis] % of
    in_rest = max(zeros - (of - rest), 0) if rest else 0
    if w.dtype == np.float16 and of <= _INSERTION:
        # Pruned is the largest of -|w|, of equal ones the first.
        lowest = (w.view(np.uint16) | 0x8000).view(np.float16)
        try:
            mask = ~_in_groups(w, lowest, of - zeros, of, axis, rest - in_rest)
        except FastSparseError:
            ops.select(w, "50%")  # says where, and of w
            raise
    else:
        mask = _in_groups(w, None, zeros, of, axis, in_rest)
    return without_zeros(w, ops.pack(w, mask))


def _in_groups(w: NDArray[Any], scores: NDArray[Any] | None, zeros: int, of: int, axis: int, in_rest: int) -> Bitmask:
    """n:m with that many zeros in the last, shorter group."""
    mask = ops.select(w, NM(zeros=zeros, of=of, axis=axis, tail="keep"), scores=scores)
    rest = w.shape[axis] % of
    if not rest or not in_rest:
        return mask
    keep = mask.to_bool()
    tail = (slice(None),) * axis + (slice(w.shape[axis] - rest, None),)
    last = NM(zeros=in_rest, of=rest, axis=axis)
    keep[tail] = ops.select(w[tail], last, scores=None if scores is None else scores[tail]).to_bool()
    return Bitmask.from_bool(keep)


def without_zeros(w: NDArray[Any], kept: BitmaskArray) -> BitmaskArray:
    """What is kept of `w` and not zero: Core ML's mask says what is not zero."""
    if ops.select(kept.values, Nonzero()).count == kept.nnz:
        return kept
    return ops.pack(w, kept.mask & ops.select(w, Nonzero()))


def _in_order(values: NDArray[Any], place: int, following: int) -> tuple[tuple[Any, ...], Bitmask]:
    """The magnitudes in two places of all in order, the same or neighbours, and a mask of what is from the second on.

    The smallest is in place 0. The mask is one of several where the two are equal.
    """
    (shape, fewer, _), (_, more, _) = (
        _backend.active.select(values, ("exact", zeros), None, None, None) for zeros in (place, following + 1)
    )
    differ, matrix = fewer ^ more, values.reshape(matrix_view(shape))
    found = [
        (abs(matrix[row, 8 * byte + bit]), row, byte, 1 << bit)
        for row, byte in (divmod(at, differ.shape[1]) for at in np.flatnonzero(differ.reshape(-1) != 0))
        for bit in range(8)
        if differ[row, byte] >> bit & 1
    ]
    (a, *_), *_, (b, row, byte, bit) = sorted(2 * found)
    rest = more.copy()
    rest[row, byte] |= bit
    rest.flags.writeable = False
    return (a, b), new_mask(shape, rest, values.size - following)


def _percentile(
    in_order: Callable[[int, int], tuple[tuple[Any, ...], Bitmask]], count: int, q: float
) -> tuple[Any, tuple[Any, ...], Bitmask]:
    """`np.percentile` of `count` values, given those in two places: linear, in the dtype of the values. And those."""
    where = (count - 1) * (q / 100)
    place = math.floor(where)
    share = where - place
    (a, b), rest = in_order(place, min(place + 1, count - 1))
    with np.errstate(invalid="ignore"):  # infinite norms
        distance, kind = b - a, b.dtype.type
        cut = b - distance * kind(1 - share) if share >= 0.5 else a + distance * kind(share)
    return cut, (a, b), rest
