"""BitmaskArray: packing, unpacking, its members, parts from outside, scipy."""

import copy
import pickle

import ml_dtypes
import numpy as np
import oracle
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, FLOATS, LENGTHS, NAMES, patterns, tensors, weights
from test_masks import bool_arrays

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


def check(s, w, keep):
    """`s` holds the kept elements of `w`, every bit of them, and gives them back."""
    rows, cols = oracle.matrix_view(w.shape)
    assert s.shape == w.shape
    assert s.dtype == w.dtype
    assert oracle.same_bits(s.values, w[keep].reshape(-1))
    assert np.array_equal(s.bitmask, oracle.bits_of(keep))
    assert s.row_offsets.dtype == np.int64
    assert s.row_offsets.tolist() == [0, *np.cumsum(keep.reshape(rows, cols).sum(axis=1)).tolist()]
    assert s.nnz == np.count_nonzero(keep)
    assert s.mask == fs.Bitmask.from_bool(keep)
    dense = s.to_dense()
    assert isinstance(dense, np.ndarray)
    assert dense.flags.writeable
    assert oracle.same_bits(dense, oracle.dense(w, keep))
    assert oracle.same_bits(fs.unpack(s), dense)
    for part in (s.values, s.bitmask, s.row_offsets, s.mask.bits):
        assert not part.flags.writeable
        assert part.flags.c_contiguous


@given(st.data())
def test_pack_with_a_mask(data):
    w = data.draw(tensors())
    keep = data.draw(bool_arrays(w.shape))
    check(fs.pack(w, fs.Bitmask.from_bool(keep)), w, keep)
    check(fs.pack(w, keep), w, keep)


@given(tensors())
def test_pack_without_a_mask(w):
    check(fs.pack(w), w, np.asarray(w.astype(np.float64) != 0))


@given(st.data())
def test_compress_is_select_and_pack(data):
    w = data.draw(tensors())
    pattern = data.draw(patterns(w.ndim))
    s = fs.compress(w, pattern)
    check(s, w, oracle.select(w, pattern))
    assert s.pattern == (pattern if isinstance(pattern, fs.NM | fs.TopK | fs.Block) else None)
    assert fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern=s.pattern) == s


