"""Packing, unpacking and masking."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import (
    WORD,
    Keep,
    Mask,
    Parts,
    Shape,
    Spec,
    as_words,
    check_shape,
    check_threads,
    frozen,
    output_array,
    supported_array,
)
from fastsparse._numpy._masks import mask_parts, offsets_of_rows, to_bool
from fastsparse._numpy._ranking import magnitude_keys, ranking_of
from fastsparse._numpy._select import keep_of


def select(
    w: ArrayLike, spec: Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> Mask:
    """The mask of what stays."""
    check_threads(threads)
    weights = supported_array(w, "w")
    return mask_parts(weights.shape, keep_of(ranking_of(weights, scores, column_scale), spec))


def _write_masked(weights: NDArray[Any], keep: Keep, out: NDArray[Any]) -> NDArray[Any]:
    words = as_words(weights)
    out.view(words.dtype)[...] = np.where(keep.reshape(words.shape), words, words.dtype.type(0))
    return out


def apply_mask(w: ArrayLike, shape: Shape, bits: NDArray[np.uint8], out: NDArray[Any] | None) -> NDArray[Any]:
    """The weights, with zeros where the mask has none."""
    weights = supported_array(w, "w")
    check_shape("mask", shape, weights.shape)
    out = output_array(out, shape, weights.dtype, w=weights, mask=bits)
    return _write_masked(weights, to_bool(shape, bits), out)


def prune(
    w: ArrayLike,
    spec: Spec,
    out: NDArray[Any] | None,
    scores: ArrayLike | None,
    column_scale: ArrayLike | None,
    threads: int | None,
) -> NDArray[Any]:
    """`select` and `apply_mask`."""
    check_threads(threads)
    weights = supported_array(w, "w")
    ranking = ranking_of(weights, scores, column_scale)
    out = output_array(out, weights.shape, weights.dtype, w=weights, scores=scores, column_scale=column_scale)
    return _write_masked(weights, keep_of(ranking, spec), out)


def _pack(weights: NDArray[Any], mask: Mask) -> Parts:
    shape, bits, _ = mask
    values = as_words(weights)[to_bool(shape, bits)].view(weights.dtype)
    return shape, frozen(values), bits, frozen(offsets_of_rows(bits))


def pack(w: ArrayLike, shape: Shape | None, bits: NDArray[np.uint8] | None) -> Parts:
    """The kept weights; without a mask what is `!= 0`, NaN among it."""
    weights = supported_array(w, "w")
    if shape is None or bits is None:
        return _pack(weights, mask_parts(weights.shape, magnitude_keys(weights) != 0))
    check_shape("mask", shape, weights.shape)
    return _pack(weights, (shape, bits, 0))


def compress(
    w: ArrayLike, spec: Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> Parts:
    """`select` and `pack`."""
    return _pack(supported_array(w, "w"), select(w, spec, scores, column_scale, threads))


def unpack(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """The dense tensor."""
    out = output_array(out, shape, values.dtype, values=values, bitmask=bitmask, row_offsets=row_offsets)
    keep = to_bool(shape, bitmask)
    if np.count_nonzero(keep) != values.size:
        raise FastSparseError("bitmask was changed by another thread during the call")
    words = out.view(WORD[out.itemsize])
    words[...] = 0
    words[keep] = as_words(values)
    return out
