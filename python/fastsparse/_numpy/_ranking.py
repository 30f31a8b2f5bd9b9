"""What is ranked: keys whose order is that of magnitudes or scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import (
    LARGEST_KEY,
    Shape,
    as_array,
    as_words,
    check_shape,
    dtype_name,
    matrix_view,
    supported_array,
)


@dataclass(slots=True)
class Ranking:
    """What is ranked: keys of the tensor's shape, the argument's name for messages, and the numbers they stand for."""

    arg: str
    keys: NDArray[Any]
    largest: int
    numbers: Callable[[], NDArray[np.float64]]
    weights: NDArray[Any] | None = None
    """The weights, where what is ranked is their product with a scale."""

    @property
    def plain(self) -> bool:
        """Whether the magnitudes of the weights are ranked."""
        return self.arg == "w" and self.weights is None

    def reject_nan(self) -> None:
        """FastSparseError naming the first NaN, in row-major order."""
        if self.keys.size and self.keys.max() > self.largest:
            self.raise_nan(int(np.argmax(self.keys.reshape(-1) > self.largest)))

    def raise_nan(self, flat: int) -> None:
        index = tuple(int(i) for i in np.unravel_index(flat, self.keys.shape))
        if self.weights is not None and not np.isnan(self.weights[index]):
            raise FastSparseError(f"w · column_scale is NaN at index {index}: inf times 0")
        raise FastSparseError(f"{self.arg} contains NaN at index {index}")


def magnitude_keys(array: NDArray[Any]) -> NDArray[Any]:
    words = as_words(array)
    if array.dtype == np.uint8:
        return words
    if array.dtype == np.int8:
        keys: NDArray[Any] = np.abs(words.view(np.int8)).view(np.uint8)  # |−128| wraps to −128, whose bits are 128
    else:
        keys = words & words.dtype.type(np.iinfo(words.dtype).max >> 1)
    return keys


def ordered_keys(array: NDArray[Any]) -> NDArray[Any]:
    """Keys in the order of the signed numbers; −0 equals +0."""
    words = as_words(array)
    if array.dtype == np.uint8:
        return words
    sign = words.dtype.type(1 << (8 * array.itemsize - 1))
    keys: NDArray[Any] = words ^ sign
    if array.dtype == np.int8:
        return keys
    magnitude = magnitude_keys(array)
    keys = np.where(words & sign, sign - magnitude, sign + magnitude)
    keys[magnitude > LARGEST_KEY[array.dtype]] = np.iinfo(keys.dtype).max
    return keys


def _largest_ordered(dtype: np.dtype[Any]) -> int:
    return 0xFF if dtype.kind in "iu" else LARGEST_KEY[dtype] | 1 << (8 * dtype.itemsize - 1)


def _float64(array: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN warns where it is converted; it is reported later
        return array.astype(np.float64)


def ranking_of(w: NDArray[Any], scores: ArrayLike | None, column_scale: ArrayLike | None) -> Ranking:
    if scores is not None:
        if column_scale is not None:
            raise FastSparseError("column_scale: cannot be combined with scores")
        s = supported_array(scores, "scores")
        check_shape("scores", s.shape, w.shape)
        return Ranking("scores", ordered_keys(s), _largest_ordered(s.dtype), lambda: _float64(s))
    if column_scale is None:
        return Ranking("w", magnitude_keys(w), LARGEST_KEY[w.dtype], lambda: np.abs(_float64(w)))
    working = np.dtype(np.float64 if w.dtype == np.float64 else np.float32)
    scale = _column_scale(column_scale, w.shape, working)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        scaled = (np.abs(w.astype(working)).reshape(matrix_view(w.shape)) * scale).reshape(w.shape)
    return Ranking("w", magnitude_keys(scaled), LARGEST_KEY[working], lambda: np.abs(_float64(scaled)), w)


def _column_scale(column_scale: ArrayLike, shape: Shape, working: np.dtype[Any]) -> NDArray[Any]:
    """A factor for each column of the matrix view."""
    given = as_array(column_scale, "column_scale")
    cols = matrix_view(shape)[1]
    lengths = (cols, *(n for n in shape[1:2] if n != cols))
    if given.ndim != 1 or given.size not in lengths:
        allowed = " or ".join(f"({n},)" for n in lengths)
        raise FastSparseError(f"column_scale: expected shape {allowed}, got {given.shape}")
    if given.dtype.kind not in "iuf" and given.dtype not in LARGEST_KEY:
        raise FastSparseError(f"column_scale: expected real numbers, got dtype {dtype_name(given.dtype)}")
    with np.errstate(over="ignore"):
        factors = given.astype(working)
    bad = np.flatnonzero(~((factors >= 0) & np.isfinite(factors)))
    if bad.size:
        value, hint = given[bad[0]], ""
        if 0 <= value < math.inf:
            hint = f": more than {working.name} holds"
        elif value == math.inf and given.dtype == np.float16:
            hint = "; float16 holds at most 65504: compute norms in float32"
        raise FastSparseError(f"column_scale: expected finite numbers ≥ 0, got {value} at index {bad[0]}{hint}")
    return factors if given.size == cols else np.repeat(factors, cols // given.size if given.size else 0)
