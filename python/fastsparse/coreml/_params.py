"""Packed tensors as the inputs of `constexpr_sparse_to_dense`, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import Bitmask, checked_shape, flat_bits, from_flat_bits
from fastsparse.packed import BitmaskArray

__all__ = ["Flat", "from_flat", "from_sparse_params", "to_flat", "to_sparse_params"]

_DTYPES = ("float32", "float16", "int8", "uint8")


class Flat(NamedTuple):
    """The inputs of the iOS 16 operation `constexpr_sparse_to_dense`."""

    nonzero_data: NDArray[Any]
    mask: NDArray[np.uint8]
    shape: tuple[int, ...]


def to_flat(s: BitmaskArray) -> Flat:
    """The inputs of `constexpr_sparse_to_dense`: the kept values, the mask as one stream of bits, and the shape.

    Where the columns are a multiple of 8, nothing is copied.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> to_flat(fs.pack(np.float16([[0, 7, 0], [0, 0, 56.3]])))
    Flat(nonzero_data=array([ 7. , 56.3], dtype=float16), mask=array([34], dtype=uint8), shape=(2, 3))
    """
    return Flat(s.values, flat_bits(s.mask), s.shape)


def from_flat(nonzero_data: ArrayLike, mask: ArrayLike, shape: tuple[int, ...]) -> BitmaskArray:
    """The tensor that `constexpr_sparse_to_dense` makes of these inputs.

    Parameters
    ----------
    nonzero_data : array_like, ``[nnz]``
        Kept elements, row-major.
    mask : array_like of uint8, ``[ceil(N/8)]``
        One stream of bits, LSB-first.
    shape : tuple of int
        Shape of the tensor.

    Raises
    ------
    FormatError
        If the parts contradict each other or a padding bit is set.

    Examples
    --------
    >>> import numpy as np
    >>> from_flat(np.float16([7, 56.3]), np.uint8([34]), (2, 3)).to_dense()
    array([[ 0. ,  7. ,  0. ],
           [ 0. ,  0. , 56.3]], dtype=float16)
    """
    bits = np.asarray(mask)
    if bits.ndim != 1:
        raise FormatError(f"mask: expected one dimension, got shape {bits.shape}")
    size = checked_shape(shape)
    return BitmaskArray.from_parts(nonzero_data, from_flat_bits(bits, size).bits, size)


def to_sparse_params(s: BitmaskArray, *, ios: int = 16) -> Any:
    """The tensor as the params of coremltools.

    Parameters
    ----------
    s : BitmaskArray
        Of a dtype that Core ML has: float32, float16, int8 or uint8.
    ios : {16, 18}
        Whose operation. For iOS 16 `SparseParamsIos16`, as coremltools' own pruning makes them: `nonzero_data`, `mask`
        in one stream of bits, `shape`. For iOS 18 `SparseParams`: `nonzero_data`, and `mask` of uint1 in the shape of
        the tensor.

    Raises
    ------
    FastSparseError
        If `ios` is something else, or Core ML lacks the dtype.
    """
    from coremltools.converters.mil.mil import types  # optional, and seconds to import
    from coremltools.optimize._utils import SparseParams, SparseParamsIos16

    if ios not in (16, 18):
        raise FastSparseError(f"ios: expected 16 or 18, got {ios!r}")
    if s.dtype.name not in _DTYPES:
        raise FastSparseError(f"s: Core ML has sparse weights of {', '.join(_DTYPES)}, got {s.dtype}")
    if ios == 16:
        return SparseParamsIos16(*to_flat(s))
    return SparseParams(s.values, s.mask.to_bool().view(types.np_uint1_dtype))


def from_sparse_params(params: Any) -> BitmaskArray:
    """The tensor of coremltools' `SparseParams` or `SparseParamsIos16`.

    Parameters
    ----------
    params : object
        With the attributes `nonzero_data` and `mask`, and `shape` where the mask is one stream of bits.

    Raises
    ------
    FormatError
        If they contradict each other.
    """
    if hasattr(params, "shape"):
        return from_flat(params.nonzero_data, params.mask, params.shape)
    mask = np.asarray(params.mask)
    keep = mask.view(np.bool_) if mask.dtype == np.uint8 and mask.max(initial=0) <= 1 else mask != 0
    return BitmaskArray.from_parts(params.nonzero_data, Bitmask.from_bool(keep).bits, mask.shape)