@pytest.mark.parametrize("cols", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_every_width_and_density(dtype, cols):
    w = weights((5, cols), dtype, 1)
    for density in (0, 1 / 64, 0.5, 63 / 64, 1):
        keep = np.random.default_rng(cols).random(w.shape) < density
        check(fs.pack(w, keep), w, keep)


@pytest.mark.parametrize("density", [0, 0.02, 0.5, 0.98, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_large(dtype, density):
    for shape in [(331, 1003), (600_000,), (200_001, 3)]:
        w = weights(shape, dtype, 2)
        keep = np.random.default_rng(3).random(shape) < density
        check(fs.pack(w, keep), w, keep)


def test_rows_of_very_different_density():
    w = weights((64, 8192), np.float32, 4)
    keep = np.random.default_rng(5).random(w.shape) < np.linspace(0, 1, 64)[:, None] ** 4
    keep[:8], keep[40:44] = False, True
    check(fs.pack(w, keep), w, keep)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_bit_survives_under_a_mask(dtype):
    word = f"u{dtype.itemsize}"
    bits = np.random.default_rng(6).integers(0, 256, (40, 16 * dtype.itemsize), np.uint8).view(word)
    if dtype.itemsize <= 2:
        bits = np.arange(1 << (8 * dtype.itemsize), dtype=np.int64).astype(word)
    w = bits.view(dtype)  # all kinds of NaN among them
    for density in (1, 0.5):
        keep = np.random.default_rng(7).random(w.shape) < density
        assert np.array_equal(fs.pack(w, keep).values.view(word), bits[keep])
        assert np.array_equal(fs.pack(w, keep).to_dense().view(word), np.where(keep, bits, 0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_without_a_mask_nan_is_kept_and_zeros_are_not(dtype):
    w = np.array([np.nan, -0.0, 0.0, -1, -np.nan], dtype)
    s = fs.pack(w)
    assert s.mask.to_bool().tolist() == [True, False, False, True, True]
    assert oracle.same_bits(s.values, w[[0, 3, 4]])
    kept = fs.pack(w, [False, True, True, False, False])
    assert oracle.same_bits(kept.values, w[[1, 2]])
    assert oracle.same_bits(kept.to_dense()[1:2], w[1:2])


def test_unpack_takes_packed_tensors_only():
    for wrong in (np.ones(3), None, fs.Bitmask.from_bool([True])):
        with pytest.raises(fs.FastSparseError, match="s: expected a BitmaskArray or QuantizedArray, got "):
            fs.unpack(wrong)


def test_vectors_of_the_format():
    w = np.float32([[0, 7, 0, 0, 0, 0, 0, 56.3, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]])
    s = fs.pack(w)
    assert s.bitmask.tolist() == [[0x82, 0x02], [0x00, 0x02]]
    assert s.values.tolist() == np.float32([7, 56.3, 1, 2]).tolist()
    assert s.row_offsets.tolist() == [0, 3, 4]


def test_mask_of_another_shape():
    for mask in (np.ones((4, 2), bool), np.ones(8, bool), fs.Bitmask.from_bool(np.ones((2, 4, 1), bool))):
        with pytest.raises(fs.FastSparseError, match=r"mask: shape \(.*\) does not match w's shape \(2, 4\)"):
            fs.pack(np.ones((2, 4)), mask)


def test_non_contiguous_weights():
    base = weights((12, 40), np.float16, 8)
    for w in (
        base.T,
        base[::2],
        base[:, ::3],
        base[::-1, ::-1],
        np.broadcast_to(base[0], (5, 40)),
        np.asfortranarray(base),
    ):
        keep = np.random.default_rng(9).random(w.shape) < 0.5
        check(fs.pack(w, keep), w, keep)


# Members


def test_sizes():
    s = fs.compress(weights((100, 1000), np.float32, 10), "50%")
    assert s.nnz == 50_000
    assert s.sparsity == 0.5
    assert s.nbytes == 4 * 50_000 + 100 * 125 + 8 * 101
    assert s.dense_nbytes == 400_000
    assert s.ratio == s.nbytes / 400_000
    assert all(type(x) is int for x in (s.nnz, s.nbytes, s.dense_nbytes))
    empty = fs.pack(np.zeros((0, 5)))
    assert (empty.sparsity, empty.dense_nbytes, empty.ratio) == (0.0, 0, float("inf"))


def test_repr():
    values, bits = np.zeros(4096 * 5504, ml_dtypes.bfloat16), np.full((4096, 1376), 0x55, np.uint8)
    s = fs.BitmaskArray.from_parts(values, bits, (4096, 11008))
    assert repr(s) == "<BitmaskArray 4096×11008 bfloat16, 50.0 % sparse, 50.7 MB (0.56 of dense)>"
    assert repr(fs.pack(np.float32(3))) == "<BitmaskArray scalar float32, 0.0 % sparse, 21 B (5.25 of dense)>"
    assert repr(fs.pack(np.zeros((0, 5), np.int8))) == "<BitmaskArray 0×5 int8, 0.0 % sparse, 8 B>"
    assert repr(fs.pack(np.arange(2000.0))) == "<BitmaskArray 2000 float64, 0.0 % sparse, 16.2 kB (1.01 of dense)>"


def test_immutable():
    w = np.ones(4, np.float32)
    s = fs.pack(w)
    w[:] = 0
    assert s.to_dense().tolist() == [1, 1, 1, 1]
    for part in (s.values, s.bitmask, s.row_offsets):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0
    for name in ("values", "shape", "dtype", "pattern", "nnz", "mask", "other"):
        with pytest.raises(AttributeError):
            setattr(s, name, None)
    with pytest.raises(TypeError, match=r"fs\.pack"):
        fs.BitmaskArray(s.values, s.bitmask)
    with pytest.raises(TypeError, match="unhashable"):
        hash(s)


def test_does_not_mix_with_arrays_by_accident():
    s = fs.pack(np.ones(4, np.float32))
    for mix in (
        np.asarray,
        np.array,
        np.linalg.norm,
        lambda s: np.ones(4) * s,
        lambda s: s + s,
        lambda s: np.add(s, 1),
    ):
        with pytest.raises(TypeError):
            mix(s)
    with pytest.raises(TypeError, match=r"to_dense\(\)"):
        np.asarray(s)
    with pytest.raises(TypeError, match=r"to_dense\(\)"):
        fs.select(s, "50%")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_copies_and_pickles(dtype):
    for shape in [(), (0,), (7,), (5, 12), (2, 3, 4)]:
        s = fs.compress(weights(shape, dtype, 11), "2:4")
        assert copy.copy(s) is s
        for twin in [s.copy(), copy.deepcopy(s), *(pickle.loads(pickle.dumps(s, p)) for p in range(2, 6))]:
            assert twin == s
            assert twin.dtype == s.dtype
            assert twin.pattern == s.pattern == fs.pattern("2:4")
            assert not np.shares_memory(twin.values, s.values)
            assert not np.shares_memory(twin.bitmask, s.bitmask)
            assert not twin.values.flags.writeable
            assert oracle.same_bits(twin.to_dense(), s.to_dense())


def test_equality():
    w = np.float32([[1, 0, -0.0, np.nan]])
    s = fs.pack(w)
    assert s == fs.pack(w.copy())
    assert s == fs.compress(w, "2:4", scores=[[2.0, 0, 0, 1]])
    assert s != fs.pack(w, [[True, True, False, True]])
    assert s != fs.pack(w.reshape(4))
    assert s != fs.pack(w.astype(np.float64))
    assert s != fs.pack(np.float32([[2, 0, 0, np.nan]]))
    assert fs.pack(np.float16([1]), [True]) != fs.pack(np.array([1], ml_dtypes.bfloat16), [True])
    keep = [True]
    assert fs.pack(np.float32([0.0]), keep) != fs.pack(np.float32([-0.0]), keep)
    assert fs.pack(np.zeros((0, 3))) != fs.pack(np.zeros((0, 4)))
    assert s != "s"


# Rows


@given(st.data())
def test_rows(data):
    w = data.draw(tensors(shape=data.draw(st.sampled_from([(7, 9), (5, 64), (4, 2, 3), (3, 0), (0, 4), (2, 3, 1, 2)]))))
    s = fs.compress(w, data.draw(patterns(w.ndim)))
    start = data.draw(st.integers(-len(w), len(w)))
    stop = data.draw(st.integers(-len(w), len(w)))
    first, end = (i % len(w) if i < 0 else i for i in (start, stop))
    if first > end:
        with pytest.raises(fs.FastSparseError, match="rows: expected 0 ≤ start ≤ stop ≤"):
            s.rows(start, stop)
        return
    part = s.rows(start, stop)
    check(part, w[first:end], s.mask.to_bool()[first:end])
    assert part.values.size == 0 or np.shares_memory(part.values, s.values)
    if part.pattern is not None:
        assert part.pattern == s.pattern
        fs.BitmaskArray.from_parts(part.values, part.bitmask, part.shape, pattern=part.pattern)


def test_rows_keep_what_holds_for_them():
    w = weights((8, 16), np.float32, 12)
    assert fs.compress(w, "2:4").rows(1, 3).pattern == fs.pattern("2:4")
    assert fs.compress(w, "top3/5").rows(0, 8).pattern == fs.pattern("top3/5")
    assert fs.compress(w, "2:4@axis=0").rows(0, 4).pattern is None
    assert fs.compress(w, "2:4@axis=-2").rows(0, 4).pattern is None
    assert fs.compress(w, "50%/2x2").rows(0, 4).pattern is None
    assert fs.compress(w, "50%").rows(0, 4).pattern is None
    assert fs.compress(w, "2:4").rows(2, 6).rows(1, 2) == fs.compress(w, "2:4").rows(3, 4)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (-5, 2), (3, 2), (5, 5), (2**80, 2**80)])
def test_rows_out_of_range(start, stop):
    with pytest.raises(fs.FastSparseError, match=f"rows: expected 0 ≤ start ≤ stop ≤ 4, got {start} and {stop}"):
        fs.pack(np.ones((4, 3))).rows(start, stop)


def test_rows_need_two_dimensions_and_integers():
    for w in (np.ones(4), np.ones(())):
        with pytest.raises(fs.FastSparseError, match="two dimensions are needed"):
            fs.pack(w).rows(0, 1)
    with pytest.raises(TypeError):
        fs.pack(np.ones((4, 3))).rows(0, 1.5)


# Parts from outside


def test_parts_are_not_copied():
    values, bits = np.float32([1, 2, 3]), np.uint8([[0b101], [0b010]])
    s = fs.BitmaskArray.from_parts(values, bits, (2, 3))
    assert np.shares_memory(s.values, values)
    assert np.shares_memory(s.bitmask, bits)
    assert values.flags.writeable
    assert s.row_offsets.tolist() == [0, 2, 3]
    assert s.to_dense().tolist() == [[1, 0, 2], [0, 3, 0]]
    strided = fs.BitmaskArray.from_parts(
        np.repeat(values, 2)[::2], np.repeat(bits, 2, axis=1)[:, ::2], [2, np.int64(3)]
    )
    assert strided == s


def test_read_only_parts_stay_views(tmp_path):
    values = weights((50,), np.float32, 13)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.float32, "r")
    s = fs.BitmaskArray.from_parts(mapped, np.full((1, 7), 0xFF, np.uint8) & np.uint8([255] * 6 + [3]), (50,))
    assert np.shares_memory(s.values, mapped)
    assert oracle.same_bits(s.to_dense(), values)


@pytest.mark.parametrize(
    ("values", "bits", "shape", "message"),
    [
        (np.ones(3), [[0b11]], (8,), "2 elements, there are 3 values"),
        (np.ones(1), [[0b11]], (8,), "2 elements, there are 1 values"),
        (np.ones(0), [[0b11], [0]], (2, 8), "2 elements, there are 0 values"),
        (np.ones(2), [[0b11 << 6]], (7,), "padding bits of"),
        (np.ones(2), [[0b11, 0]], (8,), r"expected uint8 of shape \(1, 1\)"),
        (np.ones(2), [0b11], (8,), r"expected uint8 of shape \(1, 1\)"),
        (np.ones(2), [[0b11]], (8, 1), r"expected uint8 of shape \(8, 1\)"),
        (np.ones((2, 1)), [[0b11]], (8,), r"values: expected one dimension, got shape \(2, 1\)"),
        (np.ones(()), [[0b1]], (8,), r"values: expected one dimension, got shape \(\)"),
        (np.ones(2, int), [[0b11]], (8,), "values: dtype int64 is not supported; expected one of float64"),
        (np.ones(2, ">f4"), [[0b11]], (8,), "values: dtype >f4 is not supported"),
        (np.ones(2), [[0b11]], (-8,), "shape: expected integers ≥ 0"),
        (np.ones(2), [[0b11]], 8, "shape: expected integers ≥ 0, got 8"),
        (np.ones(2), [[0b11]], (2**40, 2**40), "shape"),
        (np.ones(0), np.zeros((0, 1)), (0, 2**62, 2**62), "shape"),
    ],
)
def test_parts_that_contradict_each_other(values, bits, shape, message):
    with pytest.raises(fs.FormatError, match=message):
        fs.BitmaskArray.from_parts(values, np.asarray(bits, np.uint8), shape)


@pytest.mark.parametrize("dtype", ["int8", "float32", "bool"])
def test_bitmask_of_another_dtype(dtype):
    with pytest.raises(fs.FormatError, match=f"expected uint8 of shape .*got {dtype}"):
        fs.BitmaskArray.from_parts(np.ones(1), np.ones((1, 1), dtype), (8,))


@given(st.data())
def test_known_patterns_are_checked(data):
    w = data.draw(tensors(shape=data.draw(st.sampled_from([(8, 12), (7, 13), (5, 3, 4), (9,), (64, 65)]))))
    pattern = data.draw(patterns(w.ndim).filter(lambda p: isinstance(p, fs.NM | fs.TopK | fs.Block)))
    s = fs.compress(w, pattern)
    again = fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern=str(pattern))
    assert again.pattern == pattern
    flipped = s.mask.to_bool()
    at = tuple(data.draw(st.integers(0, n - 1)) for n in w.shape)
    flipped[at] = not flipped[at]
    broken = fs.pack(w, flipped)
    with pytest.raises(fs.FormatError, match="pattern: "):
        fs.BitmaskArray.from_parts(broken.values, broken.bitmask, broken.shape, pattern=pattern)


def test_known_pattern_of_a_block_cut_or_miscounted():
    keep = np.kron([[1, 0], [0, 1]], np.ones((2, 2))).astype(bool)
    s = fs.pack(np.ones((4, 4)), keep)
    assert fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern="50%/2x2").pattern == fs.pattern("50%/2x2")
    assert fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern="2:4@axis=0,tail=error") == s
    for wrong in ("25%/2x2", "50%/4x4", "50%/3x2", "50%/4", "3:4", "1:4", "1:4@axis=0", "top1/4"):
        with pytest.raises(fs.FormatError, match="pattern: "):
            fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern=wrong)


