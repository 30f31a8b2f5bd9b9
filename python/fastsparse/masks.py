"""Bit masks: which elements of a tensor are kept."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError, FormatError

__all__ = ["Bitmask"]


class Bitmask:
    """Which elements of a tensor are kept, one bit each. Immutable.

    `fs.select`, `Bitmask.from_bool` and `Bitmask.from_bits` make one. Masks of the same shape combine with ``&``,
    ``|``, ``^`` and ``~``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> mask = fs.select(np.float32([[1, -4, 2, 3, 0.5]]), "2:4")
    >>> mask
    <Bitmask 1×5: 3 kept, 40.0 % sparse>
    >>> mask.bits
    array([[26]], dtype=uint8)
    >>> mask.to_bool()
    array([[False,  True, False,  True,  True]])
    """

    __slots__ = ("_bits", "_count", "_shape")

    _shape: tuple[int, ...]
    _bits: NDArray[np.uint8]
    _count: int

    __array_ufunc__ = None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Masks are made by functions that check or know what they hold."""
        raise TypeError("use fs.select, Bitmask.from_bool or Bitmask.from_bits")

    @staticmethod
    def from_bool(mask: ArrayLike) -> Bitmask:
        """The mask of a bool array: True is kept.

        Parameters
        ----------
        mask : array_like of bool
            Any shape.

        Raises
        ------
        FastSparseError
            If the dtype is not bool.

        Examples
        --------
        >>> Bitmask.from_bool([True, False, True])
        <Bitmask 3: 2 kept, 33.3 % sparse>
        """
        return new_mask(*_backend.active.from_bool(mask))

    @staticmethod
    def from_bits(bits: ArrayLike, shape: tuple[int, ...]) -> Bitmask:
        """The mask that these bits are, over the same memory.

        Parameters
        ----------
        bits : array_like of uint8, ``[rows, ceil(cols/8)]``
            As in `Bitmask.bits`, of the matrix view of `shape`.
        shape : tuple of int
            Shape of the tensor.

        Raises
        ------
        FormatError
            If dtype or shape are others, or a padding bit is set.

        Examples
        --------
        >>> import numpy as np
        >>> Bitmask.from_bits(np.uint8([[0b101]]), (3,)).to_bool()
        array([ True, False,  True])
        """
        return new_mask(*_backend.active.check_bits(bits, checked_shape(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._shape

    @property
    def bits(self) -> NDArray[np.uint8]:
        """The bits, uint8 ``[rows, ceil(cols/8)]``, read-only.

        Row r of the matrix view starts on a byte; its column c is bit ``c & 7`` of byte ``c >> 3``. Padding bits are 0.
        """
        return self._bits

    @property
    def count(self) -> int:
        """Number of elements kept."""
        return self._count

    @property
    def sparsity(self) -> float:
        """Share of elements that are not kept; 0 for a tensor without elements."""
        size = math.prod(self._shape)
        return (size - self._count) / size if size else 0.0

    def to_bool(self) -> NDArray[np.bool_]:
        """The mask as a bool array of the tensor's shape."""
        return _backend.active.to_bool(self._shape, self._bits)

    def __and__(self, other: Bitmask) -> Bitmask:
        """Kept by both."""
        return _combine(np.bitwise_and, self, other)

    def __or__(self, other: Bitmask) -> Bitmask:
        """Kept by one of them or both."""
        return _combine(np.bitwise_or, self, other)

    def __xor__(self, other: Bitmask) -> Bitmask:
        """Kept by exactly one of them."""
        return _combine(np.bitwise_xor, self, other)

    def __invert__(self) -> Bitmask:
        """Kept becomes pruned and the other way round."""
        bits = ~self._bits
        padding = -matrix_view(self._shape)[1] % 8
        if bits.size and padding:
            bits[:, -1] &= 0xFF >> padding
        return Bitmask.from_bits(bits, self._shape)

    def __eq__(self, other: object) -> bool:
        """Whether shape and bits are the same."""
        if not isinstance(other, Bitmask):
            return NotImplemented
        return self._shape == other._shape and np.array_equal(self._bits, other._bits)

    def __copy__(self) -> Bitmask:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Bitmask:
        return Bitmask.from_bits(self._bits.copy(), self._shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bitmask.from_bits, (self._bits, self._shape)

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuses, so that a mask does not become an array by accident."""
        raise TypeError("a Bitmask does not become an array by itself; use to_bool() or bits")

    def __repr__(self) -> str:
        size = math.prod(self._shape)
        return f"<Bitmask {dimensions(self._shape)}: {self._count} kept, {percent_sparse(size, self._count)} sparse>"


def _combine(operation: np.ufunc, a: Bitmask, b: object) -> Bitmask:
    if not isinstance(b, Bitmask):
        return NotImplemented  # type: ignore[no-any-return]  # as the operators that end here are allowed to
    if a._shape != b._shape:
        raise FastSparseError(f"masks of shapes {a._shape} and {b._shape} do not combine")
    return Bitmask.from_bits(operation(a._bits, b._bits), a._shape)


def new_mask(shape: tuple[int, ...], bits: NDArray[np.uint8], count: int) -> Bitmask:
    """A mask from parts that a backend made: not checked again."""
    mask = object.__new__(Bitmask)
    mask._shape = shape
    mask._bits = bits
    mask._count = count
    return mask


def flat_bits(mask: Bitmask) -> NDArray[np.uint8]:
    """The bits as one stream, uint8 ``[ceil(N/8)]``, in which rows do not start on a byte; a view where they do."""
    rows, cols = matrix_view(mask._shape)
    if rows > 1 and cols % 8:
        return Bitmask.from_bool(mask.to_bool().reshape(-1))._bits.reshape(-1)
    return mask._bits.reshape(-1)


def from_flat_bits(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> Bitmask:
    """The mask of a tensor whose bits are one stream; FormatError as for `Bitmask.from_bits`."""
    rows, cols = matrix_view(shape)
    flat = Bitmask.from_bits(bits.reshape(1, -1), (rows * cols,))
    if rows > 1 and cols % 8:
        return Bitmask.from_bool(flat.to_bool().reshape(shape))
    return new_mask(shape, flat._bits.reshape(rows, -(-cols // 8)), flat._count)


def as_mask(mask: Bitmask | ArrayLike) -> Bitmask:
    """A mask, or a bool array as one."""
    return mask if isinstance(mask, Bitmask) else Bitmask.from_bool(mask)


def checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape from outside as a tuple of int; FormatError where it is none."""
    try:
        checked = tuple(map(operator.index, shape))
    except TypeError:
        checked = (-1,)
    if any(not 0 <= size <= sys.maxsize for size in checked):
        raise FormatError(f"shape: expected integers ≥ 0, got {shape!r}")
    return checked


def matrix_view(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: the first dimension, and the product of the others."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def dimensions(shape: tuple[int, ...]) -> str:
    """Shape, as a repr prints it."""
    return "×".join(map(str, shape)) or "scalar"


def percent_sparse(size: int, kept: int) -> str:
    """Share of zeros in percent, rounded down: 100.0 % means that nothing is left."""
    tenths = 1000 * (size - kept) // max(size, 1)
    return f"{tenths // 10}.{tenths % 10} %"
