"""SparseGPT: columns are pruned one after the other, and those to come make up for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.calibration import _products
from fastsparse.calibration._arguments import restored, weights
from fastsparse.calibration._factor import Factor, factorize, inverse_of_upper
from fastsparse.calibration._gram import Gram
from fastsparse.masks import Bitmask
from fastsparse.patterns import NM, Block, Pattern, TopK, Unstructured, integer, zeros_in_every
from fastsparse.patterns import pattern as _pattern

_ROUNDINGS = ("exact", "peer")


def sparsegpt(
    w: ArrayLike,
    gram: Gram | ArrayLike | Factor,
    pattern: str | Pattern,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    order: str = "natural",
    rounding: str = "exact",
) -> tuple[NDArray[Any], Bitmask]:
    """Prune a layer so that its outputs change least, column by column [1]_.

    Weights are ranked by `w²/U_jj²`, U being the upper Cholesky factor of the inverse of the damped Gram matrix: for
    unstructured and block patterns once for each block of columns, for n:m along the columns once for each group. Where
    a weight is pruned, the weights of its row further right take over what they can.

    Parameters
    ----------
    w : array_like of float, ``[rows, cols]``
        Weights, float64, float32, float16 or bfloat16.
    gram : Gram, array_like ``[cols, cols]`` or Factor
        `XᵀX` of the layer's inputs, or what `factorize` made of it; `damping` and `order` are those of the factor then.
    pattern : Pattern or str
        Unstructured over the matrix or in each row, n:m and top-k along either axis, blocks of any shape. Counts are
        those of `fs.select`, exactly; they are spread evenly over the blocks of columns.
    damping : float
        Share of the mean of the diagonal of the Gram matrix that is added to the diagonal.
    block_size : int
        Columns for which an unstructured mask is chosen at once. Rounded down to a multiple of the groups of n:m and of
        the width of blocks.
    order : {"natural", "activation"}
        From left to right, or the columns with the most active inputs first; the latter for patterns that do not join
        neighbouring columns.
    rounding : {"exact", "peer"}
        "peer" prunes all that is not above the score at the rank `int(p·n)` of each block of columns, as the
        implementations derived from the paper's do, which is a weight too many or more. For comparisons.

    Returns
    -------
    w_new : ndarray
        The updated weights in the dtype of `w`, zeros where they were pruned.
    mask : Bitmask
        What was kept.

    Raises
    ------
    FastSparseError
        For other patterns, shapes that do not fit, NaN and infinity, and what `factorize` refuses.

    Warns
    -----
    RuntimeWarning
        As `factorize`.

    Notes
    -----
    The factorisation is float64, everything else float32. `cols³/3` operations for the factor (see `factorize` to share
    it) and `2·rows·cols²`. The columns still to come are never touched: with V = U⁻¹, `V Vᵀ = G`, a block of columns b
    has after the change D = Ŵ − W of all columns before it the weights ``W[:, b] − D V[:, b] V[b, b]⁻¹``, so U is never
    formed. The mask is the same for every number of threads and instruction set of fastsparse.

    References
    ----------
    .. [1] E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
       arXiv:2301.00774, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse import calibration
    >>> w = np.float32([[3, 1, 2, 4]])
    >>> x = np.float32([[1, 1, 0, 0], [2, 2, 1, 0], [0, 0, 1, 1], [1, 1, 1, 3]])
    >>> w_new, mask = calibration.sparsegpt(w, x.T @ x, "25%/row")
    >>> mask.to_bool()
    array([[False,  True,  True,  True]])
    >>> w_new.round()
    array([[0., 4., 2., 4.]], dtype=float32)
    """
    given = weights(w)
    cols = given.shape[1]
    size = integer("block_size", block_size, 1)
    if rounding not in _ROUNDINGS:
        raise FastSparseError(f"rounding: expected one of {', '.join(_ROUNDINGS)}, got {rounding!r}")
    plan = _Plan(_pattern(pattern), given.shape, size, peer=rounding == "peer")
    factor = gram if isinstance(gram, Factor) else factorize(gram, damping=damping, order=order)
    if len(factor.upper) != cols:
        raise FastSparseError(f"gram: it is {len(factor.upper)} × {len(factor.upper)}, but w has {cols} columns")
    if factor.order is not None and plan.width > 1:
        raise FastSparseError(f'order: "{plan.pattern}" joins neighbouring columns; they are pruned in natural order')

    before: NDArray[np.float32] = given.astype(np.float32, copy=False)
    if factor.dead.any():
        before = np.where(factor.dead, np.float32(0), before)
    if factor.order is not None:
        before = before[:, factor.order]
    keep, change = np.empty(before.shape, np.bool_), np.empty_like(before)
    # Fresh memory for every block would cost as much as what is computed in it.
    matmul = _products.active().matmul
    scratch = np.empty((2, len(before) * plan.size), np.float32)
    for first, end in plan.blocks():
        pending, block = scratch[:, : len(before) * (end - first)].reshape(2, len(before), end - first)
        triangle = factor.upper[first:end, first:end]
        inverse = inverse_of_upper(triangle).astype(np.float32)
        matmul(change[:, :first], factor.upper[:first, first:end].astype(np.float32), pending)
        matmul(pending, inverse, block)
        np.subtract(before[:, first:end], block, out=block)
        scale = triangle.diagonal().astype(np.float32)
        bits = plan.choose(block, first, scale)
        pruned, bits = _backend.active.prune_columns(block, inverse, scale, bits, plan.groups)
        keep[:, first:end] = _backend.active.to_bool(block.shape, bits)
        np.subtract(pruned, before[:, first:end], out=change[:, first:end])
    after = np.add(before, change, out=change)  # zeros where weights are pruned, the change being −w
    if factor.order is not None:
        natural = np.argsort(factor.order)
        after, keep = after[:, natural], keep[:, natural]
    return restored(after, given.dtype), Bitmask.from_bool(keep)


class _Plan:
    """How a pattern is chosen, block of columns by block of columns."""

    __slots__ = ("_cols", "_peer", "_rows", "groups", "pattern", "size", "width")

    groups: tuple[int, int, int] | None
    """For n:m along the columns: zeros in each group, its length, zeros in the shorter one at the end of a row."""

    width: int
    """How many neighbouring columns belong together."""

    size: int
    """Columns of a block, the last one's at most."""

    def __init__(self, pattern: Pattern, shape: tuple[int, ...], size: int, *, peer: bool) -> None:
        self.pattern = pattern
        self._rows, self._cols = shape
        self._peer = peer
        self.groups, self.width = None, 1
        match pattern:
            case Unstructured():
                pass
            case NM() | TopK():
                if not -2 <= pattern.axis < 2:
                    raise FastSparseError(f"axis: {pattern.axis} is out of range for w with 2 dimensions")
                if pattern.axis % 2 == 1:
                    self._join(pattern)
            case Block(shape=tuple() as tile):
                self.width = tile[1]
            case Block():
                if not -2 <= pattern.axis < 2:
                    raise FastSparseError(f"axis: {pattern.axis} is out of range for w with 2 dimensions")
                self.width = int(pattern.shape) if pattern.axis % 2 == 1 else 1  # type: ignore[arg-type]
            case _:
                raise FastSparseError(
                    f'pattern: sparsegpt does not take "{pattern}"; expected a share ("50%", "50%/row"), n:m ("2:4"), '
                    'top-k ("top8/64") or blocks ("75%/4x1")'
                )
        if peer and not (isinstance(pattern, Unstructured) and pattern.per == "tensor") and self.groups is None:
            raise FastSparseError(f'rounding: "peer" is for "50%" and n:m along the columns, not for "{pattern}"')
        self.size = min(max(self.width, size // self.width * self.width), max(self._cols, 1))

    def _join(self, pattern: NM | TopK) -> None:
        of = self.width = pattern.of
        zeros = pattern.zeros if isinstance(pattern, NM) else of - pattern.keep
        rest = self._cols % of
        if rest and pattern.tail == "error":
            raise FastSparseError(
                f'w: axis of length {self._cols} is not a multiple of {of}; tail="error" forbids a shorter group of '
                + zeros_in_every(zeros, of)
            )
        self.groups = zeros, of, round(zeros * float(rest) / of) if pattern.tail == "proportional" else 0

    def blocks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._cols, self.size):
            yield first, min(first + self.size, self._cols)

    def choose(self, block: NDArray[np.float32], first: int, scale: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The mask of a block of columns that begins at `first`, or None where it is chosen group by group."""
        if self.groups is not None:
            return None
        active = _backend.active
        pattern, end = self.pattern, first + block.shape[1]
        if self._peer:
            assert isinstance(pattern, Unstructured)
            scores = np.square(block * scale)
            rank = min(int(pattern.sparsity * scores.size), scores.size - 1)
            return active.from_bool(scores > np.partition(scores, rank, axis=None)[rank])[1]
        spec: tuple[Any, ...] = pattern._spec
        match pattern:
            case Unstructured(per="tensor"):
                spec = ("exact", self._zeros(pattern.sparsity, self._rows, first, end)[0])
            case Unstructured():
                zeros, items = self._zeros(pattern.sparsity, 1, first, end)
                spec = ("unstructured", zeros / items, "row")
            case Block():
                tall = pattern.shape[0] if isinstance(pattern.shape, tuple) else 1
                if isinstance(pattern.shape, int) and pattern.axis % 2 == 0:
                    tall = pattern.shape
                zeros, items = self._zeros(pattern.sparsity, -(-self._rows // tall), first, end)
                spec = ("block", pattern.shape, zeros / items, pattern.axis, pattern.norm)
        return active.select(block, spec, None, scale, None)[1]

    def _zeros(self, sparsity: float, down: int, first: int, end: int) -> tuple[int, int]:
        """How many items of some columns are pruned, and how many there are. Over all columns the sum is exact."""
        items_before, items = down * -(-first // self.width), down * -(-end // self.width)
        return round(sparsity * items) - round(sparsity * items_before), items - items_before
