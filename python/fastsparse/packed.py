"""Packed tensors: a bit mask and the values that are kept."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.masks import Bitmask, checked_shape, dimensions, matrix_view, new_mask, percent_sparse
from fastsparse.operand import Operand, check_matrix
from fastsparse.patterns import NM, Block, Pattern, TopK, integer, pattern

if TYPE_CHECKING:
    from fastsparse.prepared import PreparedWeights
    from fastsparse.quantized import QuantizedArray

__all__ = ["BitmaskArray"]

_SCIPY_DTYPES = ("float64", "float32", "int8", "uint8")


class BitmaskArray(Operand):
    """A tensor as a bit mask plus the kept values, row-major. Immutable.

    `fs.compress`, `fs.pack`, `BitmaskArray.from_parts` and `BitmaskArray.from_scipy` make one. The tensor is seen as a
    matrix: rows = d0, columns = d1·d2·…; one dimension is one row, a scalar is 1 × 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.compress(np.float32([[0.1, -4, 0.2, 3], [5, 0.3, 0.4, -6]]), "2:4")
    >>> s
    <BitmaskArray 2×4 float32, 50.0 % sparse, 42 B (1.31 of dense)>
    >>> s.values
    array([-4.,  3.,  5., -6.], dtype=float32)
    >>> s.to_dense()
    array([[ 0., -4.,  0.,  3.],
           [ 5.,  0.,  0., -6.]], dtype=float32)
    """

    __slots__ = ("_bitmask", "_pattern", "_row_offsets", "_shape", "_values")

    _shape: tuple[int, ...]
    _values: NDArray[Any]
    _bitmask: NDArray[np.uint8]
    _row_offsets: NDArray[np.int64]
    _pattern: Pattern | None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Packed tensors are made by functions that check or know what they hold."""
        raise TypeError("use fs.pack, fs.compress, BitmaskArray.from_parts or BitmaskArray.from_scipy")

    @staticmethod
    def from_parts(
        values: ArrayLike, bitmask: ArrayLike, shape: tuple[int, ...], *, pattern: str | Pattern | None = None
    ) -> BitmaskArray:
        """A packed tensor over parts from elsewhere, a file for example; contiguous parts are not copied.

        Parameters
        ----------
        values : array_like, ``[nnz]``
            Kept elements, row-major, of a supported dtype.
        bitmask : array_like of uint8, ``[rows, ceil(cols/8)]``
            As `Bitmask.bits`.
        shape : tuple of int
            Shape of the tensor.
        pattern : NM, TopK, Block, their short form, or None
            What the mask is known to obey; it is checked.

        Raises
        ------
        FormatError
            If the parts contradict each other, a padding bit is set, or the mask does not obey the pattern.
        FastSparseError
            If the pattern is of another kind.

        Examples
        --------
        >>> import numpy as np
        >>> BitmaskArray.from_parts(np.float32([7, 56.3]), np.uint8([[0x82]]), (8,)).to_dense()
        array([ 0. ,  7. ,  0. ,  0. ,  0. ,  0. ,  0. , 56.3], dtype=float32)
        """
        known = None if pattern is None else _lasting(pattern)
        parts = _backend.active.check_parts(values, bitmask, checked_shape(shape))
        if known is not None:
            _backend.active.check_pattern(parts[0], parts[2], known._spec)
        return new_array(*parts, known)

    @staticmethod
    def from_scipy(matrix: Any) -> BitmaskArray:
        """Pack a two-dimensional scipy.sparse matrix or array; what it stores is kept, explicit zeros among it.

        Parameters
        ----------
        matrix : scipy.sparse matrix or array
            Of any format; duplicates are summed. The blocks of BSR become a `Block` pattern.

        Raises
        ------
        FastSparseError
            If its dtype is not supported or it does not have two dimensions.

        Examples
        --------
        >>> import numpy as np
        >>> import scipy.sparse
        >>> BitmaskArray.from_scipy(scipy.sparse.csr_array(np.float32([[0, 3], [0, 0]])))
        <BitmaskArray 2×2 float32, 75.0 % sparse, 30 B (1.87 of dense)>
        """
        if len(getattr(matrix, "shape", ())) != 2 or not hasattr(matrix, "tocsr"):
            raise FastSparseError(f"matrix: expected a two-dimensional scipy.sparse array, got {type(matrix).__name__}")
        known = None
        if matrix.format == "bsr" and matrix.blocksize != (1, 1) and math.prod(matrix.shape):
            if not matrix.has_canonical_format:
                matrix = matrix.copy()
                matrix.sum_duplicates()
            blocks = math.prod(matrix.shape) // math.prod(matrix.blocksize)
            rows, cols = map(int, matrix.blocksize)
            known = Block((rows, cols), (blocks - matrix.indices.size) / blocks)
        csr = matrix.tocsr()
        if not csr.has_canonical_format:
            csr = csr.copy()
            csr.sum_duplicates()
        keep = np.zeros(csr.shape, np.bool_)
        keep[np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)), csr.indices] = True
        return BitmaskArray.from_parts(csr.data, Bitmask.from_bool(keep).bits, csr.shape, pattern=known)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""
        return self._values.dtype

    @property
    def values(self) -> NDArray[Any]:
        """Kept elements, row-major, ``[nnz]``, read-only."""
        return self._values

    @property
    def bitmask(self) -> NDArray[np.uint8]:
        """Bits of the mask, uint8 ``[rows, ceil(cols/8)]``, read-only; see `Bitmask.bits`."""
        return self._bitmask

    @property
    def row_offsets(self) -> NDArray[np.int64]:
        """Where each row of the matrix view starts in `values`, and the end: int64 ``[rows + 1]``, read-only."""
        return self._row_offsets

    @property
    def mask(self) -> Bitmask:
        """The mask, over the same memory."""
        return new_mask(self._shape, self._bitmask, self._values.size)

    @property
    def pattern(self) -> Pattern | None:
        """The n:m, top-k or block pattern that the mask is known to obey, if any."""
        return self._pattern

    @property
    def nnz(self) -> int:
        """Number of elements kept."""
        return self._values.size

    @property
    def sparsity(self) -> float:
        """Share of elements that are not kept; 0 for a tensor without elements."""
        return (self.size - self.nnz) / self.size if self.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of values, mask and row offsets."""
        return self._values.nbytes + self._bitmask.nbytes + self._row_offsets.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.size * self._values.itemsize

    @property
    def ratio(self) -> float:
        """`nbytes` / `dense_nbytes`; infinite for a tensor without elements."""
        dense = self.dense_nbytes
        return self.nbytes / dense if dense else math.inf

    def to_dense(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The dense tensor.

        Parameters
        ----------
        out : ndarray, optional
            Written to and returned: writeable, C-contiguous, of the same shape and dtype. Reusing one saves the page
            faults of fresh memory, which cost more than the unpacking.

        Raises
        ------
        FastSparseError
            If `out` does not fit or overlaps the parts.
        """
        return _backend.active.unpack(self._values, self._bitmask, self._row_offsets, self._shape, out)

    def _linear(
        self, x: ArrayLike, bias: ArrayLike | None, weight_scale: ArrayLike | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        if len(self._shape) < 2:  # asked here as well: small products take no longer than some calls
            check_matrix(self._shape)
        groups = row_groups(self._pattern, self._shape) if isinstance(self._pattern, NM) else None
        parts = (self._values, self._bitmask, self._row_offsets, self._shape)
        return _backend.active.linear(*parts, x, bias, weight_scale, out, groups)

    def prepare(self, *, batch: int = 1) -> PreparedWeights:
        """The weights in the layout that computes fastest here, for weights that are multiplied many times.

        Where the pattern is known to be blocks it is those as dense tiles, where few are kept column indices instead of
        the mask: copies. Elsewhere it is this array itself. Measured constants decide, by instruction set, dtype and
        density.

        Parameters
        ----------
        batch : int
            For how many rows of activations, at least 1. The result computes any number of them.

        Raises
        ------
        FastSparseError
            If the tensor has fewer than two dimensions or `batch` is not a positive integer.

        Examples
        --------
        >>> import numpy as np
        >>> import fastsparse as fs
        >>> fs.pack(np.eye(3, dtype=np.int8)).prepare()
        <PreparedWeights 3×3 int8, 66.6 % sparse, by mask, 38 B>
        """
        from fastsparse.prepared import prepared  # that module needs this one

        return prepared(self, integer("batch", batch, 1))

    def quantize(self, bits: int = 8) -> QuantizedArray:
        """The kept values rounded to int8, symmetrically, each row of the matrix view by a scale of its own.

        In float32 arithmetic, one operation after the other: the scale of a row is ``m / 127``, where m is the largest
        magnitude that the row keeps, and a value w becomes ``rint(w / m * 127)``, half to even. The mask stays: values
        that become zero are kept. A row of zeros, or one that keeps nothing, has the scale 0.

        Parameters
        ----------
        bits : int
            8.

        Returns
        -------
        QuantizedArray
            Of nnz + 4·rows bytes beside the mask and the offsets, which are not copied.

        Raises
        ------
        FastSparseError
            If `bits` is something else, the dtype is not float64, float32, float16 or bfloat16, or a row holds an
            infinity or NaN; the message names it.

        Examples
        --------
        >>> import numpy as np
        >>> import fastsparse as fs
        >>> fs.pack(np.float32([[0, 12.7, -2.54]])).quantize().packed.values
        array([127, -25], dtype=int8)
        """
        from fastsparse.quantized import check_bits, quantize  # that module needs this one

        check_bits("bits", bits)
        return quantize(self)

    def rows(self, start: int, stop: int) -> BitmaskArray:
        """Rows `start` to `stop` (exclusive) over the same memory; nothing else is touched.

        Parameters
        ----------
        start, stop : int
            Along the first dimension; negative ones count from its end, as in a slice. Unlike in a slice, bounds
            outside the tensor are an error.

        Raises
        ------
        FastSparseError
            If a bound is out of range, `stop` is before `start`, or the tensor has fewer than two dimensions.

        Examples
        --------
        >>> import numpy as np
        >>> import fastsparse as fs
        >>> fs.pack(np.eye(3, dtype=np.float32)).rows(1, 3).to_dense()
        array([[0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
        """
        if len(self._shape) < 2:
            raise FastSparseError(f"rows: a tensor of shape {self._shape} has no rows; two dimensions are needed")
        count = self._shape[0]
        first, end = (i + count if i < 0 else i for i in map(operator.index, (start, stop)))
        if not 0 <= first <= end <= count:
            raise FastSparseError(f"rows: expected 0 ≤ start ≤ stop ≤ {count}, got {start} and {stop}")
        begin, finish = self._row_offsets[[first, end]]
        offsets = self._row_offsets[first : end + 1] - begin
        offsets.flags.writeable = False
        shape = (end - first, *self._shape[1:])
        known = self._pattern if _obeyed_by_rows(self._pattern, len(shape)) else None
        return new_array(shape, self._values[begin:finish], self._bitmask[first:end], offsets, known)

    def to_scipy(self, format: str = "csr") -> Any:
        """The matrix view as a scipy.sparse array; zeros that are kept stay stored.

        Parameters
        ----------
        format : {"csr", "bsr"}
            ``"bsr"`` has the tiles of a `Block` pattern as its blocks; without one scipy chooses.

        Raises
        ------
        FastSparseError
            If scipy does not know the dtype (it takes float64, float32, int8, uint8), or the tiles do not divide the
            matrix.

        Examples
        --------
        >>> import numpy as np
        >>> import fastsparse as fs
        >>> fs.pack(np.eye(3, dtype=np.float32)).to_scipy().indices
        array([0, 1, 2], dtype=int32)
        """
        from scipy import sparse  # optional, and slow to import

        if format not in ("csr", "bsr"):
            raise FastSparseError(f"format: expected csr or bsr, got {format!r}")
        if self.dtype.name not in _SCIPY_DTYPES:
            names = ", ".join(_SCIPY_DTYPES)
            hint = 'convert first, for example with fs.pack(s.to_dense().astype("float32"), s.mask)'
            raise FastSparseError(f"dtype: scipy.sparse takes {names}, got {self.dtype}; {hint}")
        shape = matrix_view(self._shape)
        bits = np.unpackbits(self._bitmask, axis=1, count=shape[1], bitorder="little")
        index = np.int32 if max(*shape, self.nnz) <= np.iinfo(np.int32).max else np.int64
        columns = np.nonzero(bits)[1].astype(index)
        csr = sparse.csr_array((self._values, columns, self._row_offsets.astype(index)), shape=shape)
        return csr if format == "csr" else csr.tobsr(blocksize=_tile(self._pattern, shape))

    def copy(self) -> BitmaskArray:
        """The same tensor over memory of its own."""
        parts = (self._values.copy(), self._bitmask.copy(), self._row_offsets.copy())
        for part in parts:
            part.flags.writeable = False
        return new_array(self._shape, *parts, self._pattern)

    def __copy__(self) -> BitmaskArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BitmaskArray:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_pickle, (self._values, self._bitmask, self._shape, self._pattern)

    def __eq__(self, other: object) -> bool:
        """Whether shape, dtype, mask and the bits of the values are the same; the pattern does not count."""
        if not isinstance(other, BitmaskArray):
            return NotImplemented
        return (
            self._shape == other._shape
            and self.dtype == other.dtype
            and np.array_equal(self._bitmask, other._bitmask)
            and np.array_equal(self._values.view(np.uint8), other._values.view(np.uint8))
        )

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuses, so that a packed tensor does not become dense by accident."""
        raise TypeError("a BitmaskArray does not become dense by itself; use to_dense()")

    def _repr_html_(self) -> str:
        from fastsparse.analysis._notebook import array_html  # notebooks only

        return array_html(repr(self), self._bitmask, matrix_view(self._shape)[1])

    def __repr__(self) -> str:
        sparse = percent_sparse(math.prod(self._shape), self.nnz)
        hundredths = 100 * self.nbytes // max(self.dense_nbytes, 1)
        ratio = f" ({hundredths // 100}.{hundredths % 100:02} of dense)" if self.dense_nbytes else ""
        return (
            f"<BitmaskArray {dimensions(self._shape)} {self.dtype}, {sparse} sparse, {byte_count(self.nbytes)}{ratio}>"
        )


def new_array(
    shape: tuple[int, ...],
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    known: Pattern | None,
) -> BitmaskArray:
    """A packed tensor from parts that a backend made: not checked again."""
    array = object.__new__(BitmaskArray)
    array._shape = shape
    array._values = values
    array._bitmask = bitmask
    array._row_offsets = row_offsets
    array._pattern = known
    return array


def _from_pickle(
    values: NDArray[Any], bitmask: NDArray[np.uint8], shape: tuple[int, ...], known: Pattern | None
) -> BitmaskArray:
    return BitmaskArray.from_parts(values, bitmask, shape, pattern=known)


def _lasting(given: str | Pattern) -> Pattern:
    """A pattern that a mask can be known to obey."""
    known = pattern(given)
    if not isinstance(known, NM | TopK | Block):
        raise FastSparseError(f"pattern: expected an n:m, top-k or block pattern, got {known}")
    return known


def _obeyed_by_rows(known: Pattern | None, ndim: int) -> bool:
    """Whether some rows obey what the tensor does: true of groups within a row, not of counts over the tensor."""
    return isinstance(known, NM | TopK) and known.axis % ndim != 0


def _tile(known: Pattern | None, shape: tuple[int, int]) -> tuple[int, int] | None:
    """The block size for scipy, or None to leave it the choice."""
    if not isinstance(known, Block) or not isinstance(known.shape, tuple):
        return None
    if shape[0] % known.shape[0] or shape[1] % known.shape[1]:
        raise FastSparseError(f"format: bsr needs blocks that divide the {shape[0]} × {shape[1]} matrix, got {known}")
    return known.shape


def byte_count(count: int) -> str:
    """A number of bytes with one decimal, rounded down."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            tenths = 10 * count // size
            return f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{count} B"


def row_groups(pattern: Pattern | None, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """How many of how many neighbours of a row of the matrix view a pattern keeps at most, if it says so."""
    if not isinstance(pattern, NM) or pattern.axis not in (-1, len(shape) - 1):
        return None
    if len(shape) > 2 and shape[-1] % pattern.of:
        return None
    return pattern.of - pattern.zeros, pattern.of
