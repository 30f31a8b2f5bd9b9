"""Wanda: weights are ranked by what they contribute."""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastsparse._errors import FastSparseError
from fastsparse.calibration._arguments import weights
from fastsparse.masks import Bitmask
from fastsparse.ops import select
from fastsparse.patterns import Nonzero, Pattern, Threshold, Unstructured
from fastsparse.patterns import pattern as _pattern


def wanda(w: ArrayLike, norms: ArrayLike, pattern: str | Pattern) -> Bitmask:
    """Choose what to keep by `|w|·‖x‖`, row by row [1]_. Weights are not changed.

    The same as ``fs.select(w, pattern, column_scale=norms)``, except that unstructured patterns count by rows: each
    output keeps its share, which the paper found to matter. Call `select` to rank over the whole matrix.

    Parameters
    ----------
    w : array_like of float, ``[rows, cols]``
        Weights.
    norms : array_like, ``[cols]``
        The l2 norm of each input feature: `Gram.norms`. Their common scale does not matter.
    pattern : Pattern or str
        ``50%`` and ``50%/row`` both mean `round(0.5·cols)` zeros in each row; n:m, top-k and blocks are as everywhere.

    Returns
    -------
    Bitmask
        Of the shape of `w`.

    Raises
    ------
    FastSparseError
        If shapes do not fit, for NaN and infinity, and for patterns that do not rank (threshold, nonzero).

    References
    ----------
    .. [1] M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models",
       arXiv:2306.11695, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse import calibration
    >>> calibration.wanda(np.float32([[4, 1, 3, 2]]), [1, 9, 1, 3], "50%").to_bool()
    array([[False,  True, False,  True]])
    """
    chosen = _pattern(pattern)
    if isinstance(chosen, Threshold | Nonzero):
        raise FastSparseError(
            f'pattern: wanda ranks weights, "{chosen}" does not; expected a share ("50%"), n:m ("2:4"), top-k or blocks'
        )
    if isinstance(chosen, Unstructured):
        chosen = Unstructured(chosen.sparsity, per="row")
    return select(weights(w), chosen, column_scale=norms)
