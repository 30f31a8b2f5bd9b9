"""What patterns would keep, and which of them a tensor obeys already."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import (
    Shape,
    Spec,
    bits_shape,
    check_shape,
    check_threads,
    frozen,
    supported_array,
)
from fastsparse._numpy._masks import check_size, mask_parts, offsets_of_rows, to_bool
from fastsparse._numpy._ranking import Ranking, magnitude_keys, ranking_of
from fastsparse._numpy._select import along_axis, as_blocks, runs_of

_LARGEST_GROUP = 64


def _energies(w: ArrayLike, column_scale: ArrayLike | None, threads: int | None) -> tuple[Ranking, NDArray[np.float64]]:
    """What is ranked, and the square of each number, of the tensor's shape."""
    check_threads(threads)
    ranking = ranking_of(supported_array(w, "w"), None, column_scale)
    with np.errstate(over="ignore", under="ignore"):
        return ranking, np.square(ranking.numbers())


@np.errstate(over="ignore")
def energies_of_largest(
    w: ArrayLike, zeros: list[int], column_scale: ArrayLike | None, threads: int | None
) -> list[float]:
    """The energy of all but the smallest `n` elements, for each `n` of `zeros`."""
    ranking, energies = _energies(w, column_scale, threads)
    bad = [number for number in zeros if number > energies.size]
    if bad:
        raise FastSparseError(f"zeros: {bad[0]} of {energies.size} elements cannot be dropped")
    ranking.reject_nan()
    ordered = np.sort(energies, axis=None)
    return [float(ordered[number:].sum()) for number in zeros]


def _check_group(of: int) -> None:
    if not 1 <= of <= _LARGEST_GROUP:
        raise FastSparseError(f"of: expected 1 to {_LARGEST_GROUP}, got {of}")


@np.errstate(over="ignore")
def energies_by_rank(
    w: ArrayLike, of: int, axis: int, column_scale: ArrayLike | None, threads: int | None
) -> tuple[list[float], list[float]]:
    """The energy of the elements of each rank within groups along an axis, of full groups and of shorter ones."""
    _check_group(of)
    ranking, energies = _energies(w, column_scale, threads)
    outer, length, inner = along_axis(energies.shape, axis)
    ranking.reject_nan()
    lines = energies.reshape(outer, length, inner)
    found = {of: [0.0] * of, length % of: [0.0] * (length % of)}
    for first, end, size in runs_of(length, of):
        groups = lines[:, first:end].reshape(outer, (end - first) // size, size, inner)
        found[size] = np.sort(groups, axis=2).sum(axis=(0, 1, 3)).tolist()
    return found[of], found[length % of]


@np.errstate(over="ignore")
def energy_of_mask(
    w: ArrayLike, shape: Shape, bits: NDArray[np.uint8], column_scale: ArrayLike | None, threads: int | None
) -> float:
    """The energy of the elements that a mask keeps."""
    _, energies = _energies(w, column_scale, threads)
    check_shape("mask", shape, energies.shape)
    return float(energies[to_bool(shape, bits)].sum())


def nonzero(w: ArrayLike) -> tuple[Shape, NDArray[np.uint8], NDArray[np.int64]]:
    """Shape, mask and row offsets of what is not zero; NaN is not."""
    weights = supported_array(w, "w")
    shape, bits, _ = mask_parts(weights.shape, magnitude_keys(weights) != 0)
    return shape, bits, frozen(offsets_of_rows(bits))


def common_zeros(
    shape: Shape, bits: NDArray[np.uint8], of: int, axis: int, least: int
) -> tuple[int, int | None] | None:
    """The zeros, `least` or more, that full groups along an axis have in common; and the least of a shorter one."""
    _check_group(of)
    if not 1 <= least <= of:
        raise FastSparseError(f"least: expected 1 to {of}, got {least}")
    check_size(shape)
    assert bits.shape == bits_shape(shape)
    outer, length, inner = along_axis(shape, axis)
    if length < of or not math.prod(shape):
        return None
    zero = ~to_bool(shape, bits).reshape(outer, length, inner)
    full = length - length % of
    counts = zero[:, :full].reshape(outer, full // of, of, inner).sum(axis=2)
    found = int(counts.min())
    if found < least or 4 * np.count_nonzero(counts != found) > counts.size:
        return None
    return found, int(zero[:, full:].sum(axis=1).min()) if full < length else None


def uniform_blocks(shape: Shape, bits: NDArray[np.uint8], spec: Spec) -> tuple[int, int, int] | None:
    """How many blocks a mask drops as a whole, how many it keeps so, and how many there are; None if many are mixed."""
    check_size(shape)
    dimensions, tall, wide = as_blocks(shape, spec[1], spec[3])
    kept = to_bool(shape, bits).reshape(dimensions)
    if not kept.size:
        return 0, 0, 0
    down, across = np.arange(0, dimensions[1], tall), np.arange(0, dimensions[2], wide)

    def whole(keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rows = np.logical_and.reduceat(keep, down, axis=1)
        blocks: NDArray[np.bool_] = np.logical_and.reduceat(rows, across, axis=2)
        return blocks

    dropped = whole(~kept)
    none, every, number = int(np.count_nonzero(dropped)), int(np.count_nonzero(whole(kept))), dropped.size
    return (none, every, number) if 4 * (number - none - every) <= number - none else None
