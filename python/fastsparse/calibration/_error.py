"""How much of a layer's output a change of its weights costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse.calibration import _products
from fastsparse.calibration._arguments import gram_matrix, same_shape, weights
from fastsparse.calibration._gram import Gram

_ROWS = 1024
_PANEL = 256


def layer_error(w: ArrayLike, w_new: ArrayLike, gram: Gram | ArrayLike) -> float:
    """The share of a layer's output that was lost, `tr((W−Ŵ) G (W−Ŵ)ᵀ) / tr(W G Wᵀ)`.

    That is the squared difference of the outputs for the inputs that `gram` was made of, over their square.

    Parameters
    ----------
    w, w_new : array_like of float, ``[rows, cols]``
        The weights before and after.
    gram : Gram or array_like, ``[cols, cols]``
        `XᵀX` of the layer's inputs.

    Returns
    -------
    float
        0 where nothing changed; 1 for a layer of zeros; NaN where `w` gives nothing but zeros already.

    Raises
    ------
    FastSparseError
        If shapes or dtypes do not fit, or for NaN and infinity.

    Notes
    -----
    `2·rows·(cols² + 256·cols)` operations in the dtype of the Gram matrix, summed in float64.

    Examples
    --------
    >>> from fastsparse.calibration import layer_error
    >>> layer_error([[1.0, 2.0]], [[0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]])
    0.2
    """
    before = weights(w)
    after = same_shape(before, w_new, "w_new")
    matrix = gram_matrix(gram, before.shape[1])
    lost = total = 0.0
    for first in range(0, len(before), _ROWS):
        whole = before[first : first + _ROWS].astype(matrix.dtype)
        lost += _energy(whole - after[first : first + _ROWS].astype(matrix.dtype), matrix)
        total += _energy(whole, matrix)
    return max(lost, 0.0) / total if total else float("nan")  # rounding may leave less than nothing


def _energy(w: NDArray[Any], gram: NDArray[Any]) -> float:
    """`tr(W G Wᵀ)`, by the lower triangle of G."""
    matmul, energy = _products.active().matmul, 0.0
    for first in range(0, len(gram), _PANEL):
        panel = gram[first:, first : first + _PANEL].copy()
        panel[:_PANEL] /= 2  # it is on both sides of the diagonal already
        energy += 2 * np.einsum("rc,rc->", matmul(w[:, first:], panel), w[:, first : first + _PANEL], dtype=np.float64)
    return float(energy)
