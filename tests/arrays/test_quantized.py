"""Packed weights of eight bits against rows that are rounded one by one."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs

F64, F32, F16, BF16, I8 = (np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8))
each_dtype = pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=lambda t: t.name)


def weights(rows, cols, dtype, seed=0):
    """Weights whose rows differ by magnitudes, with a row of zeros and one that keeps nothing."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((rows, cols)) * np.logspace(-3, 2, rows)[:, None]).astype(dtype)
    keep = rng.random((rows, cols)) < 0.5
    w[rows // 2] = 0
    keep[rows // 3] = False
    return w, keep


def rounded(row):
    """A row's scale and integers, one operation after the other in float32."""
    wide = row.astype(F32)
    largest = np.abs(wide).max(initial=0)
    whole = np.rint(wide / largest * F32.type(127)) if largest else np.zeros_like(wide)
    return largest / F32.type(127), whole.astype(I8)


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 257), (3, 4, 5)])
def test_each_row_by_itself(dtype, shape):
    w, keep = weights(shape[0], int(np.prod(shape[1:])), dtype)
    q = fs.pack(w.reshape(shape), keep.reshape(shape)).quantize()
    dense = np.zeros(w.shape, dtype)
    for r, (row, kept) in enumerate(zip(w, keep, strict=True)):
        scale, whole = rounded(row[kept])
        assert q.scale[r] == scale
        assert np.array_equal(q.packed.rows(r, r + 1).values, whole)
        dense[r, kept] = (whole.astype(F32) * scale).astype(dtype)
    assert q.shape == shape
    assert q.dtype == dtype
    assert q.mask == fs.Bitmask.from_bool(keep.reshape(shape))
    assert np.array_equal(q.to_dense(), dense.reshape(shape))
    assert np.array_equal(fs.unpack(q), q.to_dense())
    assert q.dequantize().nnz == q.nnz == keep.sum()
    error = np.abs(q.to_dense().reshape(w.shape).astype(F64) - np.where(keep, w, 0).astype(F64))
    ulp = float(ml_dtypes.finfo(dtype).eps) * np.abs(w.astype(F64)).max(axis=1)
    assert (error.max(axis=1) <= 0.5001 * q.scale + ulp).all()


def test_many_rows_go_by_pieces():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((700, 4096)).astype(F32)
    s = fs.compress(w, "2:4")
    q = s.quantize()
    for r in (0, 1, 511, 512, 513, 699):
        part = s.rows(r, r + 1).quantize()
        assert np.array_equal(part.packed.values, q.rows(r, r + 1).packed.values)
        assert part == q.rows(r, r + 1) == q.rows(r - 700, r - 699 if r < 699 else 700)
    assert q.pattern == fs.pattern("2:4")


def test_five_bits_a_weight():
    w = np.random.default_rng(0).standard_normal((64, 4096)).astype(BF16)
    q = fs.compress(w, "50%").quantize()
    assert q.nbytes == w.size * 5 // 8 + 8 * 65 + 4 * 64
    assert q.dense_nbytes == w.nbytes
    assert q.ratio == q.nbytes / w.nbytes
    assert repr(q) == "<QuantizedArray 64×4096 bfloat16 in 8 bits, 50.0 % sparse, 164.6 kB (0.31 of dense)>"


@pytest.mark.parametrize("largest", [np.finfo(F32).max, 1e38, np.finfo(F32).tiny, np.finfo(F32).smallest_subnormal])
def test_ends_of_the_range(largest):
    w = np.array([[largest, -largest, largest / 2]], F32)
    q = fs.pack(w).quantize()
    assert q.packed.values[0] == 127
    assert np.isfinite(q.to_dense()).all()
    if largest >= np.finfo(F32).tiny:
        assert np.allclose(q.to_dense() / largest, w / largest, atol=1 / 254, rtol=0)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda t: t.name)
def test_linear_is_that_of_the_parts(dtype):
    w, keep = weights(33, 257, BF16)
    q = fs.pack(w, keep).quantize()
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((5, 257)).astype(dtype), rng.standard_normal(33).astype(F32)
    y = fs.linear(x, q, bias)
    assert y.dtype == dtype
    assert np.array_equal(y, fs.linear(x, q.packed, bias, weight_scale=q.scale))
    assert np.array_equal(q @ x.T, fs.linear(x, q).T)
    wide = x.astype(F64) @ q.to_dense().astype(F64).T + bias
    assert np.abs(y.astype(F64) - wide).max() < 0.02 * np.abs(wide).max()


def test_copies_and_equality():
    q = fs.compress(np.random.default_rng(0).standard_normal((8, 64)).astype(F16), "50%").quantize()
    for other in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert other == q
        assert other.dtype == F16
    twice = fs.QuantizedArray.from_parts(q.packed, q.scale * 2, F16)
    assert twice != q
    assert fs.QuantizedArray.from_parts(q.packed, q.scale, F32) != q
    assert q != q.packed
    with pytest.raises(ValueError, match="read-only"):
        q.scale[0] = 1
    with pytest.raises(TypeError, match="use to_dense"):
        np.asarray(q)


def test_what_is_refused():
    s = fs.compress(np.ones((4, 16), F32), "50%")
    q = s.quantize()
    with pytest.raises(fs.FastSparseError, match="bits: expected 8, or None for weights as they are, got 4"):
        s.quantize(4)
    with pytest.raises(fs.FastSparseError, match="dtype: expected float64, float32, float16, bfloat16, got int8"):
        q.packed.quantize()
    for wrong in (np.inf, np.nan):
        w = np.ones((4, 16), F32)
        w[2, 3] = wrong
        with pytest.raises(fs.FastSparseError, match=f"row 2: its largest magnitude is {wrong}"):
            fs.pack(w).quantize()
    with pytest.raises(fs.FastSparseError, match="row 0: its largest magnitude is inf in float32"):
        fs.pack(np.array([[1e300]])).quantize()
    with pytest.raises(fs.FastSparseError, match="weight_scale: a QuantizedArray has scales of its own"):
        fs.linear(np.ones(16, F32), q, weight_scale=q.scale)
    with pytest.raises(TypeError, match=r"use BitmaskArray\.quantize"):
        fs.QuantizedArray()


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (np.ones(3, F32), F32, r"scale: expected float32 of shape \(4,\), got float32 of \(3,\)"),
        (np.ones(4, F64), F32, "scale: expected float32 of shape"),
        (np.array([1, -1, 1, 1], F32), F32, "scale: that of row 1 is -1.0"),
        (np.array([1, 1, np.nan, 1], F32), F32, "scale: that of row 2 is nan"),
        (np.ones(4, F32), I8, "dtype: expected float64, float32, float16, bfloat16, got int8"),
    ],
)
def test_parts_that_do_not_fit(scale, dtype, message):
    packed = fs.pack(np.ones((4, 8), I8))
    with pytest.raises(fs.FormatError, match=message):
        fs.QuantizedArray.from_parts(packed, scale, dtype)
    with pytest.raises(fs.FormatError, match="packed: expected a BitmaskArray of int8"):
        fs.QuantizedArray.from_parts(fs.pack(np.ones((4, 8), F32)), np.ones(4, F32), F32)
