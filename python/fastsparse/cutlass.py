"""The semi-structured layout of CUTLASS, in which PyTorch holds 2:4 weights for the sparse tensor cores of GPUs.

Groups of four along a row keep two values. `packed` has the kept values; of every group `meta` has a nibble, the
indices of the two, lower one first: ``index0 | index1 << 2``. float32 keeps one of two and is written as if each number
were a pair of halves. Nibbles are joined into words, the first in the lowest bits, and the words of a matrix are
shuffled as the tensor cores read them.

Groups with fewer values than slots fill them as torch does, which is part of the layout: what is at the indices that
torch computes from the non-zeros is stored, zero or not.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError

__all__ = ["from_cutlass_24", "to_cutlass_24"]

_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.int8)))


def _nibble(code: int) -> int:
    """The nibble of a group whose non-zeros are the set bits of `code`, by the rule of torch."""
    m0, m1, _, m3 = (bool(code >> i & 1) for i in range(4))
    bits = (not m0 and m1, not m0 and not m1, m0 == m1 or m3, (not m0 and m1) or not m1)
    return sum(bit << i for i, bit in enumerate(bits))


_NIBBLES = np.array([_nibble(code) for code in range(16)], np.uint8)
_MANY = np.array([code.bit_count() > 2 for code in range(16)])
_VALID = np.isin(np.arange(16), [0x4, 0x8, 0x9, 0xC, 0xD, 0xE])


def to_cutlass_24(w: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """A 2:4 matrix in the layout of CUTLASS, the same bytes as torch makes of it.

    Parameters
    ----------
    w : array_like, ``[m, k]``
        float16, bfloat16 or int8 with at most two non-zeros in every four along a row, or float32 with one in every
        two. `m` is a multiple of 32 (int8: 16) and `k` of 32 (int8: 64, float32: 16), so that the words of `meta` have
        an even number of columns; their order is not defined for another.

    Returns
    -------
    packed : ndarray, ``[m, k/2]``
        Of the dtype of `w`.
    meta : ndarray, ``[m, k/16]``
        int16; for float32 ``[m, k/8]``, for int8 ``[m, k/32]`` of int32.

    Raises
    ------
    FastSparseError
        If dtype or shape are others, or a group has more non-zeros. The message says where.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> w = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float16)
    >>> packed, meta = to_cutlass_24(fs.prune(w, "2:4"))
    >>> packed.shape, meta.shape, meta.dtype
    ((32, 32), (32, 4), dtype('int16'))
    """
    dense = np.asarray(w)
    group, word = _layout(dense.dtype)
    _check_shape(dense.shape, dense.dtype)
    m, k = dense.shape
    groups = np.ascontiguousarray(dense).reshape(m, k // group, group)
    # torch's float32 is 1:2; a value stands for two halves, both non-zero or both zero.
    flags = np.repeat(_nonzero(groups), 4 // group, axis=2)
    codes = np.packbits(flags, axis=2, bitorder="little")[..., 0]
    if (many := _MANY[codes]).any():
        row, at = (int(i) for i in np.argwhere(many)[0])
        limit = f"{group // 2} in every {group}"
        where = f"row {row}, columns {at * group} to {at * group + group - 1}"
        raise FastSparseError(f"w: {where} hold more non-zeros than {limit}; prune to {group // 2}:{group} first")
    nibbles = _NIBBLES[codes]
    index = np.stack((nibbles & 3, nibbles >> 2), axis=2) if group == 4 else (nibbles & 3)[..., None] // 2
    bits = groups.view(f"u{dense.itemsize}")
    packed = np.take_along_axis(bits, index.astype(np.intp), axis=2).reshape(m, k // 2).view(dense.dtype)
    words = _joined(nibbles, word)
    meta = np.empty_like(words).reshape(-1)
    meta[_places(m, words.shape[1], word)] = words
    return packed, meta.reshape(words.shape).view(f"i{word.itemsize}")


def from_cutlass_24(packed: ArrayLike, meta: ArrayLike) -> NDArray[Any]:
    """The dense matrix of a pair that `to_cutlass_24`, or torch, has made.

    Parameters
    ----------
    packed : array_like, ``[m, k/2]``
        float32, float16, bfloat16 or int8.
    meta : array_like
        As `to_cutlass_24` gives it.

    Raises
    ------
    FastSparseError
        If the dtype of `packed` is another, or a size is not one of the layout.
    FormatError
        If `meta` does not belong to `packed` or says what no group can be.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> w = fs.prune(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float16), "2:4")
    >>> np.array_equal(from_cutlass_24(*to_cutlass_24(w)), w)
    True
    """
    values, given = np.asarray(packed), np.asarray(meta)
    group, word = _layout(values.dtype)
    if values.ndim != 2:
        raise FastSparseError(f"packed: expected two dimensions, got shape {values.shape}")
    m, k = values.shape[0], 2 * values.shape[1]
    _check_shape((m, k), values.dtype)
    per_word = 2 * word.itemsize
    shape = (m, k // (group * per_word))
    if given.shape != shape or given.dtype != np.dtype(f"i{word.itemsize}"):
        expected = f"int{8 * word.itemsize} of shape {shape}"
        raise FormatError(f"meta: expected {expected} beside {values.shape}, got {given.dtype} of shape {given.shape}")
    words = np.ascontiguousarray(given).view(word).reshape(-1)[_places(m, shape[1], word)]
    shifts = 4 * np.arange(per_word, dtype=word)
    nibbles = (words[..., None] >> shifts & 0xF).astype(np.uint8).reshape(m, k // group)
    valid = _VALID[nibbles] if group == 4 else (nibbles == 0x4) | (nibbles == 0xE)
    if not valid.all():
        row, at = (int(i) for i in np.argwhere(~valid)[0])
        raise FormatError(f"meta: the nibble {nibbles[row, at]:#x} of row {row}, group {at} is none")
    index = np.stack((nibbles & 3, nibbles >> 2), axis=2) if group == 4 else (nibbles & 3)[..., None] // 2
    bits = np.ascontiguousarray(values).view(f"u{values.itemsize}").reshape(m, k // group, group // 2)
    dense = np.zeros((m, k // group, group), bits.dtype)
    np.put_along_axis(dense, index.astype(np.intp), bits, axis=2)
    return dense.reshape(m, k).view(values.dtype)


def _layout(dtype: np.dtype[Any]) -> tuple[int, np.dtype[Any]]:
    """Length of a group, and the unsigned type of a word of `meta`."""
    if dtype not in _DTYPES:
        raise FastSparseError(f"dtype: expected {', '.join(known.name for known in _DTYPES)}, got {dtype}")
    return 2 if dtype == np.float32 else 4, np.dtype(np.uint32 if dtype == np.int8 else np.uint16)


def _check_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    rows, cols = {"int8": (16, 64), "float32": (32, 16)}.get(dtype.name, (32, 32))
    if len(shape) != 2 or shape[0] % rows or shape[1] % cols:
        expected = f"two dimensions, multiples of {rows} and {cols}"
        raise FastSparseError(f"shape: expected {expected} for {dtype}, got {shape}")


def _nonzero(groups: NDArray[Any]) -> NDArray[np.bool_]:
    """``groups != 0``, on the bits of bfloat16, whose comparison is slow."""
    nonzero: NDArray[np.bool_]
    nonzero = (groups.view(np.uint16) & 0x7FFF) != 0 if groups.dtype == ml_dtypes.bfloat16 else groups != 0
    return nonzero


def _joined(nibbles: NDArray[np.uint8], word: np.dtype[Any]) -> NDArray[Any]:
    """Nibbles ``[m, n]`` as words ``[m, n / nibbles a word]``."""
    pairs = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return np.ascontiguousarray(pairs).view(word.newbyteorder("<")).astype(word, copy=False)


def _places(m: int, cols: int, word: np.dtype[Any]) -> NDArray[np.intp]:
    """Where each word ``[m, cols]`` of a matrix is in the flat `meta`."""
    lines, interweave = (32, 4) if word.itemsize == 2 else (16, 2)
    row, col = np.indices((m, cols))
    row = row // lines * lines + row % 8 * interweave + row % lines // 8
    # Each 2 × 2 block swaps its top right and bottom left.
    swap = (row + col) % 2 * (1 - 2 * (row % 2))
    row, col = row + swap, col - swap
    return col // 2 * m * 2 + row * 2 + col % 2
