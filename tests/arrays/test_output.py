"""`prune`, `apply_mask` and `out=`."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, NAMES, patterns, tensors, weights
from test_masks import bool_arrays

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


def writers(w, keep):
    """Everything that takes `out`, as functions of it, each with the wanted result."""
    s, mask = fs.pack(w, keep), fs.Bitmask.from_bool(keep)
    wanted = oracle.dense(w, keep)
    yield "apply_mask", lambda out: fs.apply_mask(w, mask, out=out), wanted
    yield "prune", lambda out: fs.prune(w, "50%", out=out), oracle.dense(w, oracle.select(w, fs.pattern("50%")))
    yield "to_dense", lambda out: s.to_dense(out), wanted
    yield "unpack", lambda out: fs.unpack(s, out=out), wanted


@given(st.data())
def test_prune(data):
    w = data.draw(tensors())
    pattern = data.draw(patterns(w.ndim))
    wanted = oracle.dense(w, oracle.select(w, pattern))
    pruned = fs.prune(w, pattern)
    assert isinstance(pruned, np.ndarray)
    assert oracle.same_bits(pruned, wanted)
    assert fs.prune(w, pattern, out=w) is w
    assert oracle.same_bits(w, wanted)


@given(st.data())
def test_apply_mask(data):
    w = data.draw(tensors())
    keep = data.draw(bool_arrays(w.shape))
    wanted = oracle.dense(w, keep)
    for mask in (keep, fs.Bitmask.from_bool(keep)):
        masked = fs.apply_mask(w, mask)
        assert isinstance(masked, np.ndarray)
        assert oracle.same_bits(masked, wanted)
        assert not np.shares_memory(masked, w)
    assert fs.apply_mask(w, keep, out=w) is w
    assert oracle.same_bits(w, wanted)


def test_every_bit_survives_apply_mask():
    w = np.float32([np.nan, -0.0, np.inf, 1])
    w.view(np.uint32)[0] = 0xFFC0_1234
    masked = fs.apply_mask(w, [True, True, True, False])
    assert masked.view(np.uint32).tolist() == [0xFFC0_1234, 0x8000_0000, 0x7F80_0000, 0]


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (13, 70), (400, 1003)])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_out_is_filled_and_returned(dtype, shape):
    w = weights(shape, dtype, 1)
    keep = np.asarray(np.random.default_rng(2).random(shape) < 0.5)
    before = w.copy()
    for _, write, wanted in writers(w, keep):
        out = np.full(shape, 7, dtype)
        assert write(out) is out
        assert oracle.same_bits(out, wanted)
        assert oracle.same_bits(w, before)


def test_out_may_start_anywhere():
    """Stores that want alignment have to find it themselves; what lies around the output stays."""
    w = weights((9, 1021), np.float16, 3)
    keep = np.random.default_rng(4).random(w.shape) < 0.5
    for start in range(33):
        room = np.full(w.size + 64, 7, w.dtype)
        out = room[start : start + w.size].reshape(w.shape)
        for _, write, wanted in writers(w, keep):
            write(out)
            assert oracle.same_bits(out, wanted)
            assert (room[:start] == 7).all()
            assert (room[start + w.size :] == 7).all()


WRONG = [
    (lambda: np.ones((4, 4), np.float32), r"got shape \(4, 4\) and dtype float32"),
    (lambda: np.ones(15, np.float32), r"got shape \(15,\) and dtype float32"),
    (lambda: np.ones((3, 5), np.float64), r"got shape \(3, 5\) and dtype float64"),
    (lambda: np.ones((3, 5), np.int32), "dtype int32"),
    (lambda: np.ones((3, 5), ">f4"), "dtype >f4"),
    (lambda: np.ones((5, 3), np.float32).T, "not C-contiguous"),
    (lambda: np.ones((3, 10), np.float32)[:, ::2], "not C-contiguous"),
    (lambda: np.zeros(61, np.uint8)[1:].view(np.float32).reshape(3, 5), "aligned"),
    (lambda: np.broadcast_to(np.float32(1), (3, 5)), "got"),
    (lambda: [[1.0] * 5] * 3, "got list"),
    (lambda: np.float32(1), "got float32"),
    (lambda: memoryview(np.ones((3, 5), np.float32)), "got memoryview"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_out_that_does_not_fit(make, message):
    w = weights((3, 5), np.float32, 5)
    pattern = rf"out: expected a writeable C-contiguous array of shape \(3, 5\) and dtype float32, .*{message}"
    for _, write, _ in writers(w, np.ones((3, 5), bool)):
        with pytest.raises(fs.FastSparseError, match=pattern):
            write(make())


def test_out_that_is_read_only():
    out = np.ones((3, 5), np.float32)
    out.flags.writeable = False
    for _, write, _ in writers(weights((3, 5), np.float32, 6), np.ones((3, 5), bool)):
        with pytest.raises(fs.FastSparseError, match=r"out: expected a writeable .* read-only"):
            write(out)
    assert (out == 1).all()


def test_out_that_overlaps_the_weights():
    room = weights((700,), np.float32, 7)
    before = room.copy()
    for start in (1, 16, 99):
        w, out = room[:100], room[start : start + 100]
        for call, argument in ((fs.prune, "50%"), (fs.apply_mask, np.ones(100, bool))):
            with pytest.raises(fs.FastSparseError, match="out overlaps w; only the input itself is allowed"):
                call(w, argument, out=out)
    w, out = room[:100].reshape(10, 10).T, room[:100].reshape(10, 10)
    with pytest.raises(fs.FastSparseError, match="out overlaps w; only the input itself is allowed"):
        fs.prune(w, "50%", out=out)
    assert oracle.same_bits(room, before)


def test_out_that_overlaps_weights_that_are_no_array():
    """What `np.asarray` makes of an object may lie in the memory of `out` too."""
    room = weights((200,), np.float32, 8)
    with pytest.raises(fs.FastSparseError, match="out overlaps w"):
        fs.prune(memoryview(room[:100]), "50%", out=room[1:101])
    wanted = fs.prune(room[:100].copy(), "50%")
    fs.prune(memoryview(room[:100]), "50%", out=room[:100])
    assert oracle.same_bits(room[:100], wanted)


def test_out_that_overlaps_other_inputs():
    w, other = weights((64,), np.float32, 9), weights((64,), np.float32, 10)
    with pytest.raises(fs.FastSparseError, match="out overlaps scores"):
        fs.prune(w, "50%", out=other, scores=other)
    with pytest.raises(fs.FastSparseError, match="out overlaps scores"):
        fs.prune(w, "50%", out=w, scores=w)
    scale = np.abs(other)
    with pytest.raises(fs.FastSparseError, match="out overlaps column_scale"):
        fs.prune(w, "50%", out=scale, column_scale=scale)


def test_out_that_overlaps_the_mask():
    bits = np.full((8, 1), 0x0F, np.uint8)
    mask = fs.Bitmask.from_bits(bits, (8, 8))
    room = np.ones((8, 8), np.uint8)
    assert fs.apply_mask(room, mask, out=room).sum() == 32
    shared = np.full(71, 0xFF, np.uint8)
    mask = fs.Bitmask.from_bits(shared[:8].reshape(8, 1), (8, 8))
    with pytest.raises(fs.FastSparseError, match="out overlaps mask"):
        fs.apply_mask(room, mask, out=shared[:64].reshape(8, 8))
    w = shared[:64].reshape(8, 8)
    with pytest.raises(fs.FastSparseError, match="out overlaps mask"):
        fs.apply_mask(w, mask, out=w)


def test_out_that_overlaps_the_parts():
    values = np.arange(1, 65, dtype=np.uint8)
    s = fs.BitmaskArray.from_parts(values, np.full((1, 8), 0xFF, np.uint8), (64,))
    with pytest.raises(fs.FastSparseError, match="out overlaps values"):
        s.to_dense(values)
    bits = np.full(64, 0, np.uint8)
    s = fs.BitmaskArray.from_parts(np.zeros(0, np.uint8), bits[:8].reshape(1, 8), (64,))
    with pytest.raises(fs.FastSparseError, match="out overlaps bitmask"):
        s.to_dense(bits)


@pytest.mark.parametrize("pattern", ["50%", "2:4", "50%/2x2", "threshold=1"])
def test_out_is_untouched_where_prune_raises(pattern):
    w = weights((64, 64), np.float32, 11)
    w[63, 63] = np.nan
    before = w.copy()
    out = np.full(w.shape, 7, w.dtype)
    for target in (out, w):
        with pytest.raises(fs.FastSparseError, match="NaN"):
            fs.prune(w, pattern, out=target)
    assert (out == 7).all()
    assert oracle.same_bits(w, before)
    with pytest.raises(fs.FastSparseError, match="mask: shape"):
        fs.apply_mask(w, np.ones((64, 65), bool), out=w)
    assert oracle.same_bits(w, before)


def test_scores_do_not_change_what_survives():
    w = np.float32([np.nan, -0.0, 3, 4])
    pruned = fs.prune(w, "50%", scores=[4.0, 3, 2, 1])
    assert oracle.same_bits(pruned, oracle.dense(w, np.array([True, True, False, False])))
