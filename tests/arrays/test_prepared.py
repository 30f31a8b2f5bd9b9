"""Prepared weights: the same numbers as packed ones, and back."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_linear import assert_close, each_pair, numbers, packed

import fastsparse as fs
from fastsparse import _backend, _numpy
from fastsparse.prepared import in_form

pytestmark = pytest.mark.usefixtures("backend")

F32, F16, BF16 = (np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def laid(s, in_bytes):
    """By indices, in the layout that belongs to columns of one byte or two."""
    p = in_form(s, "indices")
    p._layout = _backend.active.index(s.values, s.bitmask, s.row_offsets, s.shape, in_bytes)
    return p


each_layout = pytest.mark.parametrize("in_bytes", [True, False], ids=["bytes", "pairs"])


@each_pair
@each_layout
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (33, 257), (20, 255), (16, 510), (7, 5)])
def test_indices_against_float64(dtype, x_dtype, in_bytes, shape):
    for batch in (0, 1, 2, 5):
        s, dense = packed(shape, dtype, seed=batch)
        p = laid(s, in_bytes)
        x, bias = numbers((batch, shape[1]), x_dtype, 1), numbers(shape[0], F32, 2)
        got = fs.linear(x, p)
        assert got.dtype == x_dtype
        assert_close(got, x, dense)
        assert_close(fs.linear(x, p, bias), x, dense, bias)


@each_pair
@each_layout
@pytest.mark.parametrize(("shape", "sparsity"), [((300, 2999), 0.9), ((300, 2999), 0.98), ((16, 20_001), 0.95)])
def test_large(dtype, x_dtype, in_bytes, shape, sparsity):
    w = numbers(shape, dtype, 3)
    s = fs.compress(w, fs.Unstructured(sparsity))
    x = numbers((3, shape[1]), x_dtype, 5)
    assert_close(fs.linear(x, laid(s, in_bytes)), x, s.to_dense().astype(np.float64))


@given(st.integers(0, 40), st.integers(0, 600), st.sampled_from([0, 0.5, 0.95, 1]), st.booleans(), st.integers(0, 99))
def test_there_and_back(rows, cols, sparsity, in_bytes, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(F32)
    w[rng.random(w.shape) < 0.1] = -0.0
    s = fs.pack(w, rng.random(w.shape) >= sparsity)
    p = laid(s, in_bytes)
    assert p.to_packed() == s
    twin = _numpy.index(s.values, s.bitmask, s.row_offsets, s.shape, in_bytes)
    for part, expected in zip(p._layout, twin, strict=True):
        assert part.dtype == expected.dtype
        assert np.array_equal(part, expected)
        assert not part.flags.writeable


def test_one_row_holds_everything():
    w = np.zeros((40, 300), F32)
    w[17] = np.arange(300)
    s = fs.pack(w, np.broadcast_to(np.arange(40)[:, None] == 17, w.shape).copy())
    p = in_form(s, "indices")
    assert p.to_packed() == s
    assert np.array_equal(p @ np.ones(300, F32), w.sum(axis=1))


@each_pair
@each_layout
def test_threads_do_not_change_a_bit(dtype, x_dtype, in_bytes):
    p = laid(packed((83, 2001), dtype)[0], in_bytes)
    for batch in (1, 3):
        x = numbers((batch, 2001), x_dtype, 1)
        results = []
        for threads in (1, 2, 5):
            fs.set_num_threads(threads)
            results.append(fs.linear(x, p).tobytes())
        assert len(set(results)) == 1


@each_pair
@each_layout
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_a_dropped_weight_contributes_nothing(dtype, x_dtype, in_bytes, special):
    s, dense = packed((21, 300), dtype)
    x = numbers((2, 300), x_dtype, 1)
    x[1, 255] = x[1, 33] = special
    got = fs.linear(x, laid(s, in_bytes)).astype(np.float64)
    kept = (dense[:, 255] != 0) | (dense[:, 33] != 0)
    assert kept.any()
    assert not kept.all()
    assert not np.isfinite(got[1, kept]).any()
    x[1, 255] = x[1, 33] = 0
    assert_close(got[1:][:, ~kept].astype(x_dtype), x[1:], dense[~kept])


@each_pair
@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_special_weights(dtype, x_dtype, special):
    w = np.ones((5, 70), dtype)
    w[3, 7] = special
    got = fs.linear(np.ones((2, 70), x_dtype), in_form(fs.pack(w), "indices")).astype(np.float64)
    assert np.array_equal(got[:, 3], np.full(2, special), equal_nan=True)
    assert np.array_equal(np.delete(got, 3, axis=1), np.full((2, 4), 70.0))


@each_pair
@pytest.mark.parametrize("block", ["16x16", "1x16", "4x1", "8x3", "64x40", "4x4", 8])
def test_blocks_against_float64(dtype, x_dtype, block):
    w = numbers((70, 330), dtype, 1)
    s = fs.compress(w, fs.Block(block, 0.6) if isinstance(block, int) else f"60%/{block}")
    p = in_form(s, "blocks")
    assert p.form == "blocks"
    assert p.to_packed() == s
    assert p.to_packed().pattern == s.pattern
    twin = _numpy.lay_blocks(s.values, s.bitmask, s.row_offsets, s.shape, p._block)
    for part, expected in zip(p._blocks, twin, strict=True):
        assert part.dtype == expected.dtype
        assert np.array_equal(part, expected)
        assert not part.flags.writeable
    for batch in (0, 1, 3, 20, 70):
        x, bias = numbers((batch, 330), x_dtype, batch), numbers(70, F32, 2)
        assert_close(fs.linear(x, p, bias), x, s.to_dense().astype(np.float64), bias)


def test_blocks_are_chosen(backend):
    s = fs.compress(numbers((64, 512), F32, 1), "75%/16x16")
    native = backend != "numpy"
    assert s.prepare().form == s.prepare(batch=64).form == ("blocks" if native else "mask")
    assert fs.compress(numbers((64, 512), F32, 1), "75%/1x2").prepare(batch=64).form != "blocks"
    along_rows = fs.compress(numbers((64, 512), F32, 1), fs.Block(16, 0.75, axis=0))
    assert along_rows.prepare(batch=16).form == ("blocks" if native else "mask")
    unknown = fs.pack(s.to_dense())
    assert unknown.prepare(batch=16).form == "mask"
    with pytest.raises(fs.FastSparseError, match="block pattern"):
        in_form(unknown, "blocks")


def test_blocks_that_disagree(backend):
    if backend == "numpy":
        return  # takes layouts of its own only
    native, shape, block = _backend.active, (40, 320), (4, 4)
    s = fs.compress(np.ones(shape, F32), "50%/4x4")
    values, index, starts = in_form(s, "blocks")._blocks
    x = np.ones(320, F32)
    for part, right in enumerate((index, starts), 1):
        for wrong in (swapped(right), misaligned(right), right[:-1], right.astype(np.int32), right[::-1]):
            parts = [values, index, starts]
            parts[part] = wrong
            with pytest.raises(fs.FastSparseError):
                native.linear_blocks(*parts, shape, block, x, None, None)
            with pytest.raises(fs.FastSparseError):
                native.unlay_blocks(*parts, shape, block, s.nnz)
    with pytest.raises(fs.FastSparseError):
        native.linear_blocks(values[:-1], index, starts, shape, block, x, None, None)
    for wrong in ((0, 4), (4, 0), (4, 8), (2**63, 2)):
        with pytest.raises(fs.FastSparseError):
            native.linear_blocks(values, index, starts, shape, wrong, x, None, None)
    with pytest.raises(fs.FastSparseError, match="neither kept nor dropped"):
        native.lay_blocks(s.values, s.bitmask, s.row_offsets, shape, (8, 8))
    for kept in (0, s.nnz - 1, s.nnz + 1, 2**40):
        with pytest.raises(fs.FastSparseError):
            native.unlay_blocks(values, index, starts, shape, block, kept)


@pytest.mark.parametrize("form", ["mask", "indices", "blocks"])
def test_the_object(form):
    s = fs.compress(numbers((6, 5, 8), BF16, 1), "75%/2x4" if form == "blocks" else "3:4")
    p = in_form(s, form)
    assert (p.form, p.shape, p.dtype, p.nnz) == (form, s.shape, s.dtype, s.nnz)
    assert form in repr(p)
    assert p.nbytes > 0
    x = numbers((4, 40), BF16, 2)
    out = np.empty((4, 6), BF16)
    assert fs.linear(x, p, out=out) is out
    assert np.array_equal(out, (p @ x.T).T)
    for twin in (pickle.loads(pickle.dumps(p)), __import__("copy").deepcopy(p), __import__("copy").copy(p)):
        assert twin.form == form
        assert twin.to_packed() == s
        assert twin.to_packed().pattern == s.pattern
        assert np.array_equal(fs.linear(x, twin), out)
    with pytest.raises(TypeError, match="to_packed"):
        np.asarray(p)
    with pytest.raises(TypeError, match="prepare"):
        fs.PreparedWeights()
    with pytest.raises(AttributeError):
        p.form = "mask"


def test_prepare_chooses(backend):
    w = numbers((64, 512), F32, 1)
    few, many = fs.compress(w, "95%"), fs.compress(w, "50%")
    assert few.prepare().form == ("indices" if backend in ("avx2", "avx512", "amx") else "mask")
    assert few.prepare(batch=np.int64(64)).form == many.prepare().form == "mask"
    assert many.prepare().to_packed() is many
    q = fs.compress(np.arange(64, dtype=np.int8).reshape(8, 8), "95%")
    assert q.prepare().form == "mask"
    x = np.ones((1, 8), F32)
    assert np.array_equal(fs.linear(x, q.prepare(), weight_scale=1.0), fs.linear(x, q, weight_scale=1.0))


P = in_form(fs.pack(np.ones((2, 3), F32)), "indices")
OVERLAP = np.ones(3, F32)
CALLS = {
    "x dtype": lambda: fs.linear(np.ones(3), P),
    "columns": lambda: fs.linear(np.ones(4, F32), P),
    "bias": lambda: fs.linear(np.ones(3, F32), P, np.ones(3, F32)),
    "out": lambda: fs.linear(np.ones(3, F32), P, out=np.ones(3, F32)),
    "overlap": lambda: fs.linear(OVERLAP, P, out=OVERLAP[:2]),
    "scale": lambda: fs.linear(np.ones(3, F32), P, weight_scale=1.0),
    "three dimensions": lambda: P @ np.ones((3, 1, 1), F32),
    "batch": lambda: fs.pack(np.ones((2, 3), F32)).prepare(batch=0),
    "no batch": lambda: fs.pack(np.ones((2, 3), F32)).prepare(batch=1.5),
    "one dimension": lambda: fs.pack(np.ones(3, F32)).prepare(),
    "float64": lambda: in_form(fs.pack(np.ones((2, 3))), "indices"),
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


def swapped(array):
    """The same numbers in the other byte order; None where there is only one."""
    return None if array.itemsize == 1 else array.astype(array.dtype.newbyteorder())


def misaligned(array):
    """The same numbers at an odd address; None where that is no matter."""
    if array.itemsize == 1:
        return None
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


@each_layout
def test_layouts_that_disagree(backend, in_bytes):
    if backend == "numpy":
        return  # takes layouts of its own only
    native = _backend.active
    values, columns, steps, starts = laid(fs.pack(np.ones((40, 600), F32)), in_bytes)._layout
    x = np.ones(600, F32)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values[:-1], columns[:-1], steps, starts, (40, 600), x, None, None)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values, columns, steps + np.uint16(1), starts, (40, 600), x, None, None)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values, columns, steps, -starts, (40, 600), x, None, None)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values, columns[:, :8], steps, starts, (40, 600), x, None, None)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values, columns.astype(np.int32), steps, starts, (40, 600), x, None, None)
    with pytest.raises(fs.FastSparseError):
        native.linear_indexed(values, columns, steps.astype(np.uint8), starts, (40, 600), x, None, None)
    for part, right in enumerate((columns, steps, starts), 1):
        for wrong in (swapped(right), misaligned(right)):
            if wrong is not None:
                parts = [values, columns, steps, starts]
                parts[part] = wrong
                with pytest.raises(fs.FastSparseError):
                    native.linear_indexed(*parts, (40, 600), x, None, None)
                with pytest.raises(fs.FastSparseError):
                    native.unindex(*parts, (40, 600), 24_000)
    for kept in (0, 23_999, 24_001, 2**40):
        with pytest.raises(fs.FastSparseError):
            native.unindex(values, columns, steps, starts, (40, 600), kept)
    with pytest.raises(fs.FastSparseError):
        native.unindex(values, np.zeros_like(columns), steps, starts, (40, 600), 24_000)
