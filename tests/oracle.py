"""What the contract says, written down naively: Python numbers, stable sorts, one loop after the other.

Nothing here knows keys, bits or kernels. A selection is a flat bool array over the elements in row-major order.
"""

import math
from fractions import Fraction

import numpy as np

import fastsparse as fs


class Undefined(Exception):
    """What is ranked contains a NaN; `index` is where."""

    def __init__(self, index):
        self.index = index


def matrix_view(shape):
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return 1, shape[0]
    return shape[0], math.prod(shape[1:])


def as_float64(array):
    with np.errstate(invalid="ignore"):  # a signalling NaN warns where it is converted
        return array.astype(np.float64)


def ranked(w, scores=None, column_scale=None):
    """What is ranked, as float64, flat. Every product is the one that the contract names."""
    if scores is not None:
        values = as_float64(scores).reshape(-1)
    elif column_scale is not None:
        working = np.float64 if w.dtype == np.float64 else np.float32
        factors = np.asarray(column_scale).astype(working)
        rows, cols = matrix_view(w.shape)
        if len(factors) != cols:
            factors = np.repeat(factors, cols // len(factors))
        with np.errstate(all="ignore"):
            products = np.abs(w.astype(working)).reshape(rows, cols) * factors
        values = as_float64(products).reshape(-1)
    else:
        values = np.abs(as_float64(w)).reshape(-1)
    if np.isnan(values).any():
        raise Undefined(tuple(int(i) for i in np.unravel_index(np.flatnonzero(np.isnan(values))[0], w.shape)))
    return values


def zeros_of(sparsity, items):
    """`round(sparsity · items)`, half to even, of the float64 product: by exact arithmetic on that product."""
    product = Fraction(sparsity * float(items))
    floor = math.floor(product)
    rest = product - floor
    return min(floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1)), items)


def largest(values, keep):
    """The `keep` largest along the last axis; of equal ones those with the lower index."""
    order = np.argsort(-values, axis=-1, kind="stable")
    kept = np.zeros(values.shape, bool)
    np.put_along_axis(kept, order[..., :keep], True, axis=-1)
    return kept


def lines(shape, axis):
    """Flat indices, one row for each line along the axis; a scalar is a line of one."""
    index = np.arange(math.prod(shape)).reshape(shape or (1,))
    index = np.moveaxis(index, axis, -1)
    return index.reshape(math.prod(index.shape[:-1]), index.shape[-1])


def keep_groups(values, shape, zeros, of, axis, tail):
    keep = np.zeros(len(values), bool)
    index = lines(shape, axis)
    full = index.shape[1] - index.shape[1] % of
    groups = index[:, :full].reshape(index.shape[0] * (full // of), of)
    keep[groups] = largest(values[groups], of - zeros)
    rest = index[:, full:]
    length = rest.shape[1]
    if length:
        assert tail != "error"
        go = 0 if tail == "keep" else round(Fraction(zeros * length, of))
        keep[rest] = largest(values[rest], length - go)
    return keep


def blocks_of(shape, block, axis):
    """Flat indices of each block, in the order of the blocks."""
    index = np.arange(math.prod(shape))
    if isinstance(block, tuple):
        table = index.reshape(matrix_view(shape))
        for row in range(0, table.shape[0], block[0]):
            for col in range(0, table.shape[1], block[1]):
                yield table[row : row + block[0], col : col + block[1]].reshape(-1)
        return
    dims = shape or (1,)
    axis %= len(dims)
    cube = index.reshape(math.prod(dims[:axis]), dims[axis], math.prod(dims[axis + 1 :]))
    for outer in range(cube.shape[0]):
        for start in range(0, cube.shape[1], block):
            for inner in range(cube.shape[2]):
                yield cube[outer, start : start + block, inner]


def block_mean(terms):
    """Padded with zeros to a power of two, upper half added onto the lower half until one is left."""
    sums = [float(x) for x in terms]
    while len(sums) & (len(sums) - 1):
        sums.append(0.0)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [sums[i] + sums[i + half] for i in range(half)]
    return sums[0] / len(terms)


def block_norm(values, norm, signed):
    if signed:
        return block_mean(values)
    if norm == "max":
        return max(float(x) for x in values)
    return block_mean([x * x for x in map(float, values)] if norm == "l2" else values)


def keep_blocks(values, shape, block, sparsity, axis, norm, signed):
    members = list(blocks_of(shape, block, axis))
    norms = np.array([block_norm(values[m], norm, signed) for m in members])
    kept = largest(norms, len(members) - zeros_of(sparsity, len(members)))
    keep = np.zeros(len(values), bool)
    for block_members, block_kept in zip(members, kept, strict=True):
        keep[block_members] = block_kept
    return keep


def select(w, pattern, scores=None, column_scale=None):
    """The bool mask that the contract wants, of the shape of `w`."""
    values = ranked(w, scores, column_scale)
    match pattern:
        case fs.Unstructured(sparsity=sparsity, per="tensor"):
            keep = largest(values, len(values) - zeros_of(sparsity, len(values)))
        case fs.Unstructured(sparsity=sparsity):
            rows, cols = matrix_view(w.shape)
            keep = largest(values.reshape(rows, cols), cols - zeros_of(sparsity, cols))
        case fs.TopK(keep=keep, of=of, axis=axis, tail=tail):
            keep = keep_groups(values, w.shape, of - keep, of, axis, tail)
        case fs.NM(zeros=zeros, of=of, axis=axis, tail=tail):
            keep = keep_groups(values, w.shape, zeros, of, axis, tail)
        case fs.Block(shape=block, sparsity=sparsity, axis=axis, norm=norm):
            keep = keep_blocks(values, w.shape, block, sparsity, axis, norm, scores is not None)
        case fs.Threshold(value=value):
            keep = ~(values <= value)
        case fs.Nonzero():
            keep = values != 0
    return keep.reshape(w.shape)


def bits_of(keep):
    """The mask's bytes: element i of a row counts 2^(i mod 8) in byte i div 8, a row starts on a byte, padding is 0."""
    rows, cols = matrix_view(keep.shape)
    padded = np.zeros((rows, (cols + 7) // 8 * 8), int)
    padded[:, :cols] = keep.reshape(rows, cols)
    return (padded.reshape(rows, (cols + 7) // 8, 8) * 2 ** np.arange(8)).sum(axis=2).astype(np.uint8)


def dense(w, keep):
    """The weights with +0 where nothing is kept, bit for bit."""
    out = np.zeros(w.shape, w.dtype)
    out[keep] = w[keep]
    return out


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
