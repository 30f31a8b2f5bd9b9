"""Products with prepared weights: dense blocks."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FormatError
from fastsparse._numpy._arguments import Parts, Shape, as_words, frozen, matrix_view
from fastsparse._numpy._linear import Call, check_computed
from fastsparse._numpy._masks import to_bool
from fastsparse._numpy._pack import unpack
from fastsparse._numpy._parts import check_parts

Layout = tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.int64]]

_PANEL = 16
"""Columns of a panel."""


def _cut(shape: Shape, block: tuple[int, int]) -> tuple[int, int]:
    """The blocks of the layout: of at most 16 rows."""
    rows, width = block
    height = max((h for h in range(1, min(16, rows) + 1) if rows % h == 0), default=0)
    cols = matrix_view(shape)[1]
    if not height or not width or -(-cols // width) >= 0xFFFF:
        raise FormatError(f"block: no layout of {rows} × {width} for {cols} columns")
    return height, width


def _whole_panels(width: int) -> int:
    """A multiple of so many blocks fills panels."""
    return _PANEL // min(_PANEL, width & -width)


def prefers_blocks(values: NDArray[Any], shape: Shape, block: tuple[int, int], batch: int) -> bool:
    """Never: this backend computes densely."""
    return False


def lay_blocks(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    block: tuple[int, int],
) -> Layout:
    """The layout by blocks."""
    check_computed(values, "s")
    height, width = _cut(shape, block)
    rows, cols = matrix_view(shape)
    bands, blocks = -(-rows // height), -(-cols // width)
    keep = np.zeros((bands * height, blocks * width), np.bool_)
    keep[:rows, :cols] = to_bool(shape, bitmask).reshape(rows, cols)
    real = np.zeros_like(keep)
    real[:rows, :cols] = True
    tiles = keep.reshape(bands, height, blocks, width)
    any_kept = tiles.any(axis=(1, 3))
    mixed = any_kept & (tiles != real.reshape(tiles.shape)).any(axis=(1, 3))
    if mixed.any():
        raise FormatError(f"block {int(np.flatnonzero(mixed)[0])} is neither kept nor dropped as a whole")
    whole = _whole_panels(width)
    counts = any_kept.sum(axis=1)
    starts = np.zeros(bands + 1, np.int64)
    np.cumsum(-(-counts // whole) * whole, out=starts[1:])
    index = np.full(starts[-1], blocks, np.uint16)
    band, number = np.nonzero(any_kept)
    at = starts[band] + np.arange(len(band)) - np.repeat(np.cumsum(counts) - counts, counts)
    index[at] = number
    dense = np.zeros(keep.shape, values.dtype)
    as_words(dense)[keep] = as_words(values)
    columns = np.zeros((starts[-1], width, height), values.dtype)
    columns[at] = dense.reshape(bands, height, blocks, width)[band, :, number].transpose(0, 2, 1)
    panels = columns.reshape(-1, _PANEL, height).transpose(0, 2, 1)
    return frozen(np.ascontiguousarray(panels)), frozen(index), frozen(starts)


def unlay_blocks(
    values: NDArray[Any],
    index: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: Shape,
    block: tuple[int, int],
    kept: int,
) -> Parts:
    """The packed form again."""
    height, width = _cut(shape, block)
    rows, cols = matrix_view(shape)
    bands, blocks = -(-rows // height), -(-cols // width)
    columns = values.transpose(0, 2, 1).reshape(-1, width, height)
    band = np.repeat(np.arange(bands), np.diff(starts))
    real = index < blocks
    dense = np.zeros((bands, height, blocks, width), values.dtype)
    keep = np.zeros(dense.shape, np.bool_)
    dense[band[real], :, index[real]] = columns[real].transpose(0, 2, 1)
    keep[band[real], :, index[real]] = True
    keep = keep.reshape(bands * height, blocks * width)[:rows, :cols]
    dense = dense.reshape(bands * height, blocks * width)[:rows, :cols]
    return check_parts(dense[keep], np.packbits(keep, axis=1, bitorder="little"), shape)


def linear_blocks(
    values: NDArray[Any],
    index: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: Shape,
    block: tuple[int, int],
    x: ArrayLike,
    bias: ArrayLike | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """Unpacks and multiplies."""
    call = Call(values.dtype, shape, x, bias, None, out, values=values, index=index, starts=starts)
    _, kept, bits, offsets = unlay_blocks(values, index, starts, shape, block, 0)
    return call.compute(unpack(kept, bits, offsets, shape, None), lambda: to_bool(shape, bits))
