"""The parts of a tensor in the sparse layouts of compressed-tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError, FormatError
from fastsparse.checkpoint._format import TWO_FOUR
from fastsparse.checkpoint._reader import matrix_bits
from fastsparse.masks import Bitmask, checked_shape
from fastsparse.packed import BitmaskArray

__all__ = ["from_sparse24", "from_sparse_bitmask", "to_sparse24", "to_sparse_bitmask"]


def from_sparse_bitmask(compressed: ArrayLike, bitmask: ArrayLike, shape: tuple[int, ...]) -> BitmaskArray:
    """A tensor of the sparse-bitmask layout.

    Parameters
    ----------
    compressed : array_like, ``[nnz]``
        Kept elements, row-major.
    bitmask : array_like of uint8, ``[…, ceil(last/8)]``
        The mask; every run along the last axis starts on a byte.
    shape : tuple of int
        Shape of the tensor.

    Raises
    ------
    FormatError
        If the parts contradict each other or a padding bit is set.

    Examples
    --------
    >>> import numpy as np
    >>> bits = np.uint8([[0x82, 0x02], [0x00, 0x02]])
    >>> from_sparse_bitmask(np.float32([7, 56.3, 1, 2]), bits, (2, 10)).to_dense()[0]
    array([ 0. ,  7. ,  0. ,  0. ,  0. ,  0. ,  0. , 56.3,  0. ,  1. ], dtype=float32)
    """
    size, bits = checked_shape(shape), np.asarray(bitmask)
    if not size:
        raise FormatError("shape: a scalar has no last axis that a mask could lie along")
    wanted = (*size[:-1], -(-size[-1] // 8))
    if bits.dtype != np.uint8 or bits.shape != wanted:
        raise FormatError(f"bitmask: expected uint8 of shape {wanted}, got {bits.dtype} of shape {bits.shape}")
    return BitmaskArray.from_parts(compressed, matrix_bits(bits, size), size)


def to_sparse_bitmask(s: BitmaskArray) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """The parts of a tensor in the sparse-bitmask layout, with the bytes that compressed-tensors gives them.

    Parameters
    ----------
    s : BitmaskArray
        Of at least one dimension.

    Returns
    -------
    compressed : ndarray, ``[nnz]``
        Kept elements, row-major.
    bitmask : ndarray of uint8, ``[…, ceil(last/8)]``
        The mask; every run along the last axis starts on a byte.
    row_offsets : ndarray of int64, ``[…]``
        Exclusive sums of the counts of those runs, over the first axis, as compressed-tensors has them: of a matrix
        where its rows start in `compressed`, of more dimensions no offsets.

    Raises
    ------
    FastSparseError
        If the tensor is a scalar.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> to_sparse_bitmask(fs.pack(np.int8([[0, 3], [4, 5]])))
    (array([3, 4, 5], dtype=int8), array([[2], [3]], dtype=uint8), array([0, 1]))
    """
    if not s.shape:
        raise FastSparseError("s: a scalar has no last axis that a mask could lie along")
    if len(s.shape) == 2:
        return s.values, s.bitmask, s.row_offsets[:-1]
    counts = s.mask.to_bool().sum(axis=-1, dtype=np.int64)
    offsets = np.asarray(np.cumsum(counts, axis=0) - counts if counts.ndim else np.int64(0))
    if s.shape[-1] % 8 == 0:
        bits = s.bitmask.reshape(*s.shape[:-1], s.shape[-1] // 8)
    else:
        bits = np.packbits(s.mask.to_bool(), axis=-1, bitorder="little")
    return s.values, bits, offsets


def from_sparse24(compressed: ArrayLike, bitmask: ArrayLike, shape: tuple[int, ...]) -> BitmaskArray:
    """A matrix of the sparse-24-bitmask layout.

    Parameters
    ----------
    compressed : array_like, ``[rows, cols/2]``
        Two elements of every four, row-major. Groups with fewer than two non-zeros have zeros among them, which stay
        kept elements; `fs.pack` of the dense tensor leaves them out.
    bitmask : array_like of uint8, ``[rows, ceil(cols/8)]``
        Two bits in every four, in whichever places.
    shape : tuple of int
        Rows and columns; the array ``[2, 1]`` of files is taken as well.

    Returns
    -------
    BitmaskArray
        With the pattern ``2:4``.

    Raises
    ------
    FormatError
        If the parts contradict each other, a group has not exactly two bits, or the shape is no matrix with groups of
        4.

    Examples
    --------
    >>> import numpy as np
    >>> compressed = np.float32([[7, 3, 5, 56.3], [1, 2, 0, -0.0]])
    >>> from_sparse24(compressed, np.uint8([[0xCA], [0xC3]]), (2, 8)).to_dense()
    array([[ 0. ,  7. ,  0. ,  3. ,  0. ,  0. ,  5. , 56.3],
           [ 1. ,  2. ,  0. ,  0. ,  0. ,  0. ,  0. , -0. ]], dtype=float32)
    """
    size, values = checked_shape(np.ravel(shape)), np.asarray(compressed)
    if len(size) != 2 or size[1] % 4:
        raise FormatError(f"shape: expected a matrix with a multiple of 4 columns, got {size}")
    if values.shape != (size[0], size[1] // 2):
        raise FormatError(f"compressed: expected shape {(size[0], size[1] // 2)}, got {values.shape}")
    return BitmaskArray.from_parts(values.reshape(-1), bitmask, size, pattern=TWO_FOUR)


def to_sparse24(s: BitmaskArray) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The parts of a matrix in the sparse-24-bitmask layout; the inverse of `from_sparse24`.

    A group with fewer than two kept elements is filled up with zeros, the lowest places first. One with more gives up
    those that are zero.

    Parameters
    ----------
    s : BitmaskArray
        A matrix with a multiple of 4 columns and at most two non-zeros in every four.

    Returns
    -------
    compressed : ndarray, ``[rows, cols/2]``
        Two elements of every four.
    bitmask : ndarray of uint8, ``[rows, ceil(cols/8)]``
        Two bits in every four.

    Raises
    ------
    FastSparseError
        If it is something else; the message has the first group with three non-zeros.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> to_sparse24(fs.pack(np.int8([[0, 7, 0, 3, 0, 0, 5, 0]])))
    (array([[7, 3, 0, 5]], dtype=int8), array([[90]], dtype=uint8))
    """
    if len(s.shape) != 2 or s.shape[1] % 4:
        raise FastSparseError(f"s: expected a matrix with a multiple of 4 columns, got shape {s.shape}")
    rows, cols = s.shape
    if s.pattern == TWO_FOUR and 2 * s.nnz == rows * cols:
        return s.values.reshape(rows, cols // 2), s.bitmask
    dense = s.to_dense()
    kept = s.bitmask
    if _FILLED[kept].min(initial=1) == 0:
        kept = ops.pack(dense).bitmask
    filled = _FILLED[kept]
    if filled.min(initial=1) == 0:
        row, byte = divmod(int(np.argmin(filled)), filled.shape[1])
        column = 8 * byte + (4 if _FILLED[kept[row, byte] & 15] else 0)
        raise FastSparseError(
            f"s: three or four non-zeros in columns {column} to {column + 3} of row {row}; 2:4 has two at most"
        )
    if cols % 8:
        filled[:, -1] &= 15
    packed = ops.pack(dense, Bitmask.from_bits(filled, s.shape))
    return packed.values.reshape(rows, cols // 2), packed.bitmask


def _fill(half: int) -> int:
    """Four bits with the lowest that are missing for two; 0 where there are more than two."""
    while half.bit_count() < 2:
        half |= half + 1
    return half if half.bit_count() == 2 else 0


_FILLED = np.array(
    [
        low | high << 4 if low and high else 0
        for low, high in ((_fill(byte & 15), _fill(byte >> 4)) for byte in range(256))
    ],
    np.uint8,
)
"""A byte of a mask with two bits in each half; 0 where a half has more."""
