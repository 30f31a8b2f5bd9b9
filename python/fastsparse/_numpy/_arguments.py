"""Arguments of the backend's functions: dtypes, shapes, outputs."""

import math
import operator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, torch_hint

Shape = tuple[int, ...]
Spec = tuple[Any, ...]
Mask = tuple[Shape, NDArray[np.uint8], int]
Parts = tuple[Shape, NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]
Keep = NDArray[np.bool_]

LARGEST_KEY = {
    np.dtype(np.float64): 0x7FF0_0000_0000_0000,
    np.dtype(np.float32): 0x7F80_0000,
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
    np.dtype(ml_dtypes.float8_e4m3fn): 0x7E,
    np.dtype(ml_dtypes.float8_e5m2): 0x7C,
    np.dtype(np.int8): 0xFF,
    np.dtype(np.uint8): 0xFF,
}
"""The key of the largest number of each dtype (infinity where there is one); larger keys are NaN."""

WORD: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def as_array(x: Any, arg: str) -> NDArray[Any]:
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except ValueError as error:
        raise FastSparseError(f"{arg}: cannot be read as an array: {error}") from error
    except (RuntimeError, TypeError) as error:
        if not torch_hint(x):
            raise
        raise FastSparseError(f"{arg}: cannot be read as an array: {error}{torch_hint(x)}") from error


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The dtype for messages; `name` hides a foreign byte order."""
    return dtype.name if dtype.isnative else dtype.str


def supported_array(x: ArrayLike, arg: str, error: type[FastSparseError] = FastSparseError) -> NDArray[Any]:
    array = as_array(x, arg)
    if array.dtype not in LARGEST_KEY:
        native = array.dtype.newbyteorder("=")
        known = ", ".join(map(dtype_name, LARGEST_KEY))
        if native in LARGEST_KEY:
            known += f' in the byte order of this machine; convert it with .astype("{native.name}")'
        raise error(f"{arg}: dtype {dtype_name(array.dtype)} is not supported; expected one of {known}")
    return array


def as_words(array: NDArray[Any]) -> NDArray[Any]:
    """The bits of an array, C-contiguous, as unsigned integers."""
    return np.asarray(array, order="C").view(WORD[array.itemsize])


def matrix_view(shape: Shape) -> tuple[int, int]:
    """Rows and columns of the matrix view."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def bits_shape(shape: Shape) -> tuple[int, int]:
    rows, cols = matrix_view(shape)
    return rows, -(-cols // 8)


def check_shape(arg: str, got: Shape, want: Shape) -> None:
    if got != want:
        raise FastSparseError(f"{arg}: shape {got} does not match w's shape {want}")


def check_threads(threads: Any) -> None:
    if threads is None:
        return
    try:
        number = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        number = 0
    if number < 1:
        raise FastSparseError(f"threads: expected an integer ≥ 1 or None, got {threads!r}")


def output_array(out: Any, shape: Shape, dtype: np.dtype[Any], **inputs: Any) -> NDArray[Any]:
    """`out`, checked against the inputs that it must not overlap, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    wanted = f"out: expected a writeable C-contiguous array of shape {shape} and dtype {dtype_name(dtype)}, got"
    if not isinstance(out, np.ndarray):
        raise FastSparseError(f"{wanted} {type(out).__name__}{torch_hint(out)}")
    got = f"shape {out.shape} and dtype {dtype_name(out.dtype)}"
    if not out.flags.carray:
        got += "" if out.flags.c_contiguous and out.flags.aligned else ", not C-contiguous and aligned"
        got += "" if out.flags.writeable else ", read-only"
        raise FastSparseError(f"{wanted} {got}")
    if out.shape != shape or out.dtype != dtype:
        raise FastSparseError(f"{wanted} {got}")
    for arg, given in ((arg, np.asarray(given)) for arg, given in inputs.items() if given is not None):
        if np.may_share_memory(given, out):
            same = given.ctypes.data == out.ctypes.data and given.flags.c_contiguous
            if not (arg == "w" and same and given.shape == shape and given.dtype == dtype):
                but = "; only the input itself is allowed" if "w" in inputs else ""
                raise FastSparseError(f"out overlaps {arg}{but}")
    return out


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view
