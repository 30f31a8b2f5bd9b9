"""Which patterns the zeros of a tensor obey."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse.masks import matrix_view
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, Pattern, Unstructured

__all__ = ["detect", "detect_in_mask"]

_GROUPS = (2, 4, 8, 16, 32, 64)

_CHANCE = 1000
"""Fewer zeros than one in so many elements are chance."""

_SAMPLE, _LINES = 32, 2048
"""Rows that are looked at for blocks, about, and bytes of columns; elements of each column."""

_TRIES = 3
"""Lengths of blocks that are tried in each direction."""

_LONGEST = 64
"""Blocks of any length up to this are found; longer ones only where they divide the tensor."""


def detect(w: ArrayLike | BitmaskArray) -> list[Pattern]:
    """The patterns that the zeros of a tensor obey, the strictest first.

    Parameters
    ----------
    w : array_like or BitmaskArray
        Weights of a supported dtype. Both zeros are zero, NaN is not; of a packed tensor, what its mask drops is.

    Returns
    -------
    list of Pattern
        Empty for a tensor with fewer zeros than one in a thousand, which are chance, ``[100%]`` for one of nothing
        else. Otherwise

        - n:m of 2, 4, … 64 neighbours along any axis, if every full group has n zeros and at least three in four have
          no more. Zeros that rounding has added to a pruned tensor do not hide a pattern, and a least number that is
          chance is none. What a shorter m implies (4:8 after 2:4) is left out;
        - the largest blocks, up to 64 long or a divisor of the tensor, that are zero as a whole or free of zeros: of
          rows × columns of the matrix view, or along one of the axes in between. At least three quarters of the zeros
          are in whole blocks, and three quarters of the other blocks have none;
        - ``…%/row`` by the same rule as n:m, with rows as groups;
        - last, the share of zeros in the tensor, which any zeros obey.

        A pattern is the stricter the fewer masks obey it.

    Raises
    ------
    FastSparseError
        If the dtype is not supported.

    Notes
    -----
    Reads the weights once, and the mask of what is not zero, a bit each, a few times: as fast as memory.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    >>> fs.detect(w)
    []
    >>> [str(p) for p in fs.detect(fs.prune(w, "2:4"))]
    ['2:4', '50%/row', '50%']
    >>> [str(p) for p in fs.detect(fs.prune(w, "75%/4x1"))]
    ['75%/4x1', '75%']
    """
    if isinstance(w, BitmaskArray):
        return detect_in_mask(w.shape, w.bitmask, w.row_offsets)
    return detect_in_mask(*_backend.active.nonzero(w))


def detect_in_mask(shape: tuple[int, ...], bits: NDArray[np.uint8], row_offsets: NDArray[np.int64]) -> list[Pattern]:
    """The patterns that a mask obeys, given with where the kept elements of each row begin."""
    size = math.prod(shape)
    zeros = size - int(row_offsets[-1])
    if zeros * _CHANCE < size or not zeros:
        return []
    if zeros == size:
        return [Unstructured(1.0)]
    found = [*_groups(shape, bits, zeros), *_blocks(shape, bits, zeros), *_rows(shape, row_offsets)]
    found.append((_log_choices(size, zeros) / size, Unstructured(_share(zeros, size))))
    return [pattern for _, pattern in sorted(found, key=lambda pair: pair[0])]


_Found = Iterator[tuple[float, Pattern]]
"""Patterns, each with the logarithm of the number of masks that obey it, for one element."""


def _groups(shape: tuple[int, ...], bits: NDArray[np.uint8], zeros: int) -> _Found:
    for axis, length in enumerate(shape):
        implied, lines = 0.0, math.prod(shape) // length
        for of in (of for of in _GROUPS if of <= length):
            groups, in_tails = lines * (length // of), lines * (length % of)
            # At most a quarter of the groups, which may be all zeros, has more than the others.
            spare = groups // 4
            rest = zeros - in_tails - spare * of
            least = max(math.floor(implied * of) + 1, -(-rest // (groups - spare)))
            if least >= of or zeros < least * groups:
                continue  # too many or too few for as many in each group
            common = _backend.active.common_zeros(shape, bits, of, axis, least)
            if common is None or common[0] == of:
                continue
            number, in_tail = common
            implied = number / of
            proportional = in_tail is None or in_tail >= round(number * float(length % of) / of)
            tail = "proportional" if proportional else "keep"
            last = axis == len(shape) - 1
            yield _log_choices(of, number) / of, NM(zeros=number, of=of, axis=-1 if last else axis, tail=tail)


def _rows(shape: tuple[int, ...], row_offsets: NDArray[np.int64]) -> _Found:
    rows, cols = matrix_view(shape)
    zeros = cols - np.diff(row_offsets)
    least = int(zeros.min())
    if rows > 1 and cols > 1 and 0 < least < cols and 4 * np.count_nonzero(zeros != least) <= rows:
        yield _log_choices(cols, least) / cols, Unstructured(_share(least, cols), per="row")


def _blocks(shape: tuple[int, ...], bits: NDArray[np.uint8], zeros: int) -> _Found:
    """Blocks are looked for in a sample of rows and of columns, and what is found there is counted in all."""
    rows, cols = matrix_view(shape)
    some = bits[:: max(1, rows // _SAMPLE)]
    sample = np.unpackbits(some, axis=1, count=cols, bitorder="little")
    picked = np.unique(np.linspace(0, bits.shape[1] - 1, _SAMPLE // 2).astype(np.intp))
    tall = _runs(np.unpackbits(bits[:_LINES, picked], axis=1), rows)
    wide = _runs(sample.T, cols)
    tiles = sorted(product(tall, wide), key=math.prod, reverse=True)
    kinds = [[(Block(tile if len(shape) > 1 else tile[1], 0.0), math.prod(tile)) for tile in tiles]]
    for axis in range(1, len(shape) - 1):
        lines = np.moveaxis(sample.reshape(len(some), *shape[1:]), axis, 0).reshape(shape[axis], -1)
        kinds.append([(Block(run, 0.0, axis=axis), run) for run in _runs(lines, shape[axis])])
    for blocks in kinds:
        yield from islice(_whole(shape, bits, zeros, blocks), 1)


def _whole(shape: tuple[int, ...], bits: NDArray[np.uint8], zeros: int, blocks: list[tuple[Block, int]]) -> _Found:
    """The blocks, each given with its elements, that are zero as a whole or free of zeros."""
    for block, elements in blocks:
        if elements == 1:
            continue
        uniform = _backend.active.uniform_blocks(shape, bits, block._spec)
        if uniform is None:
            continue
        gone, _, number = uniform
        # Most zeros are in blocks of nothing else.
        if 0 < gone < number and 4 * gone * elements >= 3 * zeros:
            yield _log_choices(number, gone) / math.prod(shape), replace(block, sparsity=_share(gone, number))


def _runs(lines: NDArray[np.uint8], length: int) -> list[int]:
    """How many lines, from the first on, may always be alike: the longest runs first, and 1.

    `lines` may be the first of `length` ones only. Three quarters of the elements that differ from the line before are
    where a run begins; or so few differ at all that the lines may be one run.
    """
    changes = np.count_nonzero(lines[1:] != lines[:-1], axis=1)
    total, ones = int(changes.sum()), np.count_nonzero(lines)
    runs = sorted({*range(2, min(length, _LONGEST) + 1), *_divisors(length)} - {1}, reverse=True)
    few = 16 * total <= min(ones, lines.size - ones)
    found = (run for run in runs if 4 * changes[run - 1 :: run].sum() >= 3 * total or (few and run == length))
    return [*islice(found, _TRIES), 1]


def _divisors(number: int) -> set[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return {*small, *(number // divisor for divisor in small)}


def _share(count: int, items: int) -> float:
    """The shortest decimal share that means this count."""
    for digits in range(2, 17):
        share = round(count / items, digits)
        if round(share * float(items)) == count:
            return share
    return count / items


def _log_choices(items: int, chosen: int) -> float:
    """The logarithm of the number of ways to choose some of the items."""
    return math.lgamma(items + 1) - math.lgamma(chosen + 1) - math.lgamma(items - chosen + 1)