def test_known_patterns_of_other_kinds():
    for pattern in ("50%", "50%/row", "threshold=1", "nonzero"):
        with pytest.raises(fs.FastSparseError, match="pattern: expected an n:m, top-k or block pattern, got "):
            fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (2,), pattern=pattern)
    with pytest.raises(fs.FastSparseError, match="axis: 1 is out of range"):
        fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (2,), pattern="1:2@axis=1")
    with pytest.raises(fs.FormatError, match="not a multiple of 4"):
        fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (1,), pattern="2:4@tail=error")


# scipy


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(5, 9), (64, 130), (1, 1), (3, 0), (0, 3), (17,), (), (3, 4, 5)])
def test_csr_there_and_back(dtype, shape):
    w = weights(shape, dtype, 14, "ties")
    s = fs.pack(w, np.random.default_rng(15).random(shape) < 0.4)
    csr = s.to_scipy()
    assert csr.format == "csr"
    assert csr.dtype == dtype
    assert csr.shape == oracle.matrix_view(shape)
    assert csr.nnz == s.nnz
    assert csr.has_sorted_indices
    assert np.array_equal(csr.toarray(), s.to_dense().reshape(csr.shape))
    if len(shape) == 2:
        for matrix in (csr, scipy.sparse.csr_matrix(csr), csr.tocsc(), csr.tocoo()):
            assert fs.BitmaskArray.from_scipy(matrix) == s


