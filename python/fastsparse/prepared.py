"""Packed weights in the layout that computes fastest here."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.masks import dimensions, percent_sparse
from fastsparse.operand import Operand, check_matrix
from fastsparse.packed import BitmaskArray, byte_count, new_array
from fastsparse.patterns import Block, Pattern

__all__ = ["PreparedWeights"]


class PreparedWeights(Operand):
    """Weights laid out for `fs.linear` and ``@``. Immutable; `BitmaskArray.prepare` makes one.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.compress(np.float32([[0.1, -4, 0.2, 3], [5, 0.3, 0.4, -6]]), "2:4")
    >>> p = s.prepare()
    >>> p.form
    'mask'
    >>> p @ np.float32([1, 1, 0, 0])
    array([-4.,  5.], dtype=float32)
    >>> p.to_packed() == s
    True
    """

    __slots__ = ("_block", "_blocks", "_layout", "_nnz", "_packed", "_pattern", "_shape")

    _shape: tuple[int, ...]
    _nnz: int
    _packed: BitmaskArray | None
    """What it is, in the form `mask`."""
    _layout: tuple[NDArray[Any], NDArray[Any], NDArray[np.uint16], NDArray[np.int64]]
    """What it is, in the form `indices`; missing otherwise."""
    _blocks: tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.int64]] | None
    """What it is, in the form `blocks`."""
    _block: tuple[int, int]
    """Rows and columns of a block, in the form `blocks`; missing otherwise."""
    _pattern: Pattern | None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Prepared weights are made from packed ones."""
        raise TypeError("use BitmaskArray.prepare")

    @property
    def form(self) -> str:
        """The layout.

        ``"mask"``: the packed weights as they are. ``"indices"``: columns instead of the mask. ``"blocks"``: kept
        blocks as dense tiles with one number each.
        """
        if self._packed is not None:
            return "mask"
        return "indices" if self._blocks is None else "blocks"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weights."""
        return self._packed.dtype if self._packed is not None else self._arrays()[0].dtype

    @property
    def nnz(self) -> int:
        """Number of weights kept."""
        return self._nnz

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return self._packed.nbytes if self._packed is not None else sum(part.nbytes for part in self._arrays())

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        """Those of the layout."""
        return self._layout if self._blocks is None else self._blocks

    def to_packed(self) -> BitmaskArray:
        """The packed weights again, with every bit of every value; the form `mask` gives what it was made from."""
        if self._packed is not None:
            return self._packed
        if self._blocks is not None:
            parts = _backend.active.unlay_blocks(*self._blocks, self._shape, self._block, self._nnz)
        else:
            parts = _backend.active.unindex(*self._layout, self._shape, self._nnz)
        return new_array(*parts, self._pattern)

    def _linear(
        self, x: ArrayLike, bias: ArrayLike | None, weight_scale: ArrayLike | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        if self._packed is not None:
            return self._packed._linear(x, bias, weight_scale, out)
        if weight_scale is not None:
            raise FastSparseError(f"weight_scale: only int8 weights take one, these are {self.dtype}")
        if self._blocks is not None:
            return _backend.active.linear_blocks(*self._blocks, self._shape, self._block, x, bias, out)
        return _backend.active.linear_indexed(*self._layout, self._shape, x, bias, out)

    def __copy__(self) -> PreparedWeights:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedWeights:
        return in_form(self.to_packed().copy(), self.form)

    def __reduce__(self) -> tuple[Any, ...]:
        return in_form, (self.to_packed(), self.form)

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuses, as a `BitmaskArray` does."""
        raise TypeError("PreparedWeights do not become dense by themselves; use to_packed().to_dense()")

    def __repr__(self) -> str:
        sparse = percent_sparse(math.prod(self._shape), self._nnz)
        size = byte_count(self.nbytes)
        return f"<PreparedWeights {dimensions(self._shape)} {self.dtype}, {sparse} sparse, by {self.form}, {size}>"


def prepared(s: BitmaskArray, batch: int) -> PreparedWeights:
    """The form that computes fastest for `batch` rows of activations."""
    check_matrix(s.shape)
    block = block_of(s)
    if block is not None and _backend.active.prefers_blocks(s.values, s.shape, block, batch):
        return in_form(s, "blocks")
    return in_form(s, "indices" if _backend.active.prefers_indices(s.values, s.shape, batch) else "mask")


def block_of(s: BitmaskArray) -> tuple[int, int] | None:
    """Rows and columns, in the matrix view, of the blocks that the weights are known to have."""
    if not isinstance(s.pattern, Block):
        return None
    if isinstance(s.pattern.shape, tuple):
        return s.pattern.shape
    if len(s.shape) != 2:
        return None
    return (1, s.pattern.shape) if s.pattern.axis in (-1, 1) else (s.pattern.shape, 1)


def in_form(s: BitmaskArray, form: str) -> PreparedWeights:
    """A form that has been chosen."""
    weights = object.__new__(PreparedWeights)
    weights._shape, weights._nnz, weights._pattern = s.shape, s.nnz, s.pattern
    weights._packed, weights._blocks = s, None
    if form == "blocks":
        block = block_of(s)
        if block is None:
            raise FastSparseError(f"form: blocks need a block pattern, got {s.pattern}")
        weights._packed, weights._block = None, block
        weights._blocks = _backend.active.lay_blocks(s.values, s.bitmask, s.row_offsets, s.shape, block)
    elif form == "indices":
        weights._packed = None
        weights._layout = _backend.active.index(s.values, s.bitmask, s.row_offsets, s.shape)
    elif form != "mask":
        raise FastSparseError(f"form: expected mask, indices or blocks, got {form!r}")
    return weights
