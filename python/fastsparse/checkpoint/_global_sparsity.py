"""Global pruning: how many elements of each tensor go when all compete, exact, without ever holding all of them.

Magnitudes are counted as the 63 bits of their float64 values, 21 bits a pass: each pass finds the bin of the threshold
and the next looks into that bin. Types of up to 16 bits need one pass, float32 two, float64 three; one more counts what
lies below the threshold and at it, tensor by tensor. A floor takes the smallest elements of a tensor out of the
competition as zeros, a ceiling the largest as kept: its counts are cut off at both, which works bin by bin.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import Entry

__all__ = ["check_bounds", "passes", "spread"]

_WINDOW = 21
_TOP = 63 - _WINDOW
_MANTISSA = {"F64": 52, "F32": 23}
"""Bits of the mantissa, where they are more than the ten that the first pass sees."""


def passes(dtypes: Iterable[str]) -> int:
    """How often the tensors are read."""
    bits = max((_MANTISSA.get(dtype, 10) for dtype in dtypes), default=10)
    return 1 + -(-(bits + 11) // _WINDOW)


def check_bounds(
    tensors: Mapping[str, Entry], sparsity: float, floor: float | None, ceiling: float | None
) -> tuple[int, dict[str, int], dict[str, int]]:
    """How many zeros there are to be over all tensors, and the least and the most of each. Nothing is read.

    Raises
    ------
    FastSparseError
        If floors or ceilings leave no room for the zeros.
    """
    sizes = {name: math.prod(entry.shape) for name, entry in tensors.items()}
    least = {name: round((floor or 0.0) * size) for name, size in sizes.items()}
    most = {name: round((1.0 if ceiling is None else ceiling) * size) for name, size in sizes.items()}
    total = round(sparsity * sum(sizes.values()))
    for name, bounds, fits in (
        ("min_sparsity", least, sum(least.values()) <= total),
        ("max_sparsity", most, total <= sum(most.values())),
    ):
        if not fits:
            raise FastSparseError(f"{name}: over all tensors it asks for {sum(bounds.values())} zeros, not for {total}")
    return total, least, most


def spread(
    tensors: Mapping[str, Entry],
    sparsity: float,
    floor: float | None,
    ceiling: float | None,
    each: Callable[..., Iterator[tuple[str, Any]]],
) -> dict[str, tuple[int, int]]:
    """How many elements of each tensor go, and how many are zero already.

    Parameters
    ----------
    tensors : mapping
        By name, in the order in which ties are kept.
    sparsity : float
        Share of zeros over all of them.
    floor, ceiling : float, optional
        Bounds of the share of zeros in each.
    each : callable
        Takes the name of a function of the native module and what it takes beside an array; calls it with every tensor
        and yields the tensor's name and the result, in order.

    Raises
    ------
    FastSparseError
        If floors or ceilings leave no room for the zeros.
    """
    total, least, most = check_bounds(tensors, sparsity, floor, ceiling)

    def clipped(name: str, below: int, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many elements that go are below each bin, and below the end of the last one."""
        sums = below + np.concatenate(([0], np.cumsum(elements)))
        clipped: NDArray[np.int64] = np.clip(sums, least[name], most[name])
        return clipped

    wanted = total - sum(least.values())
    threshold, shift = 0, _TOP
    for _ in range(passes(entry.dtype for entry in tensors.values()) - 1):
        table = np.zeros(1 << _WINDOW, np.int64)
        for name, (below, bins, elements) in each("count_magnitudes", threshold, shift):
            sums = clipped(name, below, elements)
            table[0] += sums[0] - least[name]
            table[bins] += np.diff(sums)
        # The first bin up to which there are as many as are wanted. What is below the window is
        # counted with its first bin: fewer than wanted are there.
        threshold += int(np.searchsorted(np.cumsum(table), wanted)) << shift
        shift -= _WINDOW
    pruned, ties, zeros = {}, {}, {}
    for name, (below, equal, zero) in each("rank_magnitudes", threshold):
        sums = clipped(name, below, np.array([equal], np.int64))
        pruned[name], ties[name], zeros[name] = int(sums[0]), int(sums[-1] - sums[0]), zero
    missing = total - sum(pruned.values())
    for name in reversed(pruned):
        taken = min(missing, ties[name])
        pruned[name] += taken
        missing -= taken
    return {name: (pruned[name], zeros[name]) for name in pruned}
