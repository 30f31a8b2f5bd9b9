"""Products with packed weights."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import Keep, Shape, dtype_name, matrix_view, output_array, supported_array
from fastsparse._numpy._masks import to_bool
from fastsparse._numpy._pack import unpack

_COMPUTED = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
"""What `linear` takes."""


def check_computed(array: NDArray[Any], arg: str) -> None:
    if array.dtype not in _COMPUTED:
        raise FastSparseError(f"{arg}: linear takes float32, float16 or bfloat16, got {dtype_name(array.dtype)}")


def _check_activations(x: ArrayLike, weights: np.dtype[Any], cols: int) -> NDArray[Any]:
    """The activations: float32 or what the weights are; with int8 weights any float."""
    array = supported_array(x, "x")
    integers = weights == np.int8
    if array.dtype not in (np.float32, weights) and not (integers and array.dtype in _COMPUTED):
        allowed = "float32" if weights == np.float32 else f"float32 or {weights}"
        allowed = "float32, float16, bfloat16 or int8" if integers else allowed
        raise FastSparseError(f"x: expected dtype {allowed} with weights of {weights}, got {dtype_name(array.dtype)}")
    if array.shape[-1:] != (cols,):
        raise FastSparseError(f"x: expected {cols} columns, got shape {array.shape}")
    return array


def _per_row(given: ArrayLike, arg: str, rows: int) -> NDArray[Any]:
    """The bias, or the scales, of which there may be one for all rows."""
    array = supported_array(given, arg)
    scalar = arg == "weight_scale" and array.shape == ()
    if not scalar or array.dtype != np.float64:
        check_computed(array, arg)
    if not scalar and array.shape != (rows,):
        raise FastSparseError(f"{arg}: expected shape ({rows},), got {array.shape}")
    return array


def _scales(weights: np.dtype[Any], weight_scale: ArrayLike | None, rows: int) -> NDArray[Any] | None:
    """The scales of int8 weights; others have none."""
    if weights == np.int8 and weight_scale is not None:
        return _per_row(weight_scale, "weight_scale", rows)
    if weights not in _COMPUTED:
        allowed = "float32, float16, bfloat16, or int8 with weight_scale"
        raise FastSparseError(f"s: linear takes {allowed}, got {dtype_name(weights)}")
    if weight_scale is not None:
        raise FastSparseError(f"weight_scale: only int8 weights take one, these are {weights}")
    return None


def linear(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    x: ArrayLike,
    bias: ArrayLike | None,
    weight_scale: ArrayLike | None,
    out: NDArray[Any] | None,
    groups: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """Unpacks and multiplies."""
    parts = {"values": values, "bitmask": bitmask, "row_offsets": row_offsets}
    call = Call(values.dtype, shape, x, bias, weight_scale, out, **parts)
    return call.compute(unpack(values, bitmask, row_offsets, shape, None), lambda: to_bool(shape, bitmask))


class Call:
    """The arguments of a call of `linear`, checked against the weights and each other."""

    def __init__(
        self,
        weights: np.dtype[Any],
        shape: Shape,
        x: ArrayLike,
        bias: ArrayLike | None,
        weight_scale: ArrayLike | None,
        out: NDArray[Any] | None,
        **parts: Any,
    ) -> None:
        rows, cols = self.shape = matrix_view(shape)
        self.scales = _scales(weights, weight_scale, rows)
        self.x = _check_activations(x, weights, cols)
        self.bias = None if bias is None else _per_row(bias, "bias", rows)
        dtype = np.dtype(np.float32) if self.x.dtype == np.int8 else self.x.dtype
        inputs = {**parts, "x": self.x, "bias": self.bias, "weight_scale": self.scales}
        self.out = output_array(out, (*self.x.shape[:-1], rows), dtype, **inputs)

    def compute(self, weights: NDArray[Any], keep: Callable[[], Keep]) -> NDArray[Any]:
        """Multiplies with dense weights, of which those of `keep` count."""
        dense = weights.reshape(self.shape)
        flat = self.x.reshape(math.prod(self.x.shape[:-1]), self.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            if self.scales is None:
                sums = _float_sums(dense, flat, lambda: keep().reshape(self.shape))
            else:
                sums = _integer_sums(dense, flat, self.scales)
            added = sums if self.bias is None else sums + self.bias.astype(np.float32)
            self.out[...] = added.reshape(self.out.shape)
        return self.out


def _float_sums(dense: NDArray[Any], x: NDArray[Any], keep: Callable[[], Keep]) -> NDArray[np.float32]:
    weights, wide = dense.astype(np.float32), x.astype(np.float32)
    if np.isfinite(wide).all():
        return wide @ weights.T
    # A dropped weight contributes nothing, not 0 · inf.
    kept = keep()
    products = (np.where(kept, weights * row, np.float32(0)) for row in wide)
    return np.stack([product.sum(axis=1) for product in products])


def _integer_sums(dense: NDArray[Any], x: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    steps = np.ones((len(x), 1), np.float32)
    if x.dtype != np.int8:
        wide = x.astype(np.float32)
        largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)
        finite = np.isfinite(largest)
        steps = np.where(finite, largest / np.float32(127), np.float32(np.nan))
        unit = np.where(finite & (largest > 0), largest, np.float32(1))
        x = np.rint(np.where(finite, wide, np.float32(0)) / unit * np.float32(127))
    # Sums of integers below 2^53 are exact in float64.
    sums = x.astype(np.float64) @ dense.astype(np.float64).T
    return sums.astype(np.float32) * (steps * scales.astype(np.float32))
