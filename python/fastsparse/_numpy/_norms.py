"""Blocks as coremltools ranks them."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import Mask, Shape, dtype_name, supported_array
from fastsparse._numpy._masks import check_size, mask_parts


def block_norms(w: ArrayLike, length: int, axis: int) -> NDArray[np.float32]:
    """The l2 norms of blocks along an axis, in the order of NumPy's sums, as float32."""
    weights = supported_array(w, "w")
    _check_runs(weights.shape, length, axis)
    if weights.dtype not in (np.float32, np.float16):
        raise FastSparseError(f"w: expected float32 or float16, got {dtype_name(weights.dtype)}")
    inner, blocks = math.prod(weights.shape[axis + 1 :]), -(-weights.shape[axis] // length)
    lines = weights.reshape(math.prod(weights.shape[:axis]), weights.shape[axis], inner)
    squares = np.zeros((len(lines), blocks * length, inner), weights.dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.multiply(lines, lines, out=squares[:, : lines.shape[1]])
        parts = [squares[:, i::length] for i in range(length)]
        if inner == 1:  # side by side: float16 is added up in float32
            total = _pairwise([part.astype(np.float32) for part in parts]).astype(weights.dtype)
        else:
            total = sum(parts[1:], parts[0].copy())
        norms: NDArray[np.float32] = np.sqrt(total).astype(np.float32)
    return norms.reshape(*weights.shape[:axis], blocks, *weights.shape[axis + 1 :])


def _check_runs(shape: Shape, length: int, axis: int) -> None:
    if length < 1:
        raise FastSparseError(f"length: expected at least 1, got {length}")
    if axis >= len(shape):
        raise FastSparseError(f"axis: {axis} is out of range for a tensor with {len(shape)} dimensions")


def _pairwise(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    if len(parts) < 8:
        return sum(parts[1:], parts[0])
    if len(parts) > 128:
        half = len(parts) // 16 * 8
        return _pairwise(parts[:half]) + _pairwise(parts[half:])
    full = len(parts) // 8 * 8
    a, b, c, d, e, f, g, h = (sum(parts[i + 8 : full : 8], parts[i]) for i in range(8))
    return sum(parts[full:], ((a + b) + (c + d)) + ((e + f) + (g + h)))


def blocks_above(norms: NDArray[np.float32], shape: Shape, value: float, length: int, axis: int) -> Mask:
    """The mask of the blocks along an axis whose norm is above a number."""
    check_size(shape)
    _check_runs(shape, length, axis)
    expected = (*shape[:axis], -(-shape[axis] // length), *shape[axis + 1 :])
    if norms.dtype != np.float32:
        raise FastSparseError(f"norms: expected float32, got {dtype_name(norms.dtype)}")
    if norms.shape != expected:
        raise FastSparseError(f"norms: expected shape {expected}, got {norms.shape}")
    keep = np.repeat(norms > np.float64(value), length, axis=axis).take(range(shape[axis]), axis)
    return mask_parts(shape, keep)
