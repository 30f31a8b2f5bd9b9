"""`linear` with int8 weights against sums of integers, and its error against that of a dense int8 layer."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse import _backend, _numpy

pytestmark = pytest.mark.usefixtures("backend")

F32, F16, BF16, I8 = (np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8))
each_float = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda t: t.name)


def layer(rows, cols, sparsity=0.5, seed=0):
    """Weights with an empty row and an empty run of columns, packed, as int64, and their scales."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (rows, cols), dtype=I8)
    keep = rng.random((rows, cols)) >= sparsity
    keep[rows // 2] = False
    keep[:, 64:140] = False
    return fs.pack(w, keep), np.where(keep, w, 0).astype(np.int64), rng.standard_normal(rows).astype(F32)


def rounded(x):
    """Steps and integers of the rows of x, one operation after the other in float32."""
    wide = x.astype(F32)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):
        whole = np.where(largest > 0, np.rint(wide / largest * F32.type(127)), 0)
    return largest / F32.type(127), whole.astype(np.int64)


def expected(x, dense, scale, bias=None):
    steps, whole = (np.ones((len(x), 1), F32), x.astype(np.int64)) if x.dtype == I8 else rounded(x)
    y = (whole @ dense.T).astype(F32) * (steps * scale)
    y = y if bias is None else y + bias
    return y.astype(F32 if x.dtype == I8 else x.dtype)


@pytest.mark.parametrize("dtype", [F32, F16, BF16, I8], ids=lambda t: t.name)
@pytest.mark.parametrize("batch", [0, 1, 2, 4, 5, 17, 70])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (33, 257), (20, 64), (7, 5)])
def test_against_integers(dtype, batch, shape):
    s, dense, scale = layer(*shape, seed=batch)
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (batch, shape[1])) if dtype == I8 else rng.standard_normal((batch, shape[1]))
    x, bias = x.astype(dtype), rng.standard_normal(shape[0]).astype(F32)
    for got, want in [
        (fs.linear(x, s, weight_scale=scale), expected(x, dense, scale)),
        (fs.linear(x, s, bias, weight_scale=scale), expected(x, dense, scale, bias)),
    ]:
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 7), st.sampled_from([0, 0.3, 0.9, 1]), st.integers(0, 99))
def test_any_shape(rows, cols, batch, sparsity, seed):
    s, dense, scale = layer(rows, cols, sparsity, seed)
    x = np.random.default_rng(seed).integers(-128, 128, (batch, cols), dtype=I8)
    assert np.array_equal(fs.linear(x, s, weight_scale=scale), expected(x, dense, scale))


def test_threads_do_not_change_a_bit():
    s, dense, scale = layer(203, 4001)
    x = np.random.default_rng(1).standard_normal((6, 4001)).astype(F32)
    for batch in (1, 6):
        for threads in (1, 2, 5):
            fs.set_num_threads(threads)
            got = fs.linear(x[:batch], s, weight_scale=scale)
            assert np.array_equal(got, expected(x[:batch], dense, scale))


def test_sums_beyond_int32():
    cols = 140_001
    s = fs.pack(np.full((2, cols), -128, I8))
    x = np.full((5, cols), -128, I8)
    want = np.full((5, 2), F32.type(cols * 128 * 128))
    assert np.array_equal(fs.linear(x, s, weight_scale=1.0), want)
    assert np.array_equal(fs.linear(x[:1], s, weight_scale=1.0), want[:1])


@each_float
def test_magnitudes_of_activations(dtype):
    s, dense, scale = layer(9, 300)
    x = np.random.default_rng(2).uniform(-1, 1, (5, 300)).astype(F32)
    x[1] *= F32.type(ml_dtypes.finfo(dtype).max) / 2
    x[2] *= F32.type(ml_dtypes.finfo(dtype).smallest_subnormal) * 9
    x[3] = 0
    x[4] = np.arange(300) % 255 / 2 - 63.5  # halves, which go to the even integer
    x = x.astype(dtype)
    with np.errstate(over="ignore"):
        want = expected(x, dense, scale)
    assert np.array_equal(fs.linear(x, s, weight_scale=scale), want)


@each_float
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_a_row_without_a_step_is_nan(dtype, special):
    s, dense, scale = layer(9, 150)
    for batch in (2, 6):
        x = np.random.default_rng(3).standard_normal((batch, 150)).astype(dtype)
        want = expected(x, dense, scale).astype(F32)
        want[1] = np.nan
        x[1, 77] = special
        got = fs.linear(x, s, weight_scale=scale).astype(F32)
        assert np.array_equal(got, want, equal_nan=True)


