"""Packed weights of eight bits: int8 values with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import Bitmask, dimensions, matrix_view, percent_sparse
from fastsparse.operand import Operand
from fastsparse.packed import BitmaskArray, byte_count, new_array
from fastsparse.patterns import Pattern

__all__ = ["BITS", "QUANTIZABLE", "QuantizedArray", "check_bits", "quantized"]

BITS = 8
QUANTIZABLE = tuple(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
"""What can be rounded to int8."""
_LARGEST = np.float32(127)
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / _LARGEST, np.float32(0))
"""That of the largest float32, rounded down: 127 times the nearest would be infinite."""
_PIECE = 1 << 16
"""Kept elements that are widened to float32 at once."""


class QuantizedArray(Operand):
    """A packed tensor whose kept values are int8, each row of the matrix view with a scale of its own. Immutable.

    `BitmaskArray.quantize` makes one, `QuantizedArray.from_parts` from parts. The tensor that it stands for has
    `dtype`, and its elements are ``scale[row] · value``, a product in float32 that is rounded to `dtype` once.

    `fs.linear` and ``@`` compute with the int8 values as they are and round the activations to int8 too.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> q = fs.compress(np.float32([[0.1, -12.7, 0.2, 3], [5, 0.3, 0.4, -6]]), "2:4").quantize()
    >>> q
    <QuantizedArray 2×4 float32 in 8 bits, 50.0 % sparse, 38 B (1.18 of dense)>
    >>> q.packed.values, q.scale
    (array([-127,   30,  106, -127], dtype=int8), array([0.1       , 0.04724409], dtype=float32))
    >>> q.to_dense()
    array([[  0.      , -12.7     ,   0.      ,   3.      ],
           [  5.007874,   0.      ,   0.      ,  -6.      ]], dtype=float32)
    """

    __slots__ = ("_dtype", "_packed", "_scale")

    _packed: BitmaskArray
    _scale: NDArray[np.float32]
    _dtype: np.dtype[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        """Made by functions that check or know what they hold."""
        raise TypeError("use BitmaskArray.quantize or QuantizedArray.from_parts")

    @staticmethod
    def from_parts(packed: BitmaskArray, scale: ArrayLike, dtype: Any) -> QuantizedArray:
        """Over parts from elsewhere, a file for example; they are not copied.

        Parameters
        ----------
        packed : BitmaskArray
            The kept values, int8.
        scale : array_like of float32, ``[rows]``
            What each row of the matrix view is multiplied by, finite and not negative.
        dtype : dtype
            Of the tensor that this stands for: float64, float32, float16 or bfloat16.

        Raises
        ------
        FormatError
            If the parts contradict each other or a scale is no such number.
        """
        kind = np.dtype(dtype)
        if not isinstance(packed, BitmaskArray) or packed.dtype != np.int8:
            raise FormatError(f"packed: expected a BitmaskArray of int8, got {packed!r}")
        if kind not in QUANTIZABLE:
            raise FormatError(f"dtype: expected {', '.join(map(str, QUANTIZABLE))}, got {kind}")
        factors = np.asarray(scale)
        rows = matrix_view(packed.shape)[0]
        if factors.dtype != np.float32 or factors.shape != (rows,):
            raise FormatError(f"scale: expected float32 of shape ({rows},), got {factors.dtype} of {factors.shape}")
        wrong = np.flatnonzero(~(np.isfinite(factors) & (factors >= 0)))
        if wrong.size:
            raise FormatError(f"scale: that of row {wrong[0]} is {factors[wrong[0]]}, expected a finite number ≥ 0")
        return quantized(packed, np.ascontiguousarray(factors), kind)

    @property
    def packed(self) -> BitmaskArray:
        """The int8 values, without their scales."""
        return self._packed

    @property
    def scale(self) -> NDArray[np.float32]:
        """What the values of each row of the matrix view are multiplied by, float32 ``[rows]``, read-only."""
        return self._scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._packed.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the tensor that this stands for."""
        return self._dtype

    @property
    def mask(self) -> Bitmask:
        """The mask."""
        return self._packed.mask

    @property
    def pattern(self) -> Pattern | None:
        """The n:m, top-k or block pattern that the mask is known to obey, if any."""
        return self._packed.pattern

    @property
    def nnz(self) -> int:
        """Number of elements kept; some of them may have been rounded to zero."""
        return self._packed.nnz

    @property
    def sparsity(self) -> float:
        """Share of elements that are not kept; 0 for a tensor without elements."""
        return self._packed.sparsity

    @property
    def nbytes(self) -> int:
        """Bytes of values, mask, row offsets and scales."""
        return self._packed.nbytes + self._scale.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense tensor, of `dtype`."""
        return self._packed.dense_nbytes * self._dtype.itemsize

    @property
    def ratio(self) -> float:
        """`nbytes` / `dense_nbytes`; infinite for a tensor without elements."""
        dense = self.dense_nbytes
        return self.nbytes / dense if dense else float("inf")

    def dequantize(self) -> BitmaskArray:
        """The packed tensor with values of `dtype`; kept values that were rounded to zero are kept as zeros."""
        s = self._packed
        values = np.empty(s.nnz, self._dtype)
        for rows, kept, counts in _pieces(s):
            values[kept] = s.values[kept] * np.repeat(self._scale[rows], counts)
        values.flags.writeable = False
        return new_array(s.shape, values, s.bitmask, s.row_offsets, s.pattern)

    def to_dense(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The dense tensor, of `dtype`; for `out` see `BitmaskArray.to_dense`."""
        return self.dequantize().to_dense(out)

    def rows(self, start: int, stop: int) -> QuantizedArray:
        """Rows `start` to `stop` (exclusive) over the same memory; see `BitmaskArray.rows`."""
        part = self._packed.rows(start, stop)
        first = start + self.shape[0] if start < 0 else start
        return quantized(part, self._scale[first : first + part.shape[0]], self._dtype)

    def _linear(
        self, x: ArrayLike, bias: ArrayLike | None, weight_scale: ArrayLike | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        if weight_scale is not None:
            raise FastSparseError("weight_scale: a QuantizedArray has scales of its own; give s.packed with others")
        return self._packed._linear(x, bias, self._scale, out)

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedArray.from_parts, (self._packed, self._scale, self._dtype)

    def __copy__(self) -> QuantizedArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedArray:
        return quantized(self._packed.copy(), self._scale.copy(), self._dtype)

    def __eq__(self, other: object) -> bool:
        """Whether dtype, scales, mask and values are the same; the pattern does not count."""
        if not isinstance(other, QuantizedArray):
            return NotImplemented
        return (
            self._dtype == other._dtype
            and self._packed == other._packed
            and np.array_equal(self._scale.view(np.uint8), other._scale.view(np.uint8))
        )

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuses, so that a packed tensor does not become dense by accident."""
        raise TypeError("a QuantizedArray does not become dense by itself; use to_dense()")

    def _repr_html_(self) -> str:
        from fastsparse.analysis._notebook import array_html  # notebooks only

        return array_html(repr(self), self._packed.bitmask, matrix_view(self.shape)[1])

    def __repr__(self) -> str:
        sparse = percent_sparse(self._packed.dense_nbytes, self.nnz)
        hundredths = 100 * self.nbytes // max(self.dense_nbytes, 1)
        ratio = f" ({hundredths // 100}.{hundredths % 100:02} of dense)" if self.dense_nbytes else ""
        form = f"{dimensions(self.shape)} {self._dtype} in {BITS} bits"
        return f"<QuantizedArray {form}, {sparse} sparse, {byte_count(self.nbytes)}{ratio}>"


def quantized(packed: BitmaskArray, scale: NDArray[np.float32], dtype: np.dtype[Any]) -> QuantizedArray:
    """A quantised tensor from parts that fit each other: not checked again."""
    array = object.__new__(QuantizedArray)
    array._packed, array._dtype = packed, dtype
    array._scale = scale.view()
    array._scale.flags.writeable = False
    return array


def check_bits(name: str, bits: Any) -> None:
    """Refuses a number of bits that weights are not stored in, as the argument of this name."""
    if type(bits) is not int or bits != BITS:
        raise FastSparseError(f"{name}: expected {BITS}, or None for weights as they are, got {bits!r}")


def quantize(s: BitmaskArray) -> QuantizedArray:
    """What `BitmaskArray.quantize` returns."""
    if s.dtype not in QUANTIZABLE:
        raise FastSparseError(f"dtype: expected {', '.join(map(str, QUANTIZABLE))}, got {s.dtype}")
    values = np.empty(s.nnz, np.int8)
    scale = np.zeros(matrix_view(s.shape)[0], np.float32)
    for rows, kept, counts in _pieces(s):
        with np.errstate(over="ignore"):
            wide = s.values[kept].astype(np.float32)
        filled = np.flatnonzero(counts)
        largest = np.zeros(len(counts), np.float32)
        if filled.size:
            starts = (s.row_offsets[rows] - s.row_offsets[rows.start])[filled]
            largest[filled] = np.maximum.reduceat(np.abs(wide), starts)
        wrong = np.flatnonzero(~np.isfinite(largest))
        if wrong.size:
            found = largest[wrong[0]]
            why = f"its largest magnitude is {found} in float32, so it has no step"
            raise FastSparseError(f"row {rows.start + wrong[0]}: {why}")
        unit = np.where(largest > 0, largest, np.float32(1))
        wide /= np.repeat(unit, counts)
        wide *= _LARGEST
        values[kept] = np.rint(wide, out=wide)
        scale[rows] = np.minimum(largest / _LARGEST, _LARGEST_SCALE)
    values.flags.writeable = False
    return quantized(new_array(s.shape, values, s.bitmask, s.row_offsets, s.pattern), scale, s.dtype)


def _pieces(s: BitmaskArray) -> Iterator[tuple[slice, slice, NDArray[np.int64]]]:
    """Some rows at a time: which, where their kept elements are, and how many each keeps."""
    offsets = s.row_offsets
    start, count = 0, len(offsets) - 1
    while start < count:
        stop = int(np.searchsorted(offsets, offsets[start] + _PIECE, "right")) - 1
        stop = min(max(stop, start + 1), count)
        yield slice(start, stop), slice(int(offsets[start]), int(offsets[stop])), np.diff(offsets[start : stop + 1])
        start = stop