def test_csr_holds_what_is_kept_zeros_too():
    s = fs.pack(np.float32([[0, 1, 0]]), [[True, True, False]])
    assert s.to_scipy("csr").data.tolist() == [0, 1]
    assert fs.BitmaskArray.from_scipy(s.to_scipy()) == s


def test_from_scipy_sorts_and_sums():
    coo = scipy.sparse.coo_array((np.float32([1, 2, 4]), ([0, 0, 0], [3, 1, 3])), shape=(1, 4))
    assert fs.BitmaskArray.from_scipy(coo).to_dense().tolist() == [[0, 2, 0, 5]]
    unsorted = scipy.sparse.csr_array((np.float32([1, 2]), np.int32([3, 1]), np.int32([0, 2])), shape=(1, 4))
    assert fs.BitmaskArray.from_scipy(unsorted).to_dense().tolist() == [[0, 2, 0, 1]]
    assert unsorted.indices.tolist() == [3, 1]


def test_from_scipy_of_other_things():
    with pytest.raises(fs.FastSparseError, match="values: dtype int64 is not supported"):
        fs.BitmaskArray.from_scipy(scipy.sparse.csr_array(np.eye(3, dtype=int)))
    one_dimensional = scipy.sparse.coo_array(np.ones(3))  # a row of a matrix before scipy 1.13
    others = [np.eye(3), [[1.0]], None] + [one_dimensional] * (one_dimensional.ndim == 1)
    for other in others:
        with pytest.raises(fs.FastSparseError, match=r"matrix: expected a two-dimensional scipy\.sparse array"):
            fs.BitmaskArray.from_scipy(other)


