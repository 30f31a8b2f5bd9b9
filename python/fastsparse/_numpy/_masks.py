"""Masks, and parts that come from outside."""

import math
import sys

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse._numpy._arguments import (
    POPCOUNT,
    Keep,
    Mask,
    Shape,
    as_array,
    bits_shape,
    dtype_name,
    frozen,
    matrix_view,
)


def mask_parts(shape: Shape, keep: Keep) -> Mask:
    # packbits keeps the memory order of its input, which indexing and transposing may have changed.
    bits = np.packbits(np.asarray(keep, order="C").reshape(matrix_view(shape)), axis=1, bitorder="little")
    return shape, frozen(bits), int(np.count_nonzero(keep))


def to_bool(shape: Shape, bits: NDArray[np.uint8]) -> Keep:
    """The mask as a bool array of `shape`."""
    keep = np.unpackbits(bits, axis=1, count=matrix_view(shape)[1], bitorder="little")
    return keep.view(np.bool_).reshape(shape)


def from_bool(mask: ArrayLike) -> Mask:
    """The mask of a bool array."""
    keep = as_array(mask, "mask")
    if keep.dtype != np.bool_:
        raise FastSparseError(f"mask: expected dtype bool, got {dtype_name(keep.dtype)}")
    return mask_parts(keep.shape, keep)


def offsets_of_rows(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    offsets = np.zeros(len(bits) + 1, np.int64)
    np.cumsum(POPCOUNT[bits].sum(axis=1, dtype=np.int64), out=offsets[1:])
    return offsets


def check_size(shape: Shape) -> None:
    """FormatError for a shape from outside that no tensor has."""
    # A size of zero hides an overflow of the others from the product, not from the columns.
    if len(shape) > 64 or math.prod(shape) > sys.maxsize // 8 or math.prod(shape[1:]) > 2 * sys.maxsize + 1:
        raise FormatError(f"shape: {shape} is too large")


def bits_from_outside(arg: str, bits: ArrayLike, shape: Shape) -> NDArray[np.uint8]:
    array = as_array(bits, arg)
    wanted = bits_shape(shape)
    if array.dtype != np.uint8 or array.shape != wanted:
        raise FormatError(
            f"{arg}: expected uint8 of shape {wanted}, got {dtype_name(array.dtype)} of shape {array.shape}"
        )
    padding = 8 * wanted[1] - matrix_view(shape)[1]
    if padding and array.size:
        bad = np.flatnonzero(array[:, -1] >> (8 - padding))
        if bad.size:
            raise FormatError(f"{arg}: padding bits of mask row {bad[0]} are set")
    return np.asarray(array, order="C")


def check_bits(bits: ArrayLike, shape: Shape) -> Mask:
    """A mask from outside; FormatError on a wrong shape or padding bits that are set."""
    check_size(shape)
    array = bits_from_outside("bits", bits, shape)
    return shape, frozen(array), int(offsets_of_rows(array)[-1])
