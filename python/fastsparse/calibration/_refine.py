"""The best kept weights for a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse.calibration import _products
from fastsparse.calibration._arguments import finite, gram_matrix, mask_of, restored, same_shape, weights
from fastsparse.calibration._factor import warn_of_few_tokens
from fastsparse.calibration._gram import Gram
from fastsparse.masks import Bitmask
from fastsparse.patterns import integer

_ROWS = 64
"""Rows of a matrix that are damped at a time."""


def refine(
    w: ArrayLike,
    gram: Gram | ArrayLike,
    mask: Bitmask | ArrayLike,
    *,
    start: ArrayLike | None = None,
    steps: int = 10,
    damping: float = 0.01,
) -> NDArray[Any]:
    """Move the kept weights to where the layer's outputs change least, for a mask that stays as it is.

    Conjugate gradients on `tr((W−Ŵ)(G + damping·mean(diag G)·I)(W−Ŵ)ᵀ)` over the kept weights, all rows at once, each
    with its own step, preconditioned by the diagonal. No step increases it.

    Parameters
    ----------
    w : array_like of float, ``[rows, cols]``
        The weights before pruning.
    gram : Gram or array_like, ``[cols, cols]``
        `XᵀX` of the layer's inputs.
    mask : Bitmask or array_like of bool, ``[rows, cols]``
        What is kept, of whatever pattern.
    start : array_like of float, ``[rows, cols]``, optional
        Where to start, such as the result of `sparsegpt`; `w` by default. Only what is kept of it counts.
    steps : int
        Ten get most of it.
    damping : float
        Share of the mean of the diagonal that is added to the diagonal: holds weights near `w` about which the inputs
        say little.

    Returns
    -------
    ndarray
        In the dtype of `w`, zeros where the mask keeps nothing.

    Raises
    ------
    FastSparseError
        If shapes or dtypes do not fit, for NaN and infinity, and where `gram` is no Gram matrix.

    Warns
    -----
    RuntimeWarning
        If a `Gram` holds fewer tokens than columns.

    Notes
    -----
    Float32, sums of products in float64. `2·(steps + 1)·rows·cols²` operations.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse import calibration
    >>> x = np.float32([[1, 1], [2, 2], [3, 3]])
    >>> calibration.refine(np.float32([[1, 3]]), x.T @ x, [[False, True]], damping=0)
    array([[0., 4.]], dtype=float32)
    """
    given = weights(w)
    count = integer("steps", steps, 0)
    share = finite("damping", damping)
    kept = mask_of(mask, given.shape)
    before: NDArray[np.float32] = given.astype(np.float32, copy=False)
    initial = given if start is None else same_shape(given, start, "start")
    matrix: NDArray[np.float32] = gram_matrix(gram, given.shape[1]).astype(np.float32, copy=False)
    warn_of_few_tokens(gram)
    diagonal = matrix.diagonal().astype(np.float64)
    added = share * diagonal.mean()
    diagonal += added
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0).astype(np.float32)

    x: NDArray[np.float32] = np.where(kept.to_bool(), initial.astype(np.float32, copy=False), np.float32(0))
    product = np.empty_like(x)

    def damped(change: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The product with the damped matrix, of which no copy is made."""
        _products.active().matmul(change, matrix, out)
        for first in range(0, len(out), _ROWS):
            out[first : first + _ROWS] += np.float32(added) * change[first : first + _ROWS]
        return out

    direction = before - x
    residual = damped(direction, np.empty_like(x))
    direction[:] = 0
    # The first call has no product: it only turns the gradient into a direction.
    energy = np.zeros(len(x))
    _backend.active.refine_step(x, residual, direction, None, scale, kept.bits, energy)
    for _ in range(count):
        _backend.active.refine_step(x, residual, direction, damped(direction, product), scale, kept.bits, energy)
    return restored(x, given.dtype)
