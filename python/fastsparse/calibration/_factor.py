"""The triangular factor of a damped Gram matrix."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse.calibration import _products
from fastsparse.calibration._arguments import finite, gram_matrix
from fastsparse.calibration._gram import Gram

_PANEL = 256
_LEAF = 32
_ATTEMPTS = 4
_ORDERS = ("natural", "activation")


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """What `sparsegpt` needs of a Gram matrix. `factorize` makes it; layers with the same input share one.

    Attributes
    ----------
    upper : ndarray of float64, ``[cols, cols]``
        The upper triangle V with `V Vᵀ = G + damping·mean(diag G)·I`, columns in the order that `order` says; below its
        diagonal is nothing of use.
    order : ndarray of int or None
        The columns in the order of pruning; None is from left to right.
    dead : ndarray of bool, ``[cols]``
        Columns whose inputs are all zero.
    damping : float
        What was used in the end.
    """

    upper: NDArray[np.float64]
    order: NDArray[np.intp] | None
    dead: NDArray[np.bool_]
    damping: float


def factorize(gram: Gram | ArrayLike, *, damping: float = 0.01, order: str = "natural") -> Factor:
    """Factorise a damped Gram matrix, once for all layers that share an input.

    Parameters
    ----------
    gram : Gram or array_like, ``[cols, cols]``
        `XᵀX` of the input.
    damping : float
        Share of the mean of the diagonal that is added to the diagonal. If the sum is not positive definite it is
        raised tenfold, three times at most, with a warning.
    order : {"natural", "activation"}
        In which order `sparsegpt` goes through the columns: from left to right, or the most active inputs first.

    Returns
    -------
    Factor

    Raises
    ------
    FastSparseError
        If it is no Gram matrix: not square, not symmetric, NaN, zero throughout, or not positive definite with a
        thousand times the damping.

    Warns
    -----
    RuntimeWarning
        If damping had to be raised, or a `Gram` holds fewer tokens than columns.

    Notes
    -----
    Float64, `cols³/3` operations in products of panels; one matrix in float64 is held.

    Examples
    --------
    >>> from fastsparse.calibration import factorize
    >>> factorize([[4.0, 0.0], [0.0, 1.0]], damping=0).upper
    array([[2., 0.],
           [0., 1.]])
    """
    if order not in _ORDERS:
        raise FastSparseError(f"order: expected one of {', '.join(_ORDERS)}, got {order!r}")
    share = finite("damping", damping)
    matrix = gram_matrix(gram)
    warn_of_few_tokens(gram)
    diagonal = matrix.diagonal().astype(np.float64)
    dead = diagonal == 0
    diagonal[dead] = 1.0
    mean = diagonal.mean()
    columns = np.argsort(-diagonal, kind="stable") if order == "activation" else None
    for attempt in range(_ATTEMPTS):
        upper = matrix.astype(np.float64) if columns is None else matrix[np.ix_(columns, columns)].astype(np.float64)
        damped = diagonal + share * mean
        np.fill_diagonal(upper, damped if columns is None else damped[columns])
        if _factorize(upper):
            return Factor(upper, columns, dead, share)
        if attempt + 1 < _ATTEMPTS:
            higher = 10 * share if share else 1e-4
            warnings.warn(
                f"gram: not positive definite with a damping of {share:g}; trying {higher:g}",
                RuntimeWarning,
                stacklevel=_outside(),
            )
            share = higher
    raise FastSparseError(
        f"gram: not positive definite, not even with a damping of {share:g}: its smallest eigenvalue is negative; "
        "is it XᵀX of real inputs?"
    )


def warn_of_few_tokens(gram: Any) -> None:
    """A Gram matrix of fewer tokens than columns is singular: damping alone decides then."""
    if isinstance(gram, Gram) and gram.tokens < gram.cols:
        warnings.warn(
            f"gram: {gram.tokens} tokens are too few for {gram.cols} columns; at least {4 * gram.cols} are advised",
            RuntimeWarning,
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The `stacklevel` that makes the caller of this function name the first caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("fastsparse.calibration"):
        frame, level = frame.f_back, level + 1
    return level


def _factorize(matrix: NDArray[np.float64]) -> bool:
    """Replaces the upper triangle of `G` by V with `V Vᵀ = G`; returns whether G is positive definite.

    From the last panel of columns to the first: what the later panels explain is taken off, the diagonal block is
    factorised with both axes turned round, which makes LAPACK's lower triangle an upper one, and the panel above it
    follows.
    """
    products = _products.active()
    for first in reversed(range(0, len(matrix), _PANEL)):
        end = min(first + _PANEL, len(matrix))
        matrix[:end, first:end] -= products.matmul(matrix[:end, end:], matrix[first:end, end:].T)
        lower = products.cholesky(matrix[first:end, first:end][::-1, ::-1].copy())
        if lower is None:
            return False
        block = matrix[first:end, first:end] = lower[::-1, ::-1].copy()
        matrix[:first, first:end] = products.matmul(matrix[:first, first:end], inverse_of_upper(block).T)
    return True


def inverse_of_upper(matrix: NDArray[Any]) -> NDArray[Any]:
    """The inverse of an upper triangle, by halves; what is below its diagonal does not count."""
    size, half = len(matrix), len(matrix) // 2
    if size <= _LEAF:
        return np.linalg.inv(np.triu(matrix))
    inverse = np.zeros_like(matrix)
    upper = inverse[:half, :half] = inverse_of_upper(matrix[:half, :half])
    lower = inverse[half:, half:] = inverse_of_upper(matrix[half:, half:])
    matmul = _products.active().matmul
    inverse[:half, half:] = matmul(matmul(-upper, matrix[:half, half:]), lower)
    return inverse
