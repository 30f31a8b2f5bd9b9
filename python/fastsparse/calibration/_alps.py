"""ALPS: mask and weights are sought together, by alternating directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse.calibration import _products
from fastsparse.calibration._arguments import finite, gram_matrix, weights
from fastsparse.calibration._factor import warn_of_few_tokens
from fastsparse.calibration._gram import Gram
from fastsparse.calibration._refine import refine
from fastsparse.masks import Bitmask
from fastsparse.ops import select
from fastsparse.patterns import Nonzero, Pattern, Threshold, integer
from fastsparse.patterns import pattern as _pattern

_FIRST_PENALTY = 0.1
_CHECK_EVERY = 3
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Where more than this share of the kept weights changed since the last look, the penalty grows by this factor."""


def alps(
    w: ArrayLike,
    gram: Gram | ArrayLike,
    pattern: str | Pattern,
    *,
    iterations: int = 60,
    steps: int = 10,
    damping: float = 0.01,
) -> tuple[NDArray[Any], Bitmask]:
    """Prune a layer so that its outputs change least, all columns at once [1]_.

    Two copies of the weights are kept, a dense one that fits the outputs and one that obeys the pattern, and drawn
    together by a penalty that grows until the mask stands still (ADMM). Then the kept weights are refined. It finds
    better masks than `sparsegpt`, for some four times the time of `sparsegpt` and `refine`.

    Parameters
    ----------
    w : array_like of float, ``[rows, cols]``
        Weights, float64, float32, float16 or bfloat16.
    gram : Gram or array_like, ``[cols, cols]``
        `XᵀX` of the layer's inputs.
    pattern : Pattern or str
        All that `fs.select` ranks by magnitude; not threshold and nonzero. Counts are those of `fs.select`, exactly.
    iterations : int
        Alternations at most; it ends when the mask stands still.
    steps : int
        Steps of `refine` at the end.
    damping : float
        Share of the mean of the diagonal of the Gram matrix that is added to the diagonal.

    Returns
    -------
    w_new : ndarray
        The updated weights in the dtype of `w`, zeros where they were pruned.
    mask : Bitmask
        What was kept.

    Raises
    ------
    FastSparseError
        For other patterns, shapes that do not fit, NaN and infinity, and where `gram` is no Gram matrix.

    Warns
    -----
    RuntimeWarning
        If a `Gram` holds fewer tokens than columns.

    Notes
    -----
    One decomposition into eigenvectors in float64, some `10·cols³` operations; `4·rows·cols²` in float32 an iteration.
    Columns are scaled to a diagonal of ones while masks are sought, so that magnitudes are comparable.

    References
    ----------
    .. [1] X. Meng, K. Behdin, H. Wang, R. Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for
       Large Language Models", arXiv:2406.07831, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse import calibration
    >>> w = np.float32([[3, 1, 2, 4]])
    >>> x = np.float32([[1, 1, 0, 0], [2, 2, 1, 0], [0, 0, 1, 1], [1, 1, 1, 3]])
    >>> w_new, mask = calibration.alps(w, x.T @ x, "25%/row")
    >>> mask.count, float(w_new.round().sum())
    (3, 10.0)
    """
    given = weights(w)
    chosen = _pattern(pattern)
    if isinstance(chosen, Threshold | Nonzero):
        raise FastSparseError(
            f'pattern: alps ranks weights, "{chosen}" does not; expected a share ("50%"), n:m ("2:4"), top-k or blocks'
        )
    count = integer("iterations", iterations, 1)
    share = finite("damping", damping)
    matrix = gram_matrix(gram, given.shape[1])
    warn_of_few_tokens(gram)
    damped = matrix.astype(np.float64)
    diagonal = damped.diagonal() + share * damped.diagonal().mean()
    diagonal[diagonal == 0] = 1.0  # an input that is always zero: nothing depends on its weights
    np.fill_diagonal(damped, diagonal)
    scale = np.sqrt(diagonal)
    damped /= scale[:, None]
    damped /= scale
    values, vectors = _products.active().eigh(damped)
    mask, kept = _alternate(
        (given.astype(np.float64) * scale).astype(np.float32),
        np.maximum(values, 0).astype(np.float32),
        vectors.astype(np.float32),
        chosen,
        count,
    )
    start = (kept / scale).astype(np.float32)
    return refine(given, matrix, mask, start=start, steps=steps, damping=damping), mask


def _alternate(
    w: NDArray[np.float32], values: NDArray[np.float32], vectors: NDArray[np.float32], pattern: Pattern, iterations: int
) -> tuple[Bitmask, NDArray[np.float32]]:
    """The mask where dense and pruned weights meet, and the pruned ones."""
    matmul = _products.active().matmul
    target = matmul(matmul(w, vectors) * values, vectors.T)
    mask = select(w, pattern)
    pruned: NDArray[np.float32] = np.where(mask.to_bool(), w, np.float32(0)).astype(np.float32, copy=False)
    dual = np.zeros_like(w)
    penalty, seen = np.float32(_FIRST_PENALTY), mask
    for iteration in range(1, iterations + 1):
        dense = matmul(matmul(target - dual + penalty * pruned, vectors) / (values + penalty), vectors.T)
        proposed = dense + dual / penalty
        mask = select(proposed, pattern)
        pruned = np.where(mask.to_bool(), proposed, np.float32(0)).astype(np.float32, copy=False)
        dual += penalty * (dense - pruned)
        if iteration % _CHECK_EVERY == 0:
            changed = (mask ^ seen).count / 2
            if not changed:
                break
            penalty *= np.float32(next(by for least, by in _GROWTH if changed > least * mask.count))
            seen = mask
    return mask, pruned
