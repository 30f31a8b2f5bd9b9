"""The Gram matrix of a layer's inputs, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse.calibration import _products
from fastsparse.patterns import integer, positive

_TOKENS = 16384
"""Tokens that are multiplied at a time: what is not float32 is converted piece by piece."""
_PANEL = 256
"""Columns that are mirrored at a time."""


class Gram:
    """`XᵀX` of the inputs X (tokens × cols) of a layer: all that the methods want to know of them.

    Parameters
    ----------
    cols : int
        Input features of the layer, its columns.
    diagonal : bool
        Hold the diagonal only, which is what `wanda` and the statistics of `allocation` need: `cols` numbers instead of
        `cols²`.
    clip : float, optional
        Tokens whose norm is more than so many times the median of their update count as if it were that, in the same
        direction. A few tokens of language models have inputs of a hundred times the energy of all others; without a
        bound the methods spend the weights on those. By default all count as they are.

    Raises
    ------
    FastSparseError
        If `cols` is no number of columns, or `clip` no positive number.

    Notes
    -----
    Products and their sum are float32 (the diagonal alone float64). An update takes `tokens·cols²` operations, with a
    BLAS that uses the symmetry, and one temporary of the size of the matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse.calibration import Gram
    >>> gram = Gram(2)
    >>> gram.update([[3, 0], [4, 1]])
    >>> gram.matrix
    array([[25.,  4.],
           [ 4.,  1.]], dtype=float32)
    >>> gram.norms, gram.tokens
    (array([5., 1.]), 2)
    """

    __slots__ = ("_clip", "_cols", "_diagonal", "_mirrored", "_sums", "_tokens")

    _sums: NDArray[Any]
    """The diagonal; or the matrix, where not `_mirrored` only on and below the diagonal."""

    def __init__(self, cols: int, *, diagonal: bool = False, clip: float | None = None) -> None:
        self._cols = integer("cols", cols, 1)
        self._clip = None if clip is None else positive("clip", clip)
        self._diagonal = bool(diagonal)
        self._sums = np.zeros(cols) if diagonal else np.zeros((cols, cols), np.float32)
        self._tokens = 0
        self._mirrored = False

    @classmethod
    def of_sums(cls, sums: NDArray[Any], tokens: int) -> Gram:
        """The Gram of known sums: a matrix `XᵀX`, or its diagonal; it is not copied, and is not to be updated."""
        gram = cls.__new__(cls)
        gram._cols, gram._diagonal, gram._sums, gram._tokens = len(sums), sums.ndim == 1, sums, tokens
        gram._clip, gram._mirrored = None, True
        return gram

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self._cols

    @property
    def diagonal(self) -> bool:
        """Whether it holds the diagonal only."""
        return self._diagonal

    @property
    def tokens(self) -> int:
        """How many inputs it holds."""
        return self._tokens

    @property
    def matrix(self) -> NDArray[np.float32]:
        """`XᵀX`, float32 ``[cols, cols]``, a read-only view that holds until the next update.

        Raises
        ------
        FastSparseError
            If it holds the diagonal only, or no inputs.
        """
        if self._diagonal:
            raise FastSparseError("gram: it holds the diagonal only (diagonal=True); this needs the whole matrix")
        self._check_not_empty()
        if not self._mirrored:
            for first in range(0, self._cols, _PANEL):
                panel = self._sums[first:, first : first + _PANEL]
                panel[:_PANEL] = np.tril(panel[:_PANEL]) + np.tril(panel[:_PANEL], -1).T
                self._sums[first : first + _PANEL, first + _PANEL :] = panel[_PANEL:].T
            self._mirrored = True
        view = self._sums.view()
        view.flags.writeable = False
        return view

    @property
    def norms(self) -> NDArray[np.float64]:
        """The l2 norm of each column of X over all tokens, float64 ``[cols]``: the square root of the diagonal.

        Raises
        ------
        FastSparseError
            If it holds no inputs.
        """
        self._check_not_empty()
        diagonal = self._sums if self._diagonal else self._sums.diagonal()
        norms: NDArray[np.float64] = np.sqrt(diagonal, dtype=np.float64)
        return norms

    def update(self, x: ArrayLike) -> None:
        """Add inputs.

        Parameters
        ----------
        x : array_like of float
            ``(…, cols)``: the last axis are the features, all others count tokens. Leave padding tokens out:
            ``gram.update(x[attention_mask])``.

        Raises
        ------
        FastSparseError
            If the shape does not fit, or for a NaN or an infinity (the message has its index). What it held before it
            still holds then.
        """
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise FastSparseError(f"x: {error}") from None
        if array.ndim == 0 or array.shape[-1] != self._cols:
            raise FastSparseError(f"x: expected shape (…, {self._cols}), got {array.shape}")
        if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
            raise FastSparseError(f"x: expected real numbers, got dtype {array.dtype.name}")
        tokens = array.reshape(-1, self._cols)
        self._check_range(array, tokens)
        weights = _weights(tokens, self._clip) if self._clip is not None and len(tokens) else None
        for piece in _pieces(tokens, np.float64 if self._diagonal else np.float32, weights):
            if self._diagonal:
                self._sums += np.einsum("tc,tc->c", piece, piece)
            else:
                _products.active().add_gram(self._sums, piece)
                self._mirrored = False
        self._tokens += len(tokens)

    def merge(self, other: Gram) -> None:
        """Add what another one holds: Grams of parts of the data, gathered apart, make that of all of it.

        Raises
        ------
        FastSparseError
            If it is not a Gram of as many columns, with the same `clip`, that holds the same (all or the diagonal).
        """
        if not isinstance(other, Gram) or (other._cols, other._diagonal) != (self._cols, self._diagonal):
            raise FastSparseError(f"other: expected {self._kind()}, got {other!r}")
        if other._clip != self._clip:
            raise FastSparseError(f"other: it has clip={other._clip}, this one clip={self._clip}")
        self._sums += other._sums
        self._mirrored = False
        self._tokens += other._tokens

    def _check_range(self, x: NDArray[Any], tokens: NDArray[Any]) -> None:
        """FastSparseError where the sums would not be finite."""
        largest = np.float64(0)
        for piece in _pieces(tokens, np.float64 if self._diagonal else np.float32):
            largest = np.maximum(largest, np.maximum(piece.max(initial=0), -piece.min(initial=0)))  # passes NaN on
        if not np.isfinite(largest):
            flat = int(np.argmin(np.isfinite(x.reshape(-1))))
            index = tuple(map(int, np.unravel_index(flat, x.shape)))
            raise FastSparseError(f"x: {x[index]} at index {index}")
        with np.errstate(over="ignore"):
            bound = largest * largest * len(tokens) + np.float64(self._sums.max())
        if bound > np.finfo(self._sums.dtype).max / 2:
            raise FastSparseError(f"x: numbers up to {largest:g}, whose squares add up to more than float32 holds")

    def _check_not_empty(self) -> None:
        if not self._tokens:
            raise FastSparseError("gram: it holds no tokens; call update with the layer's inputs first")

    def _kind(self) -> str:
        return f"a Gram of {self._cols} columns" + (", diagonal only" if self._diagonal else "")

    def __repr__(self) -> str:
        return f"<{self._kind()[2:]}: {self._tokens} tokens>"


def _weights(tokens: NDArray[Any], clip: float) -> NDArray[np.float64]:
    """The factor of each token, at most 1, that brings its norm down to `clip` times the median norm."""
    norm = np.concatenate([np.sqrt(np.einsum("tc,tc->t", piece, piece)) for piece in _pieces(tokens, np.float64)])
    bound = clip * np.median(norm)
    weights: NDArray[np.float64] = np.ones_like(norm)
    # Where half of the tokens are zero nothing is known of a typical one.
    np.divide(bound, norm, out=weights, where=(norm > bound) & (bound > 0))
    return weights


def _pieces(
    tokens: NDArray[Any], dtype: type[np.floating[Any]], weights: NDArray[np.float64] | None = None
) -> Iterator[NDArray[Any]]:
    for first in range(0, len(tokens), _TOKENS):
        piece = tokens[first : first + _TOKENS].astype(dtype, copy=False)
        yield piece if weights is None else piece * weights[first : first + _TOKENS, None].astype(dtype)
