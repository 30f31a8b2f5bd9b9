"""How one sparsity is spread over layers: some bear more of it than others.

Each function gives a sparsity for each layer such that the zeros of all layers together are exactly
`round(sparsity · N)`, N being the number of weights of all of them, when each layer of n weights loses
`round(its sparsity · n)`. They are pure functions of numbers that a forward pass or a sweep has measured.

Examples
--------
>>> from fastsparse.calibration import allocation
>>> allocation.uniform([10, 10, 5], 0.5)
[0.5, 0.5, 0.4]
>>> allocation.owl([0.01, 0.03], [100, 100], 0.5)
[0.58, 0.42]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse.calibration._arguments import finite, share, weights
from fastsparse.patterns import integer

__all__ = ["loss", "outliers", "owl", "uniform"]


def uniform(sizes: Sequence[int], sparsity: float) -> list[float]:
    """The same sparsity for all layers.

    Parameters
    ----------
    sizes : sequence of int
        Number of weights of each layer.
    sparsity : float
        Share of zeros over all of them.

    Returns
    -------
    list of float
        Sparsity of each layer. A weight more or less makes the sum exact.

    Raises
    ------
    FastSparseError
        If a size is negative or the sparsity is not between 0 and 1.

    Examples
    --------
    >>> from fastsparse.calibration import allocation
    >>> allocation.uniform([4, 12], 0.75)
    [0.75, 0.75]
    """
    counts = _sizes(sizes)
    return _exact(np.full(len(counts), share("sparsity", sparsity)), counts, sparsity, 0.0, 1.0)


def owl(
    outliers: ArrayLike,
    sizes: Sequence[int],
    sparsity: float,
    *,
    spread: float = 0.08,
    least: float = 0.0,
    most: float = 1.0,
) -> list[float]:
    """More zeros where there are few outliers [1]_.

    Parameters
    ----------
    outliers : array_like of float
        Share of outliers of each layer, see `outliers`.
    sizes : sequence of int
        Number of weights of each layer.
    sparsity : float
        Share of zeros over all of them.
    spread : float
        λ of the paper: how far a layer is from the mean at most; the sparsities of the layers with the fewest and the
        most outliers are 2λ apart.
    least, most : float
        Bounds of each layer's sparsity.

    Returns
    -------
    list of float
        Sparsity of each layer.

    Raises
    ------
    FastSparseError
        If numbers are out of range, or the bounds leave no room for the zeros.

    Notes
    -----
    The paper centres the plain mean over layers of one size. Here the mean is weighted by the layers' sizes, so that
    the total is what was asked for.

    References
    ----------
    .. [1] L. Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
       Sparsity", arXiv:2310.05175, 2023.

    Examples
    --------
    >>> from fastsparse.calibration import allocation
    >>> allocation.owl([0.02, 0.02, 0.06], [100, 100, 100], 0.7, spread=0.06)
    [0.74, 0.74, 0.62]
    """
    counts = _sizes(sizes)
    shares = _row("outliers", outliers, len(counts))
    wide = share("spread", spread)
    apart = float(np.ptp(shares)) if shares.size else 0.0
    ranks = (shares - shares.min()) / apart if apart else np.zeros(len(counts))
    return _exact(share("sparsity", sparsity) - 2 * wide * ranks, counts, sparsity, least, most)


def outliers(w: ArrayLike, norms: ArrayLike, *, m: float = 5.0) -> float:
    """The share of weights whose contribution `|w|·‖x‖` is more than `m` times the layer's mean.

    Parameters
    ----------
    w : array_like of float, ``[rows, cols]``
        Weights of the layer.
    norms : array_like, ``[cols]``
        `Gram.norms` of its inputs.
    m : float
        M of the paper.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    FastSparseError
        If shapes do not fit, or for NaN and infinity.

    Examples
    --------
    >>> from fastsparse.calibration import allocation
    >>> allocation.outliers([[1.0, 1.0, 1.0, 9.0]], [1, 1, 1, 1], m=2)
    0.25
    """
    matrix = np.abs(weights(w).astype(np.float32))
    scale = _row("norms", norms, matrix.shape[1])
    matrix *= scale.astype(np.float32)
    bound = finite("m", m) * matrix.mean(dtype=np.float64) if matrix.size else 0.0
    return float(np.count_nonzero(matrix > bound) / max(matrix.size, 1))


def loss(
    losses: ArrayLike,
    sparsities: ArrayLike,
    sizes: Sequence[int],
    sparsity: float,
    *,
    least: float = 0.0,
    most: float = 1.0,
) -> list[float]:
    """The least sum of losses that were measured for each layer at some sparsities.

    Greedy: zeros go where they cost least, step by step from one sparsity to the next. Where a layer's losses do not
    grow ever faster with its sparsity, their lower convex hull is followed. Between the sparsities losses are taken to
    be straight lines.

    Parameters
    ----------
    losses : array_like of float, ``[layers, k]``
        What each layer costs at each sparsity, on a scale that is common to all layers: `layer_error` times the energy
        of its output, or its plain sum, or a change of the model's loss.
    sparsities : array_like of float, ``[k]``
        Ascending, at least two. Layers stay between the first and the last.
    sizes : sequence of int
        Number of weights of each layer.
    sparsity : float
        Share of zeros over all of them.
    least, most : float
        Bounds of each layer's sparsity.

    Returns
    -------
    list of float
        Sparsity of each layer.

    Raises
    ------
    FastSparseError
        If shapes or numbers do not fit, or the bounds leave no room for the zeros.

    Examples
    --------
    >>> from fastsparse.calibration import allocation
    >>> allocation.loss([[0, 1, 3], [0, 4, 9]], [0.25, 0.5, 0.75], [100, 100], 0.5)
    [0.75, 0.25]
    """
    counts = _sizes(sizes)
    least, most = share("least", least), share("most", most)
    grid = _row("sparsities", sparsities, None)
    if len(grid) < 2 or (np.diff(grid) <= 0).any() or grid[-1] > 1:
        raise FastSparseError(f"sparsities: expected two or more ascending numbers from 0 to 1, got {grid.tolist()}")
    table = _numbers("losses", losses)
    if table.shape != (len(counts), len(grid)):
        raise FastSparseError(f"losses: expected shape ({len(counts)}, {len(grid)}), got {table.shape}")
    if not np.isfinite(table).all():
        raise FastSparseError(f"losses: {table[~np.isfinite(table)][0]} among them")
    low, high = max(least, float(grid[0])), min(most, float(grid[-1]))
    steps = []
    for layer, row in enumerate(table):
        for first, end, slope in _hull(grid, row):
            begin, stop = min(max(first, low), high), min(max(end, low), high)
            if stop > begin and counts[layer]:
                steps.append((slope / counts[layer], layer, (stop - begin) * counts[layer]))
    ratios = np.full(len(counts), low)
    rest = share("sparsity", sparsity) * counts.sum() - low * counts.sum()
    for _, layer, zeros in sorted(steps):
        taken = min(max(rest, 0.0), zeros)
        ratios[layer] += taken / counts[layer]
        rest -= taken
    return _exact(ratios, counts, sparsity, low, high)


def _hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """The lower convex hull of points whose x ascend: first and last x of each edge, and its slope."""
    hull = [0]
    for at in range(1, len(x)):
        while len(hull) > 1 and _slope(x, y, hull[-2], hull[-1]) >= _slope(x, y, hull[-1], at):
            hull.pop()
        hull.append(at)
    return [(float(x[a]), float(x[b]), _slope(x, y, a, b)) for a, b in pairwise(hull)]


def _slope(x: NDArray[np.float64], y: NDArray[np.float64], a: int, b: int) -> float:
    return float((y[b] - y[a]) / (x[b] - x[a]))


def _exact(
    ratios: NDArray[np.float64], sizes: NDArray[np.int64], sparsity: float, least: float, most: float
) -> list[float]:
    """The ratios, shifted by a common amount, between the bounds, such that the sum of zeros is exact."""
    low, high = share("least", least), share("most", most)
    total = round(share("sparsity", sparsity) * int(sizes.sum()))
    floors, ceilings = np.rint(low * sizes), np.rint(high * sizes)
    for name, value, room in (("least", low, floors.sum() <= total), ("most", high, total <= ceilings.sum())):
        if not room:
            raise FastSparseError(f"{name}: with {value:g} for each layer {sparsity:g} of all cannot be reached")

    def zeros(shift: float) -> NDArray[np.float64]:
        return np.clip((ratios + shift) * sizes, floors, ceilings)

    # The sum ascends with the shift. Sixty halvings leave nothing that a float64 could tell apart.
    below, above = -3.0, 3.0
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if zeros(middle).sum() < total else (below, middle)
    wanted = zeros(above)
    counts = np.floor(wanted)
    largest_remainders = np.argsort(counts - wanted, kind="stable")
    counts[largest_remainders[: total - int(counts.sum())]] += 1
    return [float(count / size) if size else 0.0 for count, size in zip(counts, sizes, strict=True)]


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise FastSparseError(f"{name}: expected numbers, got {values!r}") from None


def _sizes(sizes: Sequence[int]) -> NDArray[np.int64]:
    if not isinstance(sizes, Iterable):
        raise FastSparseError(f"sizes: expected the number of weights of each layer, got {sizes!r}")
    return np.array([integer(f"sizes[{i}]", size, 0) for i, size in enumerate(sizes)], np.int64)


def _row(name: str, values: ArrayLike, length: int | None) -> NDArray[np.float64]:
    """A vector of finite numbers ≥ 0."""
    array = _numbers(name, values)
    if array.ndim != 1 or (length is not None and len(array) != length):
        raise FastSparseError(f"{name}: expected shape ({'k' if length is None else length},), got {array.shape}")
    bad = ~((array >= 0) & np.isfinite(array))
    if bad.any():
        raise FastSparseError(
            f"{name}: expected finite numbers ≥ 0, got {array[bad][0]} at index {int(np.argmax(bad))}"
        )
    return array
