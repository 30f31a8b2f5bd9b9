"""Products with prepared weights: column indices."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._numpy._arguments import Parts, Shape, as_words, frozen, matrix_view
from fastsparse._numpy._linear import Call, check_computed
from fastsparse._numpy._masks import to_bool
from fastsparse._numpy._pack import unpack
from fastsparse._numpy._parts import check_parts

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
    cols = matrix_view(shape)[1]
    blocks = -(-cols // layout.padding)
    return blocks, max(1, -(-cols // max(1, blocks)))


def prefers_indices(values: NDArray[Any], shape: Shape, batch: int) -> bool:
    """Never: NumPy computes densely."""
    return False


def index(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: Shape,
    in_bytes: bool | None = None,
) -> Layout:
    """The layout by column indices."""
    check_computed(values, "s")
    dtype = np.dtype(np.uint8 if in_bytes else np.uint16)
    layout = _COLUMNS[dtype]
    blocks, width = _even_blocks(shape, layout)
    groups = -(-matrix_view(shape)[0] // layout.rows)
    rows, cols = np.nonzero(to_bool(shape, bitmask).reshape(matrix_view(shape)))
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
    as_words(laid)[step, lane] = as_words(values)
    columns[step, lane] = cols % width
    return frozen(laid), frozen(columns), frozen(steps), frozen(starts)


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
    keep = np.zeros(matrix_view(shape), np.bool_)
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
    call = Call(values.dtype, shape, x, bias, None, out, **parts)
    number = int(np.count_nonzero(columns != _COLUMNS[columns.dtype].padding))
    _, kept, bits, offsets = unindex(values, columns, steps, starts, shape, number)
    return call.compute(unpack(kept, bits, offsets, shape, None), lambda: to_bool(shape, bits))
