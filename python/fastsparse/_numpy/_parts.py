"""Parts from outside, checked."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse._numpy._arguments import Keep, Parts, Shape, Spec, frozen, supported_array
from fastsparse._numpy._masks import bits_from_outside, check_size, offsets_of_rows, to_bool
from fastsparse._numpy._select import along_axis, as_blocks, runs_of, spread_blocks, zero_count, zeros_in
from fastsparse.patterns import zeros_in_every


def check_parts(values: ArrayLike, bitmask: ArrayLike, shape: Shape) -> Parts:
    """Checks parts from outside and computes the offsets; contiguous parts are not copied."""
    check_size(shape)
    kept = supported_array(values, "values", FormatError)
    if kept.ndim != 1:
        raise FormatError(f"values: expected one dimension, got shape {kept.shape}")
    bits = bits_from_outside("bitmask", bitmask, shape)
    offsets = offsets_of_rows(bits)
    if offsets[-1] != kept.size:
        raise FormatError(f"bitmask: the mask keeps {offsets[-1]} elements, there are {kept.size} values")
    return shape, frozen(np.asarray(kept, order="C")), frozen(bits), frozen(offsets)


def check_pattern(shape: Shape, bits: NDArray[np.uint8], spec: Spec) -> None:
    """FormatError unless the mask is one that the n:m, top-k or block pattern could have given."""
    kind, *options = spec
    keep = to_bool(shape, bits)
    if kind == "block":
        _check_blocks(keep, *options)
        return
    if kind not in ("nm", "topk"):
        raise FastSparseError(f"pattern: expected an n:m, top-k or block pattern, got {kind}")
    number, of, axis, tail = options
    zeros = of - number if kind == "topk" else number
    outer, length, inner = along_axis(shape, axis)
    if tail == "error" and length % of:
        raise FormatError(f"pattern: an axis of length {length} is not a multiple of {of}: {zeros_in_every(zeros, of)}")
    lines = np.moveaxis(keep.reshape(outer, length, inner), 1, 2)
    wrong = np.zeros((outer, inner, -(-length // of)), np.bool_)
    for first, end, size in runs_of(length, of):
        kept = np.count_nonzero(lines[:, :, first:end].reshape(outer, inner, (end - first) // size, size), axis=3)
        wrong[:, :, first // of : -(-end // of)] = kept != size - zeros_in(size, zeros, of, tail)
    if wrong.any():
        at, line, group = np.argwhere(wrong)[0]
        flat = (at * length + group * of) * inner + line
        raise FormatError(
            f"pattern: the group of the element at flat index {flat} does not fit {zeros_in_every(zeros, of)}"
        )


def _check_blocks(keep: Keep, block: int | tuple[int, int], sparsity: float, axis: int, norm: str) -> None:
    dims, tall, wide = as_blocks(keep.shape, block, axis)
    corners = keep.reshape(dims)[:, ::tall, ::wide]
    index = np.arange(corners.size).reshape(corners.shape)
    mixed = spread_blocks(index, dims, tall, wide)[spread_blocks(corners, dims, tall, wide) != keep.reshape(dims)]
    if mixed.size:
        raise FormatError(f"pattern: block {mixed.min()} is neither kept nor dropped as a whole")
    dropped, wanted = corners.size - np.count_nonzero(corners), zero_count(sparsity, corners.size)
    if dropped != wanted:
        raise FormatError(f"pattern: {dropped} blocks are dropped, the pattern says {wanted}")