def test_error_is_that_of_a_dense_int8_layer():
    """Against float64, with weights and activations rounded as a dense layer with per-row scales has them."""
    rng = np.random.default_rng(4)
    w, x = rng.standard_normal((64, 2000)).astype(F32), rng.standard_normal((16, 2000)).astype(F32)
    w[np.abs(w) < 0.67] = 0
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    scale = np.abs(w).max(axis=1) / 127
    q = np.rint(w / scale[:, None]).astype(I8)
    # Activations by one step over all rows, unsigned with a zero point, as dense layers take them.
    step = (x.max() - x.min()) / 255
    zero = np.rint(-x.min() / step)
    u = np.clip(np.rint(x / step) + zero, 0, 255)
    dense = ((u - zero) @ q.astype(np.float64).T) * (step * scale)
    got = fs.linear(x, fs.pack(q), weight_scale=scale)
    assert np.sqrt(np.mean((got - exact) ** 2)) <= np.sqrt(np.mean((dense - exact) ** 2))


def test_scales():
    s, dense, scale = layer(5, 70)
    x = np.random.default_rng(5).integers(-9, 9, (3, 70), dtype=I8)
    for one in (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5, F16)):
        assert np.array_equal(fs.linear(x, s, weight_scale=one), expected(x, dense, np.full(5, 0.5, F32)))
    for dtype in (F16, BF16):
        narrow = scale.astype(dtype)
        assert np.array_equal(fs.linear(x, s, weight_scale=narrow), expected(x, dense, narrow.astype(F32)))
    assert np.array_equal(fs.linear(x, s, weight_scale=np.repeat(scale, 2)[::2]), expected(x, dense, scale))


def test_leading_shapes_and_out():
    s, dense, scale = layer(6, 75)
    for lead in [(), (2, 3), (0,), (1, 1, 4)]:
        x = np.random.default_rng(6).standard_normal((*lead, 75)).astype(BF16)
        out = np.empty((*lead, 6), BF16)
        assert fs.linear(x, s, weight_scale=scale, out=out) is out
        assert np.array_equal(out.reshape(-1, 6), expected(x.reshape(-1, 75), dense, scale))


def test_no_rows_no_columns():
    for shape in [(0, 5), (5, 0)]:
        s = fs.pack(np.ones(shape, I8))
        for dtype in (I8, F32):
            x = np.ones((2, shape[1]), dtype)
            assert np.array_equal(fs.linear(x, s, weight_scale=1.0), np.zeros((2, shape[0])))


S = {dtype: fs.pack(np.ones((2, 3), dtype)) for dtype in (I8, F32, np.dtype("u1"))}
SCALES = np.ones(2, F32)
CALLS = {
    "no scale": lambda: fs.linear(np.ones(3, F32), S[I8]),
    "scale of floats": lambda: fs.linear(np.ones(3, F32), S[F32], weight_scale=SCALES),
    "unsigned weights": lambda: fs.linear(np.ones(3, F32), S[np.dtype("u1")], weight_scale=SCALES),
    "x of float64": lambda: fs.linear(np.ones(3), S[I8], weight_scale=SCALES),
    "x of uint8": lambda: fs.linear(np.ones(3, "u1"), S[I8], weight_scale=SCALES),
    "columns": lambda: fs.linear(np.ones(4, I8), S[I8], weight_scale=SCALES),
    "scale shape": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=np.ones(3, F32)),
    "scale of one element": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=np.ones(1, F32)),
    "scale dtype": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=np.ones(2)),
    "whole scale": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=2),
    "bias shape": lambda: fs.linear(np.ones(3, I8), S[I8], np.float32(1), weight_scale=SCALES),
    "out dtype": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=SCALES, out=np.ones(2, I8)),
    "out overlaps": lambda: fs.linear(np.ones(3, I8), S[I8], weight_scale=SCALES, out=SCALES),
    "matmul": lambda: S[I8] @ np.ones(3, I8),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_messages_are_the_same(call, monkeypatch):
    messages = []
    for _ in range(2):
        with pytest.raises(fs.FastSparseError) as caught:
            call()
        messages.append(str(caught.value))
        monkeypatch.setattr(_backend, "active", _numpy)
    assert messages[0] == messages[1]
