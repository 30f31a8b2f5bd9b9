"""`linear` and `@` against float64 and against dense float32."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import _backend

pytestmark = pytest.mark.usefixtures("backend")

F32, F16, BF16 = (np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
PAIRS = [(F32, F32), (F16, F32), (BF16, F32), (F16, F16), (BF16, BF16)]
IDS = [f"{w.name}-{x.name}" for w, x in PAIRS]
each_pair = pytest.mark.parametrize(("dtype", "x_dtype"), PAIRS, ids=IDS)


def numbers(shape, dtype, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def packed(shape, dtype, sparsity=0.5, seed=0):
    """Weights with an empty row and an empty run of columns, packed, and as float64."""
    w = numbers(shape, dtype, seed)
    if len(shape) == 2:
        w[shape[0] // 2] = 0
        w[:, 64:140] = 0
    s = fs.pack(w, np.array(np.abs(w.astype(np.float64)) > sparsity) if sparsity else None)
    return s, s.to_dense().astype(np.float64).reshape(shape[0], -1)


def assert_close(got, x, dense, bias=0.0):
    """The error of the sums is at most twice that of dense float32, and the result is rounded once."""
    exact = x.astype(np.float64) @ dense.T + bias
    naive = x.astype(np.float32) @ dense.astype(np.float32).T + np.float32(bias)
    terms = np.abs(x.astype(np.float64)) @ np.abs(dense).T + np.abs(bias)
    step = float(ml_dtypes.finfo(got.dtype).eps) / 2
    allowed = 2 * np.max(np.abs(naive - exact), initial=0) + 2**-23 * terms + step * np.abs(exact) + 1e-7
    assert got.shape == exact.shape
    assert np.all(np.abs(got.astype(np.float64) - exact) <= allowed)


@each_pair
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 17, 70])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (33, 257), (20, 64), (7, 5)])
def test_against_float64(dtype, x_dtype, batch, shape):
    s, dense = packed(shape, dtype, seed=batch)
    x = numbers((batch, shape[1]), x_dtype, 1)
    got = fs.linear(x, s)
    assert got.dtype == x_dtype
    assert_close(got, x, dense)
    bias = numbers(shape[0], F32, 2)
    assert_close(fs.linear(x, s, bias), x, dense, bias)


@each_pair
def test_large(dtype, x_dtype):
    s, dense = packed((300, 2999), dtype, sparsity=1.0)
    x = numbers((3, 2999), x_dtype, 5)
    assert_close(fs.linear(x, s), x, dense)


def test_leading_shapes_and_matrix_view():
    s, dense = packed((6, 5, 3), F32)
    for lead in [(), (2,), (2, 3), (0,), (2, 0, 3), (1, 1, 4)]:
        x = numbers((*lead, 15), F32, 3)
        got = fs.linear(x, s)
        assert got.shape == (*lead, 6)
        assert_close(got, x, dense)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 2)])
def test_empty(shape):
    s = fs.pack(np.ones(shape, F32))
    cols = int(np.prod(shape[1:]))
    bias = np.arange(shape[0], dtype=F32)
    for lead in [(), (2,), (7,), (0,)]:
        x = np.ones((*lead, cols), F32)
        assert np.array_equal(fs.linear(x, s), np.zeros((*lead, shape[0])))
        assert np.array_equal(fs.linear(x, s, bias), np.broadcast_to(bias, (*lead, shape[0])))


@each_pair
def test_matmul(dtype, x_dtype):
    s, dense = packed((9, 70), dtype)
    vector, matrix = numbers(70, x_dtype, 1), numbers((70, 6), x_dtype, 2)
    assert_close(s @ vector, vector, dense)
    got = s @ matrix
    assert got.shape == (9, 6)
    assert got.flags.c_contiguous
    assert_close(np.ascontiguousarray(got.T), np.ascontiguousarray(matrix.T), dense)
    with pytest.raises(fs.FastSparseError, match="x: expected one or two dimensions"):
        s @ np.ones((2, 70, 1), F32)
    with pytest.raises(TypeError):
        matrix.T @ s


def test_lists_and_strides():
    s, dense = packed((4, 6), F32, sparsity=0)
    x = numbers((12, 6), F32, 4)
    assert_close(fs.linear(x[::3], s), x[::3], dense)
    assert_close(fs.linear(np.asfortranarray(x), s), x, dense)
    with pytest.raises(fs.FastSparseError, match="float64"):
        fs.linear([1.0] * 6, s)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda t: t.name)
def test_bias_dtypes(dtype):
    s, dense = packed((4, 6), BF16)
    x, bias = numbers((3, 6), F32, 1), numbers(4, dtype, 2)
    assert_close(fs.linear(x, s, bias), x, dense, bias.astype(np.float64))


@each_pair
def test_out(dtype, x_dtype):
    s, _ = packed((5, 66), dtype)
    x = numbers((2, 3, 66), x_dtype, 1)
    out = np.empty((2, 3, 5), x_dtype)
    assert fs.linear(x, s, out=out) is out
    assert np.array_equal(out, fs.linear(x, s))


@each_pair
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_threads_do_not_change_a_bit(dtype, x_dtype, batch):
    s, _ = packed((203, 2001), dtype)
    x = numbers((batch, 2001), x_dtype, 1)
    results = []
    for threads in (1, 2, 5):
        fs.set_num_threads(threads)
        results.append(fs.linear(x, s).tobytes())
    assert len(set(results)) == 1


@each_pair
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_a_dropped_weight_contributes_nothing(dtype, x_dtype, batch, special):
    s, dense = packed((21, 150), dtype)
    x = numbers((batch, 150), x_dtype, 1)
    col = 33
    x[-1, col] = 0
    clean = fs.linear(x, s).astype(np.float64)
    x[-1, col] = special
    got = fs.linear(x, s).astype(np.float64)
    kept = dense[:, col] != 0
    assert kept.any()
    assert not kept.all()
    with np.errstate(invalid="ignore"):
        expected = np.where(kept, special * dense[:, col], clean[-1])
    assert np.allclose(got[-1], expected, rtol=0.02, atol=1e-2, equal_nan=True)
    assert np.allclose(got[:-1], clean[:-1], rtol=0.02, atol=1e-2)


@each_pair
@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_special_weights(dtype, x_dtype, special):
    w = np.ones((5, 70), dtype)
    w[3, 7] = special
    for batch in (1, 6):
        got = fs.linear(np.ones((batch, 70), x_dtype), fs.pack(w)).astype(np.float64)
        assert np.array_equal(got[:, 3], np.full(batch, special), equal_nan=True)
        assert np.array_equal(np.delete(got, 3, axis=1), np.full((batch, 4), 70.0))


def test_overflow_is_infinite():
    s = fs.pack(np.full((2, 64), 60000, F16))
    assert np.array_equal(fs.linear(np.ones((1, 64), F16), s), [[np.inf, np.inf]])


S = {dtype: fs.pack(np.ones((2, 3), dtype)) for dtype in (F32, F16, BF16, np.dtype("f8"))}
OVERLAP = np.ones(3, F32)
CALLS = {
    "weights": lambda: fs.linear(np.ones(3), S[np.dtype("f8")]),
    "x of float64": lambda: fs.linear(np.ones(3), S[F32]),
    "x of another dtype": lambda: fs.linear(np.ones(3, BF16), S[F16]),
    "x of no dtype": lambda: fs.linear(np.ones(3, bool), S[F16]),
    "columns": lambda: fs.linear(np.ones((3, 2), F32), S[F32]),
    "no columns": lambda: fs.linear(np.float32(1), S[F32]),
    "bias shape": lambda: fs.linear(np.ones(3, F32), S[F32], np.ones(3, F32)),
    "bias dtype": lambda: fs.linear(np.ones(3, F32), S[F32], np.ones(2)),
    "out shape": lambda: fs.linear(np.ones(3, F32), S[F32], out=np.ones(3, F32)),
    "out dtype": lambda: fs.linear(np.ones(3, F32), S[BF16], out=np.ones(2, BF16)),
    "out overlaps": lambda: fs.linear(OVERLAP, S[F32], out=OVERLAP[:2]),
    "one dimension": lambda: fs.linear(np.ones(3, F32), fs.pack(np.ones(3, F32))),
    "dense weights": lambda: fs.linear(np.ones(3, F32), np.ones((2, 3), F32)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_messages_are_the_same(call, monkeypatch):
    from fastsparse import _numpy

    messages = []
    for _ in range(2):
        with pytest.raises(fs.FastSparseError) as caught:
            call()
        messages.append(str(caught.value))
        monkeypatch.setattr(_backend, "active", _numpy)
    assert messages[0] == messages[1]


def test_parts_that_disagree():
    s = fs.pack(np.ones((5, 70), F32))
    x = np.ones((1, 70), F32)
    with pytest.raises(fs.FastSparseError):
        _backend.active.linear(s.values[:-1], s.bitmask, s.row_offsets, s.shape, x, None, None, None)


OUT_OF_MEMORY = """
import resource
import numpy as np
import fastsparse as fs
from fastsparse.prepared import in_form
s = fs.pack(np.ones((1, 200_000), np.float16))
p = in_form(s, "indices")
x = np.ones((300, 200_000), np.float16)
q = fs.pack(np.ones((1, 200_000), np.int8))
fs.linear(x[:1], s)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
for weights, scale in ((s, None), (p, None), (q, 1.0)):
    try:
        fs.linear(x, weights, weight_scale=scale)
    except MemoryError as error:
        assert "bytes" in str(error), error
    else:
        raise AssertionError("enough memory")
print(fs.linear(x[:1], s)[0, 0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory as Linux has them")
def test_memory_that_cannot_be_had(backend):
    if backend != "scalar":
        return  # once: the program takes the best there is
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["inf"]
