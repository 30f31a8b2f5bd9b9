"""Arguments that the methods share: weights, Gram matrices, numbers."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse.calibration._gram import Gram
from fastsparse.masks import Bitmask, as_mask

_FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
_ROWS = 256
"""Rows of a matrix that are looked at at a time: no temporary is as large as the matrix."""


def weights(w: ArrayLike, arg: str = "w") -> NDArray[Any]:
    """A matrix of finite floats, as it is."""
    array = np.asarray(w)
    if array.dtype not in _FLOATS:
        names = ", ".join(dtype.name for dtype in _FLOATS)
        raise FastSparseError(f"{arg}: dtype {array.dtype.name} is not supported; expected one of {names}")
    if array.ndim != 2:
        raise FastSparseError(
            f"{arg}: expected a matrix (rows, cols), got shape {array.shape}; reshape a convolution's weights to "
            "(out, in · kernel)"
        )
    _reject_non_finite(array, arg)
    return array


def same_shape(w: NDArray[Any], other: ArrayLike, arg: str) -> NDArray[Any]:
    """Another matrix of finite floats, of the shape of `w`."""
    array = weights(other, arg)
    if array.shape != w.shape:
        raise FastSparseError(f"{arg}: shape {array.shape} does not match w's shape {w.shape}")
    return array


def mask_of(mask: Bitmask | ArrayLike, shape: tuple[int, ...]) -> Bitmask:
    """A mask of that shape."""
    bits = as_mask(mask)
    if bits.shape != shape:
        raise FastSparseError(f"mask: shape {bits.shape} does not match w's shape {shape}")
    return bits


def gram_matrix(gram: Gram | ArrayLike, cols: int | None = None) -> NDArray[Any]:
    """A Gram matrix, float32 or float64, checked to be one: square, finite, symmetric, of `cols` columns."""
    if isinstance(gram, Gram):
        matrix: NDArray[Any] = gram.matrix
    else:
        matrix = np.asarray(gram)
        if matrix.dtype not in _FLOATS:
            raise FastSparseError(f"gram: expected a Gram or a matrix of floats, got dtype {matrix.dtype.name}")
        if matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float32)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise FastSparseError(f"gram: expected a square matrix, got shape {matrix.shape}")
    if cols is not None and len(matrix) != cols:
        raise FastSparseError(f"gram: it is {len(matrix)} × {len(matrix)}, but w has {cols} columns")
    if not isinstance(gram, Gram):
        _reject_non_finite(matrix, "gram")
        _check_symmetric(matrix)
    diagonal = matrix.diagonal()
    if (diagonal < 0).any():
        raise FastSparseError(f"gram: a sum of squares is negative at index {int(np.argmax(diagonal < 0))}")
    if len(matrix) and not diagonal.any():
        raise FastSparseError("gram: all of it is zero; no input says anything about the weights")
    return matrix


def finite(name: str, value: Any) -> float:
    """A finite number ≥ 0."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number < math.inf:
        raise FastSparseError(f"{name}: expected a finite number ≥ 0, got {value!r}")
    return number


def share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1:
        raise FastSparseError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return number


def restored(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The result in the dtype of the weights; FastSparseError where it holds no finite number."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: NDArray[Any] = values.astype(dtype, copy=False)
    _reject_non_finite(result, "the updated weights")
    return result


def _reject_non_finite(array: NDArray[Any], arg: str) -> None:
    for first in range(0, len(array), _ROWS):
        bad = ~np.isfinite(array[first : first + _ROWS])
        if bad.any():
            row, col = np.argwhere(bad)[0]
            raise FastSparseError(f"{arg}: {array[first + row, col]} at index ({first + row}, {col})")


def _check_symmetric(matrix: NDArray[Any]) -> None:
    # What a product of float32 leaves of symmetry is some 10⁻⁶ of the largest element.
    bound = 1e-4 * np.abs(matrix.diagonal()).max(initial=0.0)
    for first in range(0, len(matrix), _ROWS):
        rows = slice(first, first + _ROWS)
        apart = np.abs(matrix[rows] - matrix[:, rows].T) > bound
        if apart.any():
            row, col = np.argwhere(apart)[0]
            at, mirrored = (int(first + row), int(col)), (int(col), int(first + row))
            raise FastSparseError(
                f"gram: not symmetric: {matrix[at]:g} at {at}, {matrix[mirrored]:g} at {mirrored}; expected XᵀX"
            )