def test_bsr_has_the_blocks_of_the_pattern():
    s = fs.compress(weights((8, 12), np.float32, 16), "50%/4x3")
    bsr = s.to_scipy("bsr")
    assert bsr.format == "bsr"
    assert bsr.blocksize == (4, 3)
    assert bsr.nnz == s.nnz
    assert np.array_equal(bsr.toarray(), s.to_dense())
    assert np.array_equal(fs.pack(np.eye(6)).to_scipy("bsr").toarray(), np.eye(6))
    with pytest.raises(fs.FastSparseError, match="bsr needs blocks that divide the 8 × 12 matrix, got 50%/4x5"):
        fs.compress(np.ones((8, 12)), "50%/4x5").to_scipy("bsr")


def test_scipy_formats_and_dtypes():
    with pytest.raises(fs.FastSparseError, match="format: expected csr or bsr, got 'csc'"):
        fs.pack(np.ones(3)).to_scipy("csc")
    for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        with pytest.raises(
            fs.FastSparseError, match=f"takes float64, float32, int8, uint8, got {np.dtype(dtype)}; .*astype"
        ):
            fs.pack(np.ones(3, dtype)).to_scipy()


@pytest.mark.parametrize("shape", [(8, 12), (4, 3), (16, 15)])
@pytest.mark.parametrize("share", ["0%", "30%", "75%", "100%"])
def test_bsr_there_and_back(shape, share):
    s = fs.compress(weights(shape, np.float32, 18), f"{share}/4x3")
    back = fs.BitmaskArray.from_scipy(s.to_scipy("bsr"))
    assert back == s
    assert back.pattern.shape == (4, 3)
    assert back.mask == fs.select(s.to_dense(), back.pattern)
    matrix = scipy.sparse.bsr_matrix(np.kron(np.eye(2), np.ones((2, 2))).astype("f"), blocksize=(2, 2))
    assert str(fs.BitmaskArray.from_scipy(matrix).pattern) == "50%/2x2"
    assert fs.BitmaskArray.from_scipy(matrix.tobsr(blocksize=(1, 1))).pattern is None


