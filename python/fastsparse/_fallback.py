"""The NumPy twin of the native backend: the same names, results and messages as `_core`, some fifty times slower.

Weights are handled as their bits. For all IEEE-like formats the bits without the sign, read as an unsigned integer,
order the magnitudes: finite numbers first, then infinity, then the NaNs. That integer is the *key*; all selection
compares keys.
"""

import math
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.patterns import zeros_in_every

Shape = tuple[int, ...]
Spec = tuple[Any, ...]
Mask = tuple[Shape, NDArray[np.uint8], int]
Parts = tuple[Shape, NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]
Keep = NDArray[np.bool_]

_LARGEST_KEY = {
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

_WORD: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


# Arguments


def _as_array(x: Any, arg: str) -> NDArray[Any]:
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except ValueError as error:
        raise FastSparseError(f"{arg}: cannot be read as an array: {error}") from error


def _name(dtype: np.dtype[Any]) -> str:
    """The dtype for messages; `name` hides a foreign byte order."""
    return dtype.name if dtype.isnative else dtype.str


def _supported(x: ArrayLike, arg: str, error: type[FastSparseError] = FastSparseError) -> NDArray[Any]:
    array = _as_array(x, arg)
    if array.dtype not in _LARGEST_KEY:
        names = ", ".join(map(_name, _LARGEST_KEY))
        raise error(f"{arg}: dtype {_name(array.dtype)} is not supported; expected one of {names}")
    return array


def _words(array: NDArray[Any]) -> NDArray[Any]:
    """The bits of an array, C-contiguous, as unsigned integers."""
    return np.asarray(array, order="C").view(_WORD[array.itemsize])


def _matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of the matrix view."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _bits_shape(shape: Shape) -> tuple[int, int]:
    rows, cols = _matrix(shape)
    return rows, -(-cols // 8)


def _check_shape(arg: str, got: Shape, want: Shape) -> None:
    if got != want:
        raise FastSparseError(f"{arg}: shape {got} does not match w's shape {want}")


def _check_threads(threads: Any) -> None:
    if threads is None:
        return
    try:
        number = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        number = 0
    if number < 1:
        raise FastSparseError(f"threads: expected an integer ≥ 1 or None, got {threads!r}")


def _output(out: Any, shape: Shape, dtype: np.dtype[Any], **inputs: Any) -> NDArray[Any]:
    """`out`, checked against the inputs that it must not overlap, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    wanted = f"out: expected a writeable C-contiguous array of shape {shape} and dtype {_name(dtype)}, got"
    if not isinstance(out, np.ndarray):
        raise FastSparseError(f"{wanted} {type(out).__name__}")
    got = f"shape {out.shape} and dtype {_name(out.dtype)}"
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


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


# Masks


def _mask(shape: Shape, keep: Keep) -> Mask:
    # packbits keeps the memory order of its input, which indexing and transposing may have changed.
    bits = np.packbits(np.asarray(keep, order="C").reshape(_matrix(shape)), axis=1, bitorder="little")
    return shape, _frozen(bits), int(np.count_nonzero(keep))


def to_bool(shape: Shape, bits: NDArray[np.uint8]) -> Keep:
    """The mask as a bool array of `shape`."""
    keep = np.unpackbits(bits, axis=1, count=_matrix(shape)[1], bitorder="little")
    return keep.view(np.bool_).reshape(shape)


def from_bool(mask: ArrayLike) -> Mask:
    """The mask of a bool array."""
    keep = _as_array(mask, "mask")
    if keep.dtype != np.bool_:
        raise FastSparseError(f"mask: expected dtype bool, got {_name(keep.dtype)}")
    return _mask(keep.shape, keep)


def _row_offsets(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    offsets = np.zeros(len(bits) + 1, np.int64)
    np.cumsum(_POPCOUNT[bits].sum(axis=1, dtype=np.int64), out=offsets[1:])
    return offsets


def _bits_from_outside(arg: str, bits: ArrayLike, shape: Shape) -> NDArray[np.uint8]:
    # A size of zero hides an overflow of the others from the product, not from the columns.
    if len(shape) > 64 or math.prod(shape) > sys.maxsize // 8 or math.prod(shape[1:]) > 2 * sys.maxsize + 1:
        raise FormatError(f"shape: {shape} is too large")
    array = _as_array(bits, arg)
    wanted = _bits_shape(shape)
    if array.dtype != np.uint8 or array.shape != wanted:
        raise FormatError(f"{arg}: expected uint8 of shape {wanted}, got {_name(array.dtype)} of shape {array.shape}")
    padding = 8 * wanted[1] - _matrix(shape)[1]
    if padding and array.size:
        bad = np.flatnonzero(array[:, -1] >> (8 - padding))
        if bad.size:
            raise FormatError(f"{arg}: padding bits of mask row {bad[0]} are set")
    return np.asarray(array, order="C")


def check_bits(bits: ArrayLike, shape: Shape) -> Mask:
    """A mask from outside; FormatError on a wrong shape or padding bits that are set."""
    array = _bits_from_outside("bits", bits, shape)
    return shape, _frozen(array), int(_row_offsets(array)[-1])


# Ranking


@dataclass(slots=True)
class _Ranking:
    """What is ranked: keys of the tensor's shape, the argument's name for messages, and the numbers behind the keys."""

    arg: str
    keys: NDArray[Any]
    largest: int
    numbers: Callable[[], NDArray[np.float64]]

    def reject_nan(self) -> None:
        """FastSparseError naming the first NaN, in row-major order."""
        if self.keys.size and self.keys.max() > self.largest:
            self.raise_nan(int(np.argmax(self.keys.reshape(-1) > self.largest)))

    def raise_nan(self, flat: int) -> None:
        index = tuple(int(i) for i in np.unravel_index(flat, self.keys.shape))
        raise FastSparseError(f"{self.arg} contains NaN at index {index}")


def _magnitude_keys(array: NDArray[Any]) -> NDArray[Any]:
    words = _words(array)
    if array.dtype == np.uint8:
        return words
    if array.dtype == np.int8:
        keys: NDArray[Any] = np.abs(words.view(np.int8)).view(np.uint8)  # |−128| wraps to −128, whose bits are 128
    else:
        keys = words & words.dtype.type(np.iinfo(words.dtype).max >> 1)
    return keys


def _ordered_keys(array: NDArray[Any]) -> NDArray[Any]:
    """Keys in the order of the signed numbers; −0 equals +0."""
    words = _words(array)
    if array.dtype == np.uint8:
        return words
    sign = words.dtype.type(1 << (8 * array.itemsize - 1))
    keys: NDArray[Any] = words ^ sign
    if array.dtype == np.int8:
        return keys
    magnitude = _magnitude_keys(array)
    keys = np.where(words & sign, sign - magnitude, sign + magnitude)
    keys[magnitude > _LARGEST_KEY[array.dtype]] = np.iinfo(keys.dtype).max
    return keys


def _largest_ordered(dtype: np.dtype[Any]) -> int:
    return 0xFF if dtype.kind in "iu" else _LARGEST_KEY[dtype] | 1 << (8 * dtype.itemsize - 1)


def _float64(array: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN warns where it is converted; it is reported later
        return array.astype(np.float64)


def _ranking(w: NDArray[Any], scores: ArrayLike | None, column_scale: ArrayLike | None) -> _Ranking:
    if scores is not None:
        if column_scale is not None:
            raise FastSparseError("column_scale: cannot be combined with scores")
        s = _supported(scores, "scores")
        _check_shape("scores", s.shape, w.shape)
        return _Ranking("scores", _ordered_keys(s), _largest_ordered(s.dtype), lambda: _float64(s))
    if column_scale is None:
        return _Ranking("w", _magnitude_keys(w), _LARGEST_KEY[w.dtype], lambda: np.abs(_float64(w)))
    working = np.dtype(np.float64 if w.dtype == np.float64 else np.float32)
    scale = _column_scale(column_scale, w.shape, working)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        scaled = (np.abs(w.astype(working)).reshape(_matrix(w.shape)) * scale).reshape(w.shape)
    return _Ranking("w", _magnitude_keys(scaled), _LARGEST_KEY[working], lambda: np.abs(_float64(scaled)))


def _column_scale(column_scale: ArrayLike, shape: Shape, working: np.dtype[Any]) -> NDArray[Any]:
    """A factor for each column of the matrix view."""
    given = _as_array(column_scale, "column_scale")
    cols = _matrix(shape)[1]
    lengths = (cols, *(n for n in shape[1:2] if n != cols))
    if given.ndim != 1 or given.size not in lengths:
        allowed = " or ".join(f"({n},)" for n in lengths)
        raise FastSparseError(f"column_scale: expected shape {allowed}, got {given.shape}")
    if given.dtype.kind not in "iuf" and given.dtype not in _LARGEST_KEY:
        raise FastSparseError(f"column_scale: expected real numbers, got dtype {_name(given.dtype)}")
    factors = given.astype(working)
    bad = np.flatnonzero(~(factors >= 0))
    if bad.size:
        raise FastSparseError(f"column_scale: expected numbers ≥ 0, got {given[bad[0]]} at index {bad[0]}")
    return factors if given.size == cols else np.repeat(factors, cols // given.size if given.size else 0)


# Selection


def _smallest(keys: NDArray[Any], zeros: int) -> Keep:
    """In each row of a matrix, drops the `zeros` smallest; of equal ones those with the higher index."""
    cols = keys.shape[1]
    if zeros == 0 or zeros == cols:
        return np.full(keys.shape, zeros == 0)
    bound = np.partition(keys, zeros, axis=1)[:, zeros : zeros + 1]
    keep = keys > bound
    ties = keys == bound
    wanted = cols - zeros - np.count_nonzero(keep, axis=1)
    keep |= ties & (np.cumsum(ties, axis=1, dtype=np.int64) <= wanted[:, None])
    return keep


def _zeros(sparsity: float, items: int) -> int:
    return min(round(sparsity * float(items)), items)


def _along(shape: Shape, axis: int) -> tuple[int, int, int]:
    """The tensor as outer × length × inner around an axis; a scalar has one axis of length 1."""
    dims = shape or (1,)
    if not -len(dims) <= axis < len(dims):
        raise FastSparseError(f"axis: {axis} is out of range for w with {len(shape)} dimensions")
    axis %= len(dims)
    return math.prod(dims[:axis]), dims[axis], math.prod(dims[axis + 1 :])


def _zeros_in(length: int, zeros: int, of: int, tail: str) -> int:
    """Zeros in a group of `length`, which is `of` or, at the end of an axis, less."""
    if length == of:
        return zeros
    return round(zeros * float(length) / of) if tail == "proportional" else 0


def _runs(length: int, of: int) -> list[tuple[int, int, int]]:
    """Full groups and the shorter one of an axis: (first, end, length of a group)."""
    full = length - length % of
    return [(first, end, size) for first, end, size in ((0, full, of), (full, length, length - full)) if end > first]


def _select_groups(ranking: _Ranking, zeros: int, of: int, axis: int, tail: str) -> Keep:
    outer, length, inner = _along(ranking.keys.shape, axis)
    if tail == "error" and length % of:
        raise FastSparseError(
            f'w: axis of length {length} is not a multiple of {of}; tail="error" forbids a shorter group of '
            + zeros_in_every(zeros, of)
        )
    ranking.reject_nan()
    keys = ranking.keys.reshape(outer, length, inner)
    keep = np.empty(keys.shape, np.bool_)
    for first, end, size in _runs(length, of):
        groups = keys[:, first:end].reshape(outer, (end - first) // size, size, inner)
        # Stable on the complement: the largest first, of equal ones the lower index.
        order = np.argsort(~groups, axis=2, kind="stable")
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, order[:, :, : size - _zeros_in(size, zeros, of, tail)], True, axis=2)
        keep[:, first:end] = kept.reshape(outer, end - first, inner)
    return keep


def _blocks(shape: Shape, block: int | tuple[int, int], axis: int) -> tuple[tuple[int, int, int], int, int]:
    """The tensor as outer × length × inner, and how many neighbours along length and inner make a block."""
    if isinstance(block, tuple):
        return (1, *_matrix(shape)), *block
    return _along(shape, axis), block, 1


def _block_means(terms: NDArray[np.float64], tall: int, wide: int) -> NDArray[np.float64]:
    """The mean over each block, summed in the order that all backends share.

    The elements of a block in row-major order are padded with zeros to a power of two, and the upper half is added onto
    the lower half until one is left.
    """
    outer, length, inner = terms.shape
    means = np.empty((outer, -(-length // tall), -(-inner // wide)))
    for top, bottom, height in _runs(length, tall):
        for left, right, width in _runs(inner, wide):
            down, across, count = (bottom - top) // height, (right - left) // width, height * width
            tiles = terms[:, top:bottom, left:right].reshape(outer, down, height, across, width)
            sums = tiles.transpose(0, 1, 3, 2, 4).reshape(outer, down, across, count)
            padded = 1 << (count - 1).bit_length()
            if padded > count:
                sums = np.concatenate([sums, np.zeros((*sums.shape[:-1], padded - count))], axis=-1)
            while sums.shape[-1] > 1:
                half = sums.shape[-1] // 2
                sums = sums[..., :half] + sums[..., half:]
            rows, cols = slice(top // tall, -(-bottom // tall)), slice(left // wide, -(-right // wide))
            means[:, rows, cols] = sums[..., 0] / count
    return means


def _block_maxima(terms: NDArray[np.float64], tall: int, wide: int) -> NDArray[np.float64]:
    _, length, inner = terms.shape
    if not terms.size:
        return np.empty((terms.shape[0], -(-length // tall), -(-inner // wide)))
    return np.maximum.reduceat(
        np.maximum.reduceat(terms, np.arange(0, length, tall), axis=1), np.arange(0, inner, wide), axis=2
    )


def _spread(blocks: NDArray[Any], dims: tuple[int, int, int], tall: int, wide: int) -> NDArray[Any]:
    """For each element the entry of its block."""
    _, length, inner = dims
    return blocks[:, np.arange(length) // tall][:, :, np.arange(inner) // wide]


def _select_blocks(ranking: _Ranking, block: int | tuple[int, int], sparsity: float, axis: int, norm: str) -> Keep:
    dims, tall, wide = _blocks(ranking.keys.shape, block, axis)
    terms = ranking.numbers().reshape(dims)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if ranking.arg == "w" and norm == "max":
            norms = _block_maxima(terms, tall, wide)
        else:
            norms = _block_means(terms * terms if ranking.arg == "w" and norm == "l2" else terms, tall, wide)
    if np.isnan(norms).any():
        _raise_block_nan(ranking, norms, dims, tall, wide)
    keep = _smallest(_ordered_keys(norms).reshape(1, -1), _zeros(sparsity, norms.size))
    return _spread(keep.reshape(norms.shape), dims, tall, wide)


def _raise_block_nan(
    ranking: _Ranking, norms: NDArray[np.float64], dims: tuple[int, int, int], tall: int, wide: int
) -> None:
    """Names the first NaN of the first block that is NaN."""
    bad = int(np.argmax(np.isnan(norms)))
    members = _spread(np.arange(norms.size).reshape(norms.shape), dims, tall, wide).reshape(-1) == bad
    nan = np.flatnonzero(members & (ranking.keys.reshape(-1) > ranking.largest))
    if nan.size:
        ranking.raise_nan(int(nan[0]))
    raise FastSparseError(f"{ranking.arg}: the mean of block {bad} is NaN (inf − inf)")


def _keep(w: NDArray[Any], spec: Spec, scores: ArrayLike | None, column_scale: ArrayLike | None) -> Keep:
    kind, *options = spec
    if kind == "nonzero":
        for arg, given in (("scores", scores), ("column_scale", column_scale)):
            if given is not None:
                raise FastSparseError(f"{arg}: the nonzero pattern does not rank")
    ranking = _ranking(w, scores, column_scale)
    if kind in ("nm", "topk"):
        number, of, axis, tail = options
        return _select_groups(ranking, of - number if kind == "topk" else number, of, axis, tail)
    if kind == "block":
        return _select_blocks(ranking, *options)
    ranking.reject_nan()
    if kind == "nonzero":
        keep: Keep = ranking.keys != 0
        return keep
    if kind == "threshold":
        keep = ranking.numbers() > options[0]
        return keep
    rows, cols = _matrix(w.shape)
    if kind == "exact":
        if not 0 <= options[0] <= w.size:
            raise FastSparseError(f"zeros: {options[0]} of {w.size} elements cannot go")
        return _smallest(ranking.keys.reshape(1, -1), options[0])
    sparsity, per = options
    view = (rows, cols) if per == "row" else (1, w.size)
    return _smallest(ranking.keys.reshape(view), _zeros(sparsity, view[1]))


# Operations


def select(
    w: ArrayLike, spec: Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> Mask:
    """The mask of what stays."""
    _check_threads(threads)
    weights = _supported(w, "w")
    return _mask(weights.shape, _keep(weights, spec, scores, column_scale))


def _write_masked(weights: NDArray[Any], keep: Keep, out: NDArray[Any]) -> NDArray[Any]:
    words = _words(weights)
    out.view(words.dtype)[...] = np.where(keep.reshape(words.shape), words, words.dtype.type(0))
    return out


def apply_mask(w: ArrayLike, shape: Shape, bits: NDArray[np.uint8], out: NDArray[Any] | None) -> NDArray[Any]:
    """The weights, with zeros where the mask has none."""
    weights = _supported(w, "w")
    _check_shape("mask", shape, weights.shape)
    out = _output(out, shape, weights.dtype, w=weights, mask=bits)
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
    _check_threads(threads)
    weights = _supported(w, "w")
    out = _output(out, weights.shape, weights.dtype, w=weights, scores=scores, column_scale=column_scale)
    return _write_masked(weights, _keep(weights, spec, scores, column_scale), out)


def _pack(weights: NDArray[Any], mask: Mask) -> Parts:
    shape, bits, _ = mask
    values = _words(weights)[to_bool(shape, bits)].view(weights.dtype)
    return shape, _frozen(values), bits, _frozen(_row_offsets(bits))


def pack(w: ArrayLike, shape: Shape | None, bits: NDArray[np.uint8] | None) -> Parts:
    """The kept weights; without a mask what is `!= 0`, NaN among it."""
    weights = _supported(w, "w")
    if shape is None or bits is None:
        return _pack(weights, _mask(weights.shape, _magnitude_keys(weights) != 0))
    _check_shape("mask", shape, weights.shape)
    return _pack(weights, (shape, bits, 0))


def compress(
    w: ArrayLike, spec: Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> Parts:
    """`select` and `pack`."""
    return _pack(_supported(w, "w"), select(w, spec, scores, column_scale, threads))


def unpack(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """The dense tensor."""
    out = _output(out, shape, values.dtype, values=values, bitmask=bitmask, row_offsets=row_offsets)
    keep = to_bool(shape, bitmask)
    if np.count_nonzero(keep) != values.size:
        raise FastSparseError("bitmask was changed by another thread during the call")
    words = out.view(_WORD[out.itemsize])
    words[...] = 0
    words[keep] = _words(values)
    return out


_COMPUTED = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
"""What `linear` takes."""


def _check_computed(array: NDArray[Any], arg: str) -> None:
    if array.dtype not in _COMPUTED:
        raise FastSparseError(f"{arg}: linear takes float32, float16 or bfloat16, got {_name(array.dtype)}")


def _check_activations(x: ArrayLike, weights: np.dtype[Any], cols: int) -> NDArray[Any]:
    """The activations: float32 or what the weights are; with int8 weights any float."""
    array = _supported(x, "x")
    integers = weights == np.int8
    if array.dtype not in (np.float32, weights) and not (integers and array.dtype in _COMPUTED):
        allowed = "float32" if weights == np.float32 else f"float32 or {weights}"
        allowed = "float32, float16, bfloat16 or int8" if integers else allowed
        raise FastSparseError(f"x: expected dtype {allowed} with weights of {weights}, got {_name(array.dtype)}")
    if array.shape[-1:] != (cols,):
        raise FastSparseError(f"x: expected {cols} columns, got shape {array.shape}")
    return array


def _per_row(given: ArrayLike, arg: str, rows: int) -> NDArray[Any]:
    """The bias, or the scales, of which there may be one for all rows."""
    array = _supported(given, arg)
    scalar = arg == "weight_scale" and array.shape == ()
    if not scalar or array.dtype != np.float64:
        _check_computed(array, arg)
    if not scalar and array.shape != (rows,):
        raise FastSparseError(f"{arg}: expected shape ({rows},), got {array.shape}")
    return array


def _scales(weights: np.dtype[Any], weight_scale: ArrayLike | None, rows: int) -> NDArray[Any] | None:
    """The scales of int8 weights; others have none."""
    if weights == np.int8 and weight_scale is not None:
        return _per_row(weight_scale, "weight_scale", rows)
    if weights not in _COMPUTED:
        allowed = "float32, float16, bfloat16, or int8 with weight_scale"
        raise FastSparseError(f"s: linear takes {allowed}, got {_name(weights)}")
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
    call = _Call(values.dtype, shape, x, bias, weight_scale, out, **parts)
    return call.compute(unpack(values, bitmask, row_offsets, shape, None), lambda: to_bool(shape, bitmask))


class _Call:
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
        rows, cols = self.shape = _matrix(shape)
        self.scales = _scales(weights, weight_scale, rows)
        self.x = _check_activations(x, weights, cols)
        self.bias = None if bias is None else _per_row(bias, "bias", rows)
        dtype = np.dtype(np.float32) if self.x.dtype == np.int8 else self.x.dtype
        inputs = {**parts, "x": self.x, "bias": self.bias, "weight_scale": self.scales}
        self.out = _output(out, (*self.x.shape[:-1], rows), dtype, **inputs)

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


# Column indices


Layout = tuple[NDArray[Any], NDArray[Any], NDArray[np.uint16], NDArray[np.int64]]


class _Columns(NamedTuple):
    """What the dtype of the columns says about the layout."""

    rows: int
    """Of a group."""
    slots: int
    """Of a row in a step."""
    padding: int
    """What stands where there is no column, and how many columns a block has at most."""


_COLUMNS = {np.dtype(np.uint8): _Columns(16, 2, 255), np.dtype(np.uint16): _Columns(1, 16, 8191)}


def _even_blocks(shape: Shape, layout: _Columns) -> tuple[int, int]:
    """Number of blocks, and the columns of all but the last."""
    cols = _matrix(shape)[1]
    blocks = -(-cols // layout.padding)
    return blocks, max(1, -(-cols // max(1, blocks)))


def prefers_indices(values: NDArray[Any], shape: Shape, batch: int) -> bool:
    """Never: the twin computes densely."""
    return False


def index(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    in_bytes: bool | None = None,
) -> Layout:
    """The layout by column indices."""
    _check_computed(values, "s")
    dtype = np.dtype(np.uint8 if in_bytes else np.uint16)
    layout = _COLUMNS[dtype]
    blocks, width = _even_blocks(shape, layout)
    groups = -(-_matrix(shape)[0] // layout.rows)
    rows, cols = np.nonzero(to_bool(shape, bitmask).reshape(_matrix(shape)))
    # The rank of each among those of its row and block.
    _, first, counts = np.unique(rows * (blocks + 1) + cols // width, return_index=True, return_counts=True)
    ranks = np.arange(len(rows)) - np.repeat(first, counts)
    steps = np.zeros((groups, blocks), np.uint16)
    np.maximum.at(steps, (rows // layout.rows, cols // width), (ranks // layout.slots + 1).astype(np.uint16))
    ends = np.cumsum(steps, dtype=np.int64)
    begins = (ends - steps.reshape(-1)).reshape(steps.shape)
    starts = np.zeros(groups + 1, np.int64)
    np.cumsum(steps.sum(axis=1, dtype=np.int64), out=starts[1:])
    laid = np.zeros((starts[-1], layout.rows * layout.slots), values.dtype)
    columns = np.full(laid.shape, layout.padding, dtype)
    step = begins[rows // layout.rows, cols // width] + ranks // layout.slots
    lane = layout.slots * (rows % layout.rows) + ranks % layout.slots
    _words(laid)[step, lane] = _words(values)
    columns[step, lane] = cols % width
    return _frozen(laid), _frozen(columns), _frozen(steps), _frozen(starts)


def unindex(
    values: NDArray[Any],
    columns: NDArray[Any],
    steps: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: Shape,
    kept: int,
) -> Parts:
    """The packed form again."""
    layout = _COLUMNS[columns.dtype]
    grid = np.indices(steps.shape).reshape(2, -1).repeat(steps.reshape(-1), axis=1)
    step, lane = np.nonzero(columns != layout.padding)
    rows = grid[0][step] * layout.rows + lane // layout.slots
    cols = grid[1][step] * _even_blocks(shape, layout)[1] + columns[step, lane]
    keep = np.zeros(_matrix(shape), np.bool_)
    keep[rows, cols] = True
    order = np.lexsort((cols, rows))
    bits = np.packbits(keep, axis=1, bitorder="little")
    return check_parts(values[step[order], lane[order]], bits, shape)


def linear_indexed(
    values: NDArray[Any],
    columns: NDArray[Any],
    steps: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: Shape,
    x: ArrayLike,
    bias: ArrayLike | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """Unpacks and multiplies."""
    parts = {"values": values, "columns": columns, "steps": steps, "starts": starts}
    call = _Call(values.dtype, shape, x, bias, None, out, **parts)
    number = int(np.count_nonzero(columns != _COLUMNS[columns.dtype].padding))
    _, kept, bits, offsets = unindex(values, columns, steps, starts, shape, number)
    return call.compute(unpack(kept, bits, offsets, shape, None), lambda: to_bool(shape, bits))


# Parts from outside


def check_parts(values: ArrayLike, bitmask: ArrayLike, shape: Shape) -> Parts:
    """Checks parts from outside and computes the offsets; contiguous parts are not copied."""
    kept = _supported(values, "values", FormatError)
    if kept.ndim != 1:
        raise FormatError(f"values: expected one dimension, got shape {kept.shape}")
    bits = _bits_from_outside("bitmask", bitmask, shape)
    offsets = _row_offsets(bits)
    if offsets[-1] != kept.size:
        raise FormatError(f"bitmask: the mask keeps {offsets[-1]} elements, there are {kept.size} values")
    return shape, _frozen(np.asarray(kept, order="C")), _frozen(bits), _frozen(offsets)


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
    outer, length, inner = _along(shape, axis)
    if tail == "error" and length % of:
        raise FormatError(f"pattern: an axis of length {length} is not a multiple of {of}: {zeros_in_every(zeros, of)}")
    lines = np.moveaxis(keep.reshape(outer, length, inner), 1, 2)
    wrong = np.zeros((outer, inner, -(-length // of)), np.bool_)
    for first, end, size in _runs(length, of):
        kept = np.count_nonzero(lines[:, :, first:end].reshape(outer, inner, (end - first) // size, size), axis=3)
        wrong[:, :, first // of : -(-end // of)] = kept != size - _zeros_in(size, zeros, of, tail)
    if wrong.any():
        at, line, group = np.argwhere(wrong)[0]
        flat = (at * length + group * of) * inner + line
        raise FormatError(
            f"pattern: the group of the element at flat index {flat} does not fit {zeros_in_every(zeros, of)}"
        )


def _check_blocks(keep: Keep, block: int | tuple[int, int], sparsity: float, axis: int, norm: str) -> None:
    dims, tall, wide = _blocks(keep.shape, block, axis)
    corners = keep.reshape(dims)[:, ::tall, ::wide]
    index = np.arange(corners.size).reshape(corners.shape)
    mixed = _spread(index, dims, tall, wide)[_spread(corners, dims, tall, wide) != keep.reshape(dims)]
    if mixed.size:
        raise FormatError(f"pattern: block {mixed.min()} is neither kept nor dropped as a whole")
    dropped, wanted = corners.size - np.count_nonzero(corners), _zeros(sparsity, corners.size)
    if dropped != wanted:
        raise FormatError(f"pattern: {dropped} blocks are dropped, the pattern says {wanted}")


# Runtime


_ISAS = ("amx", "avx512", "avx2", "neon", "scalar")


def _threads_of_environment() -> int:
    given = os.environ.get("FASTSPARSE_NUM_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (given.isascii() and given.strip().isdecimal()) or int(given) < 1:
        raise FastSparseError(f"FASTSPARSE_NUM_THREADS: expected an integer ≥ 1, got {given!r}")
    return int(given)


def _check_isa_of_environment() -> None:
    """The twin has no kernels to choose from, but a name that means nothing is an error here too."""
    given = os.environ.get("FASTSPARSE_ISA")
    if given is not None and given not in _ISAS:
        raise FastSparseError(f"FASTSPARSE_ISA: expected one of {', '.join(_ISAS)}, got {given!r}")


_check_isa_of_environment()
_threads = _threads_of_environment()


def set_num_threads(threads: int | None) -> None:
    """Remembers the number; NumPy's own threads are its affair."""
    global _threads
    _check_threads(threads)
    _threads = _threads_of_environment() if threads is None else operator.index(threads)


def get_num_threads() -> int:
    """What `set_num_threads` set."""
    return _threads


def set_isa(name: str) -> None:
    """Takes the only name there is."""
    if name != "numpy":
        raise FastSparseError(f"isa: expected one of numpy, got {name!r}")


def get_isa() -> str:
    """The only name there is."""
    return "numpy"


def available_isas() -> list[str]:
    """The only name there is."""
    return ["numpy"]


def build_profile() -> str:
    """There is nothing to build."""
    return "python"


# Blocks as coremltools ranks them


def block_norms(w: ArrayLike, length: int, axis: int) -> NDArray[np.float32]:
    """The l2 norms of blocks along an axis, in the order of NumPy's sums, as float32."""
    weights = _supported(w, "w")
    inner, blocks = math.prod(weights.shape[axis + 1 :]), -(-weights.shape[axis] // length)
    lines = weights.reshape(-1, weights.shape[axis], inner)
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
    keep = np.repeat(norms > np.float64(value), length, axis=axis).take(range(shape[axis]), axis)
    return _mask(shape, keep)
