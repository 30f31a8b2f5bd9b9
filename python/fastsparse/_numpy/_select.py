"""Selection: unstructured, n:m, top-k, blocks."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import Keep, Shape, Spec, matrix_view
from fastsparse._numpy._ranking import Ranking, ordered_keys
from fastsparse.patterns import zeros_in_every


def _smallest(keys: NDArray[Any], zeros: int) -> Keep:
    """In each row of a matrix, drops the `zeros` smallest; of equal ones those with the higher index."""
    cols = keys.shape[1]
    if zeros == 0 or zeros == cols:
        return np.full(keys.shape, zeros == 0)
    bound = np.partition(keys, zeros, axis=1)[:, zeros : zeros + 1]
    keep = keys > bound
    ties = keys == bound
    wanted = cols - zeros - np.count_nonzero(keep, axis=1)
    keep |= ties & (np.cumsum(ties, axis=1, dtype=np.int64) <= wanted[:, None])
    return keep


def zero_count(sparsity: float, items: int) -> int:
    return min(round(sparsity * float(items)), items)


def along_axis(shape: Shape, axis: int) -> tuple[int, int, int]:
    """The tensor as outer × length × inner around an axis; a scalar has one axis of length 1."""
    dims = shape or (1,)
    if not -len(dims) <= axis < len(dims):
        raise FastSparseError(f"axis: {axis} is out of range for w with {len(shape)} dimensions")
    axis %= len(dims)
    return math.prod(dims[:axis]), dims[axis], math.prod(dims[axis + 1 :])


def zeros_in(length: int, zeros: int, of: int, tail: str) -> int:
    """Zeros in a group of `length`, which is `of` or, at the end of an axis, less."""
    if length == of:
        return zeros
    return round(zeros * float(length) / of) if tail == "proportional" else 0


def runs_of(length: int, of: int) -> list[tuple[int, int, int]]:
    """Full groups and the shorter one of an axis: (first, end, length of a group)."""
    full = length - length % of
    return [(first, end, size) for first, end, size in ((0, full, of), (full, length, length - full)) if end > first]


def _select_groups(ranking: Ranking, zeros: int, of: int, axis: int, tail: str) -> Keep:
    outer, length, inner = along_axis(ranking.keys.shape, axis)
    if tail == "error" and length % of:
        raise FastSparseError(
            f'w: axis of length {length} is not a multiple of {of}; tail="error" forbids a shorter group of '
            + zeros_in_every(zeros, of)
        )
    ranking.reject_nan()
    keys = ranking.keys.reshape(outer, length, inner)
    keep = np.empty(keys.shape, np.bool_)
    for first, end, size in runs_of(length, of):
        groups = keys[:, first:end].reshape(outer, (end - first) // size, size, inner)
        # Stable on the complement: the largest first, of equal ones the lower index.
        order = np.argsort(~groups, axis=2, kind="stable")
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, order[:, :, : size - zeros_in(size, zeros, of, tail)], True, axis=2)
        keep[:, first:end] = kept.reshape(outer, end - first, inner)
    return keep


def as_blocks(shape: Shape, block: int | tuple[int, int], axis: int) -> tuple[tuple[int, int, int], int, int]:
    """The tensor as outer × length × inner, and how many neighbours along length and inner make a block."""
    if isinstance(block, tuple):
        return (1, *matrix_view(shape)), *block
    return along_axis(shape, axis), block, 1


def _block_means(terms: NDArray[np.float64], tall: int, wide: int) -> NDArray[np.float64]:
    """The mean over each block, summed in the order that all backends share.

    The elements of a block in row-major order are padded with zeros to a power of two, and the upper half is added onto
    the lower half until one is left.
    """
    outer, length, inner = terms.shape
    means = np.empty((outer, -(-length // tall), -(-inner // wide)))
    for top, bottom, height in runs_of(length, tall):
        for left, right, width in runs_of(inner, wide):
            down, across, count = (bottom - top) // height, (right - left) // width, height * width
            tiles = terms[:, top:bottom, left:right].reshape(outer, down, height, across, width)
            sums = tiles.transpose(0, 1, 3, 2, 4).reshape(outer, down, across, count)
            padded = 1 << (count - 1).bit_length()
            if padded > count:
                sums = np.concatenate([sums, np.zeros((*sums.shape[:-1], padded - count))], axis=-1)
            while sums.shape[-1] > 1:
                half = sums.shape[-1] // 2
                sums = sums[..., :half] + sums[..., half:]
            rows, cols = slice(top // tall, -(-bottom // tall)), slice(left // wide, -(-right // wide))
            means[:, rows, cols] = sums[..., 0] / count
    return means


def _block_maxima(terms: NDArray[np.float64], tall: int, wide: int) -> NDArray[np.float64]:
    _, length, inner = terms.shape
    if not terms.size:
        return np.empty((terms.shape[0], -(-length // tall), -(-inner // wide)))
    return np.maximum.reduceat(
        np.maximum.reduceat(terms, np.arange(0, length, tall), axis=1), np.arange(0, inner, wide), axis=2
    )


def spread_blocks(blocks: NDArray[Any], dims: tuple[int, int, int], tall: int, wide: int) -> NDArray[Any]:
    """For each element the entry of its block."""
    _, length, inner = dims
    return blocks[:, np.arange(length) // tall][:, :, np.arange(inner) // wide]


def _select_blocks(ranking: Ranking, block: int | tuple[int, int], sparsity: float, axis: int, norm: str) -> Keep:
    dims, tall, wide = as_blocks(ranking.keys.shape, block, axis)
    terms = ranking.numbers().reshape(dims)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if ranking.arg == "w" and norm == "max":
            norms = _block_maxima(terms, tall, wide)
        else:
            norms = _block_means(terms * terms if ranking.arg == "w" and norm == "l2" else terms, tall, wide)
    if np.isnan(norms).any():
        _raise_block_nan(ranking, norms, dims, tall, wide)
    keep = _smallest(ordered_keys(norms).reshape(1, -1), zero_count(sparsity, norms.size))
    return spread_blocks(keep.reshape(norms.shape), dims, tall, wide)


def _raise_block_nan(
    ranking: Ranking, norms: NDArray[np.float64], dims: tuple[int, int, int], tall: int, wide: int
) -> None:
    """Names the first NaN of the first block that is NaN."""
    bad = int(np.argmax(np.isnan(norms)))
    members = spread_blocks(np.arange(norms.size).reshape(norms.shape), dims, tall, wide).reshape(-1) == bad
    nan = np.flatnonzero(members & (ranking.keys.reshape(-1) > ranking.largest))
    if nan.size:
        ranking.raise_nan(int(nan[0]))
    raise FastSparseError(f"{ranking.arg}: the mean of block {bad} is NaN (inf − inf)")


def keep_of(ranking: Ranking, spec: Spec) -> Keep:
    """What stays. Arguments are checked before the numbers, as in the native module."""
    kind, *options = spec
    shape = ranking.keys.shape
    if kind in ("nm", "topk"):
        number, of, axis, tail = options
        return _select_groups(ranking, of - number if kind == "topk" else number, of, axis, tail)
    if kind == "block":
        return _select_blocks(ranking, *options)
    if kind == "exact" and not 0 <= options[0] <= ranking.keys.size:
        raise FastSparseError(f"zeros: {options[0]} of {ranking.keys.size} elements cannot be dropped")
    if kind == "nonzero" and not ranking.plain:
        arg = "scores" if ranking.arg == "scores" else "column_scale"
        raise FastSparseError(f"{arg}: the nonzero pattern does not rank")
    ranking.reject_nan()
    if kind == "nonzero":
        keep: Keep = ranking.keys != 0
        return keep
    if kind == "threshold":
        keep = ranking.numbers() > options[0]
        return keep
    if kind == "exact":
        return _smallest(ranking.keys.reshape(1, -1), options[0])
    sparsity, per = options
    view = matrix_view(shape) if per == "row" else (1, ranking.keys.size)
    return _smallest(ranking.keys.reshape(view), zero_count(sparsity, view[1]))