def test_blocks_of_bsr_that_occur_twice():
    data, columns, starts = np.ones((3, 1, 2), "f"), np.array([1, 1, 0]), np.array([0, 2, 3])
    twice = scipy.sparse.bsr_array((data, columns, starts), shape=(2, 4))
    s = fs.BitmaskArray.from_scipy(twice)
    assert s.to_dense().tolist() == [[0, 0, 2, 2], [1, 1, 0, 0]]
    assert str(s.pattern) == "50%/1x2"
    assert twice.indices.tolist() == [1, 1, 0]


# other arrays


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy exports nothing read-only before 2.1")
def test_the_parts_cross_by_dlpack():
    for kind in NAMES:
        s = fs.pack(np.eye(3).astype(getattr(ml_dtypes, kind, None) or kind))
        for part in (s.values, s.bitmask, s.row_offsets):
            if part.dtype in DTYPES[:3] or part.dtype.kind in "iu":
                assert np.shares_memory(np.from_dlpack(part), part)
        if s.dtype.kind == "V":  # NumPy has no DLPack for what ml_dtypes adds: their bits cross as integers
            with pytest.raises(BufferError):
                np.from_dlpack(s.values)
            bits = s.values.view(f"u{s.dtype.itemsize}")
            assert np.shares_memory(np.from_dlpack(bits), s.values)


class OnlyDlpack:
    """An array of a framework that NumPy knows nothing else of."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_come_in_by_dlpack(backend):
    w = np.random.default_rng(1).standard_normal((8, 16)).astype(np.float32)
    assert fs.compress(OnlyDlpack(w), "2:4") == fs.compress(w, "2:4")
    assert fs.pack(OnlyDlpack(w), OnlyDlpack(w > 0)) == fs.pack(w, w > 0)
    s = fs.pack(w)
    assert np.array_equal(fs.linear(OnlyDlpack(w[:3]), s), fs.linear(w[:3], s))
    assert fs.BitmaskArray.from_parts(OnlyDlpack(s.values.copy()), OnlyDlpack(s.bitmask.copy()), s.shape) == s


def test_nothing_becomes_dense_by_accident():
    s = fs.pack(np.eye(3, dtype=np.float32))
    for call in (np.sum, np.abs, lambda s: np.ones(3) + s, lambda s: np.ones((3, 3)) @ s, np.exp):
        with pytest.raises(TypeError):
            call(s)
    with pytest.raises(TypeError, match=r"use to_dense\(\)"):
        np.asarray(s)
