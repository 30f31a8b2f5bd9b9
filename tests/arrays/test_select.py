"""`select` against the contract, on every backend and instruction set."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, FLOATS, KINDS, NAMES, WITH_INFINITY, patterns, tensors, weights

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


def check(w, pattern, **options):
    """`select` gives the oracle's mask; returns it."""
    pattern = fs.pattern(pattern)
    mask = fs.select(w, pattern, **options)
    wanted = oracle.select(w, pattern, **{k: v for k, v in options.items() if k != "threads"})
    assert mask.shape == w.shape
    assert np.array_equal(mask.to_bool(), wanted)
    assert mask.count == np.count_nonzero(wanted)
    assert mask.bits.dtype == np.uint8
    assert np.array_equal(mask.bits, oracle.bits_of(wanted))
    return mask


PATTERNS = [
    "0%", "50%", "100%", "90%", "33%/row",
    "1:2", "2:4", "3:4", "4:8", "7:16", "16:32", "32:64", "5:7", "20:48", "60:80",
    "1:4@axis=0", "2:4@axis=0", "3:8@axis=0,tail=keep", "top1/4", "top3/16", "top2/5@axis=0",
    "75%/4x1", "50%/1x4", "50%/3x5@norm=l1", "50%/2x2@norm=max", "50%/8", "50%/7@axis=0", "50%/4@axis=0,norm=max",
    "threshold=0.5", "threshold=0", "nonzero",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_every_dtype_with_every_pattern(dtype, pattern):
    for kind in KINDS:
        for shape in [(13, 130), (8, 64), (3, 5)]:
            check(weights(shape, dtype, 1, kind), pattern)


@given(st.data())
@settings(max_examples=150)
def test_any_shape_any_pattern(data):
    w = data.draw(tensors())
    check(w, data.draw(patterns(w.ndim)))


@given(st.data())
def test_scores(data):
    w = data.draw(tensors())
    pattern = data.draw(patterns(w.ndim).filter(lambda p: p != fs.Nonzero()))
    check(w, pattern, scores=data.draw(tensors(shape=w.shape)))


@given(st.data())
def test_column_scale(data):
    w = data.draw(tensors())
    pattern = data.draw(patterns(w.ndim).filter(lambda p: p != fs.Nonzero()))
    cols = oracle.matrix_view(w.shape)[1]
    length = data.draw(st.sampled_from([cols, *w.shape[1:2]]))
    scale = np.abs(weights((length,), np.float64, data.draw(st.integers(0, 99)), data.draw(st.sampled_from(KINDS[:4]))))
    check(w, pattern, column_scale=scale.astype(data.draw(st.sampled_from(["f8", "f4", "f2", "i4"]))))


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (0, 5), (5, 0), (2, 0, 3), (1, 1), (1, 7), (7, 1), (2, 3, 4, 5), (1,) * 8]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_odd_shapes(dtype, shape):
    w = weights(shape, dtype, 2)
    for pattern in [
        "50%",
        "0%",
        "100%",
        "50%/row",
        "2:4",
        "1:3@axis=0",
        "top1/2",
        "50%/2x2",
        "50%/3",
        "50%/2@axis=0",
        "nonzero",
    ]:
        check(w, pattern)


def test_scalars_and_lists():
    assert fs.select(3.0, "50%").shape == ()
    assert fs.select(3.0, "50%").count == 1  # round(0.5) is 0: half to even
    assert fs.select([[1.0, 3.0], [2.0, 0.5]], "50%").to_bool().tolist() == [[False, True], [True, False]]


# Counts and ties


@pytest.mark.parametrize(
    ("sparsity", "items", "zeros"),
    [
        (0.5, 5, 2),
        (0.5, 7, 4),
        (0.5, 1, 0),
        (0.5, 3, 2),
        (0.1, 25, 2),
        (0.3, 5, 2),
        (0.7, 5, 4),
        (0.29, 100, 29),
        (1, 9, 9),
    ],
)
def test_counts_round_half_to_even(sparsity, items, zeros):
    w = np.ones(items, np.float32)
    assert fs.select(w, fs.Unstructured(sparsity)).count == items - zeros
    assert fs.select(np.ones((3, items)), fs.Unstructured(sparsity, per="row")).count == 3 * (items - zeros)
    assert fs.select(np.ones(4 * items), fs.Block(4, sparsity)).count == 4 * (items - zeros)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("items", [5, 64, 100, 1000])
def test_ties_keep_the_lower_index(dtype, items):
    kept = fs.select(np.full(items, 3, dtype), "50%").to_bool()
    keep = items - round(items / 2)
    assert kept[:keep].all()
    assert not kept[keep:].any()


def test_ties_of_blocks_keep_the_lower_block():
    assert fs.select(np.ones((4, 4)), "50%/2x2").to_bool().tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert fs.select(np.ones((4, 2)), "50%/2@axis=0").to_bool().tolist() == [[True] * 2] * 2 + [[False] * 2] * 2


def test_sign_does_not_count():
    w = np.float32([[-2, 1, 2, -1], [1, -1, 1, -1]])
    assert fs.select(w, "2:4").to_bool().tolist() == [[True, False, True, False], [True, True, False, False]]


def test_lowest_int8_is_the_largest():
    assert fs.select(np.int8([127, -128, -127, 1]), "75%").to_bool().tolist() == [False, True, False, False]
    assert fs.select(np.int8([-128, 127]), fs.Threshold(127)).to_bool().tolist() == [True, False]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_both_zeros_are_equal(dtype):
    w = np.array([-0.0, 0.0, -0.0, 0.0], dtype)
    for pattern in ("50%", "2:4", "50%/1", "top2/4"):
        assert fs.select(w, pattern).to_bool().tolist() == [True, True, False, False]
        assert fs.select(w, pattern, scores=w).to_bool().tolist() == [True, True, False, False]
    assert fs.select(w, "nonzero").count == 0
    assert fs.select(w, "threshold=0").count == 0
    assert fs.select(np.ones(4), "threshold=0", scores=w).count == 0


@pytest.mark.parametrize("dtype", WITH_INFINITY, ids=str)
def test_infinity_is_the_largest(dtype):
    w = np.array([1, -np.inf, 57344, np.inf], dtype)
    for pattern in ("50%", "2:4", "50%/1", "50%/1@norm=max"):
        assert fs.select(w, pattern).to_bool().tolist() == [False, True, False, True]
    assert fs.select(w, fs.Threshold(1e300)).to_bool().tolist() == [False, True, False, True]
    assert fs.select(w, "50%", scores=w).to_bool().tolist() == [False, False, True, True]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_subnormal_numbers_are_told_apart(dtype):
    tiny = np.arange(5, dtype=np.uint8 if dtype.itemsize == 1 else f"u{dtype.itemsize}").view(dtype)
    assert fs.select(tiny, "40%").to_bool().tolist() == [False, False, True, True, True]
    assert fs.select(tiny, "nonzero").count == 4
    assert fs.select(tiny, "threshold=0").count == 4


def test_threshold_is_compared_in_float64():
    w = np.float32([0.1])
    assert fs.select(w, fs.Threshold(0.1)).count == 1  # float32(0.1) is above 0.1
    assert fs.select(w, fs.Threshold(float(np.float32(0.1)))).count == 0
    assert fs.select(w, fs.Threshold(np.nextafter(float(np.float32(0.1)), 0))).count == 1
    assert fs.select(np.zeros(3), fs.Threshold(-1)).count == 3
    assert fs.select(np.uint8([1, 255]), fs.Threshold(254.5)).count == 1


# Tails and axes


@pytest.mark.parametrize(("tail", "kept"), [("proportional", 1), ("keep", 3)])
def test_shorter_group(tail, kept):
    mask = fs.select(np.float32([[5, 4, 3, 2, 9, 8, 7]]), fs.NM(zeros=2, of=4, tail=tail)).to_bool()[0]
    assert mask.tolist() == [True, True, False, False, *([True] * kept), *([False] * (3 - kept))]


def test_shorter_group_rounds_half_to_even():
    for length, zeros in [(1, 0), (2, 1), (3, 2), (5, 2), (6, 3), (7, 4)]:  # 0.5, 1, 1.5, 2.5, 3, 3.5
        mask = fs.select(np.ones(8 + length), "4:8")
        assert mask.count == 4 + length - zeros


@pytest.mark.parametrize("pattern", ["2:4@tail=error", "top2/4@tail=error", "2:4@axis=0,tail=error"])
def test_shorter_group_can_be_an_error(pattern):
    check(weights((4, 8), np.float32, 3), pattern.replace("tail=error", "tail=keep"))
    assert fs.select(weights((4, 8), np.float32, 3), pattern).count == 16
    assert fs.select(np.zeros((0, 4)), pattern).count == 0
    with pytest.raises(fs.FastSparseError, match='w: axis of length 7 is not a multiple of 4; tail="error" forbids'):
        fs.select(weights((7, 7), np.float32, 3), pattern)


@pytest.mark.parametrize("pattern", ["2:4@axis={}", "top2/4@axis={}", "50%/3@axis={}"])
def test_every_axis(pattern):
    w = weights((5, 6, 7, 8), np.float32, 4)
    for axis in range(-4, 4):
        check(w, pattern.format(axis))
    for axis in (-5, 4):
        with pytest.raises(fs.FastSparseError, match=f"axis: {axis} is out of range"):
            fs.select(w, pattern.format(axis))
    with pytest.raises(fs.FastSparseError, match="axis: 1 is out of range"):
        fs.select(np.float32(1), pattern.format(1))


def test_short_last_blocks_are_ranked_by_their_mean():
    # The short block has the smaller sum and the larger mean.
    assert fs.select(np.float32([2, 2, 2, 3]), "50%/3").to_bool().tolist() == [False, False, False, True]
    assert fs.select(np.float32([2, 2, 2, 3]), "50%/3@norm=l1").to_bool().tolist() == [False, False, False, True]


def test_a_block_larger_than_the_tensor_is_one_block():
    w = weights((3, 5), np.float32, 5)
    for pattern in ("50%/100x100", "50%/100@axis=0", "100%/100x1", fs.Block(2**62, 0.5), fs.Block((2**62, 2**62), 1)):
        check(w, pattern)


def test_block_sums_have_one_order():
    # In the order of the contract 2^53 + 1 + 1 is either 2^53 or 2^53 + 2, depending on where the
    # ones stand.
    big = 2.0**53
    w = np.array([[big, 1, 0, 0, 1, 0, 0, 0], [big, 1, 1, 0, 0, 0, 0, 0], [big, 0, 0, 1, 0, 0, 0, 1]])
    check(w, "67%/1x8@norm=l1")
    check(w[::-1].copy(), "67%/1x8@norm=l1")
    check(w[:, :7].copy(), "67%/1x7@norm=l1")


# NaN

PLACES = [(0, 0), (2, 33), (4, 129)]
REJECTING = [
    "0%", "50%", "100%", "50%/row", "2:4", "7:16", "2:4@axis=0", "top2/9", "50%/4x4", "50%/2", "50%/2@norm=max",
    "threshold=1", "nonzero",
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("pattern", REJECTING)
def test_nan_is_named(dtype, pattern, sign):
    for place in PLACES:
        w = weights((5, 130), dtype, 6)
        w[place] = np.copysign(np.nan, sign)
        with pytest.raises(fs.FastSparseError, match=rf"^w contains NaN at index \({place[0]}, {place[1]}\)$"):
            fs.select(w, pattern)
        if pattern != "nonzero":
            with pytest.raises(fs.FastSparseError, match=rf"^scores contains NaN at index \({place[0]}, {place[1]}\)$"):
                fs.select(np.ones((5, 130)), pattern, scores=w)


def test_nan_index_has_the_shape_of_the_tensor():
    with pytest.raises(fs.FastSparseError, match=r"^w contains NaN at index \(\)$"):
        fs.select(np.nan, "50%")
    with pytest.raises(fs.FastSparseError, match=r"^w contains NaN at index \(2,\)$"):
        fs.select([0, 1, np.nan], "50%")
    w = np.zeros((2, 3, 4, 5), np.float16)
    w[1, 2, 3, 4] = np.nan
    with pytest.raises(fs.FastSparseError, match=r"^w contains NaN at index \(1, 2, 3, 4\)$"):
        fs.select(w, "2:4")


def test_every_nan_of_small_types_is_found():
    for dtype in FLOATS[2:]:
        word = f"u{dtype.itemsize}"
        everything = np.arange(1 << (8 * dtype.itemsize), dtype=np.int64).astype(word).view(dtype)
        nan = np.isnan(oracle.as_float64(everything))
        nans = everything[nan]
        assert len(nans)
        w = np.ones(3, dtype)
        for w[1] in nans[:: max(1, len(nans) // 64)]:
            with pytest.raises(fs.FastSparseError, match=r"index \(1,\)"):
                fs.select(w, "50%")
        numbers = everything[~nan]
        check(numbers, "50%")
        check(numbers, "50%", scores=numbers)


@pytest.mark.parametrize(("dtype", "bits"), [("f8", 0x7FF0_0000_0000_0001), ("f4", 0xFF80_0001), ("f2", 0x7C01)])
@pytest.mark.parametrize("pattern", ["50%", "2:4", "50%/2", "50%/2@norm=max", "threshold=1", "nonzero"])
def test_signalling_nan(dtype, bits, pattern):
    w = np.array([1, bits, 1, 1], f"u{np.dtype(dtype).itemsize}").view(dtype)
    with pytest.raises(fs.FastSparseError, match=r"^w contains NaN at index \(1,\)$"):
        fs.select(w, pattern)


@pytest.mark.parametrize("pattern", ["50%", "50%/row", "2:3", "50%/1x2@norm=max"])
def test_a_product_that_is_nan_names_both_factors(pattern):
    w = np.float32([[1, np.inf, 2]])
    with pytest.raises(fs.FastSparseError, match=r"^w · column_scale is NaN at index \(0, 1\): inf times 0$"):
        fs.select(w, pattern, column_scale=[1, 0, 1])
    w[0, 1] = np.nan
    with pytest.raises(fs.FastSparseError, match=r"^w contains NaN at index \(0, 1\)$"):
        fs.select(w, pattern, column_scale=[1, 0, 1])


def test_scores_that_cancel_to_nan_name_the_block():
    with pytest.raises(fs.FastSparseError, match="scores: the mean of block 1 is NaN"):
        fs.select(np.ones(4), "50%/2", scores=[1, 2, np.inf, -np.inf])


def test_w_is_not_ranked_where_scores_are():
    assert fs.select(np.float32([np.nan, 1]), "50%", scores=[1.0, 2.0]).to_bool().tolist() == [False, True]


# Scores and scales


def test_scores_are_signed():
    scores = np.float32([-5, -1, 0, 2])
    assert fs.select(np.ones(4), "50%", scores=scores).to_bool().tolist() == [False, False, True, True]
    assert fs.select(np.ones(4), "threshold=-1", scores=scores).to_bool().tolist() == [False, False, True, True]
    assert fs.select(np.ones(4), "50%/2@norm=max", scores=[9.0, -9, 1, 0]).to_bool().tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_scale_is_by_column_or_by_channel():
    w = np.ones((2, 3, 2, 2), np.float32)
    by_channel = fs.select(w, "4:12@axis=1", column_scale=[3, 1, 2])
    assert by_channel == fs.select(w, "4:12@axis=1", column_scale=np.repeat([3, 1, 2], 4))
    kept = fs.select(w.reshape(2, 12), "8:12", column_scale=np.repeat([3, 1, 2], 4)).to_bool()
    assert kept.tolist() == [[True] * 4 + [False] * 8] * 2


def test_scaled_product_has_the_precision_of_the_contract():
    # In float32 both products are equal, in float64 they are not.
    w, scale = np.array([1 + 2**-30, 1]), np.array([1, 1 + 2**-29])
    assert fs.select(w, "50%", column_scale=scale).to_bool().tolist() == [False, True]
    assert fs.select(w.astype("f4"), "50%", column_scale=scale).to_bool().tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": np.ones(3)}, r"scores: shape \(3,\) does not match w's shape \(2, 4\)"),
        ({"scores": np.ones((4, 2))}, r"scores: shape \(4, 2\) does not match w's shape \(2, 4\)"),
        ({"scores": np.ones((2, 4), bool)}, "scores: dtype bool is not supported; expected one of float64, float32"),
        ({"scores": "x"}, "scores: dtype "),
        ({"column_scale": np.ones(3)}, r"column_scale: .*\(4,\).*got \(3,\)"),
        ({"column_scale": np.ones((1, 4))}, r"column_scale: .*\(4,\).*got \(1, 4\)"),
        ({"column_scale": 1.0}, r"column_scale: .*\(4,\).*got \(\)"),
        ({"column_scale": np.ones(4, bool)}, "column_scale: expected real numbers, got dtype bool"),
        ({"column_scale": np.ones(4, complex)}, "column_scale: expected real numbers, got dtype complex128"),
        ({"column_scale": [1, 1, -1, 1]}, "column_scale: expected finite numbers ≥ 0, got -1 at index 2$"),
        ({"column_scale": [1, np.nan, 1, 1]}, "column_scale: expected finite numbers ≥ 0, got nan at index 1$"),
        ({"column_scale": [np.inf, 1, 1, 1]}, "column_scale: expected finite numbers ≥ 0, got inf at index 0$"),
        ({"column_scale": [1, 1, 1, 1e300]}, r"column_scale: .*got 1e\+300 at index 3: more than float32 holds$"),
        ({"column_scale": np.float16([1, np.inf, 1, 1])}, "inf at index 1; float16 holds at most 65504: compute norms"),
        ({"column_scale": np.ones(4), "scores": np.ones((2, 4))}, "column_scale: cannot be combined with scores"),
    ],
)
def test_scores_and_scales_that_are_wrong(options, message):
    w = np.ones((2, 4), np.float32)
    for call in (fs.select, fs.prune, fs.compress):
        with pytest.raises(fs.FastSparseError, match=message):
            call(w, "50%", **options)


def test_nonzero_does_not_rank():
    for options in ({"scores": np.ones(4)}, {"column_scale": np.ones(4)}):
        with pytest.raises(fs.FastSparseError, match=f"{next(iter(options))}: the nonzero pattern does not rank"):
            fs.select(np.ones(4), "nonzero", **options)


# Inputs


@pytest.mark.parametrize(
    "w",
    [
        np.ones(4, bool), np.ones(4, np.int16), np.ones(4, np.int64), np.ones(4, np.uint32), np.ones(4, np.longdouble),
        np.ones(4, ">f4"), np.ones(4, ">f8"), np.ones(4, ">f2"), np.ones(4, complex), np.ones(4, object), [1, 2, 3],
        np.array(["a"]), np.ones(4, "M8[s]"), np.zeros(4, "V4"), np.zeros(2, "f4,f4"), None, "weights",
    ],
    ids=lambda w: str(getattr(w, "dtype", w)),
)  # fmt: skip
def test_dtypes_that_are_not_supported(w):
    message = (
        "w: dtype .* is not supported; expected one of float64, float32, float16, bfloat16, float8_e4m3fn, "
        "float8_e5m2, int8, uint8"
    )
    for call in (fs.select, fs.prune, fs.compress):
        with pytest.raises(fs.FastSparseError, match=message):
            call(w, "50%")
    for call in (fs.pack, lambda w: fs.apply_mask(w, np.ones(4, bool))):
        with pytest.raises(fs.FastSparseError, match=message):
            call(w)


def test_foreign_byte_order_is_named():
    message = r'dtype >f4 is not supported; .*in the byte order of this machine; convert it with \.astype\("float32"\)$'
    with pytest.raises(fs.FastSparseError, match=message):
        fs.select(np.ones(4, ">f4"), "50%")


def test_lists_that_are_no_array():
    with pytest.raises(fs.FastSparseError, match="w: cannot be read as an array"):
        fs.select([[1.0, 2.0], [3.0]], "50%")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_non_contiguous_weights(dtype):
    base = weights((12, 40), dtype, 7)
    read_only = base.copy()
    read_only.flags.writeable = False
    repeated, fortran, cube = np.broadcast_to(base[0], (5, 40)), np.asfortranarray(base), base.reshape(4, 3, 40)
    for view in (base.T, base[::2], base[:, ::3], base[::-1, ::-1], base[:, 5:6], cube.transpose(2, 0, 1), repeated,
                 fortran, read_only):  # fmt: skip
        before = view.copy()
        for pattern in ("50%", "2:4", "50%/2x2", "50%/3@axis=0"):
            check(view, pattern)
            check(np.ones(view.shape), pattern, scores=view)
        assert oracle.same_bits(view.copy(), before)


def test_unaligned_weights():
    raw = np.zeros(4 * 100 + 1, np.uint8)
    w = raw[1:].view(np.float32)
    w[:] = weights((100,), np.float32, 8)
    assert not w.flags.aligned
    check(w, "50%")
    check(w, "2:4", scores=w)


def test_subclasses_and_array_likes():
    w = weights((4, 8), np.float32, 9)

    class Like:
        def __array__(self, dtype=None, copy=None):
            return w

    wanted = fs.select(w, "2:4")
    assert fs.select(Like(), "2:4") == wanted
    assert fs.select(w.view(np.recarray), "2:4") == wanted
    assert fs.select(memoryview(w), "2:4") == wanted
    assert fs.select(np.ma.masked_array(w, w > 0), "2:4") == wanted


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, False, [1]])
def test_threads_that_are_wrong(threads):
    for call in (fs.select, fs.prune, fs.compress):
        with pytest.raises(fs.FastSparseError, match=r"threads: expected an integer ≥ 1 or None, got "):
            call(np.ones(4), "50%", threads=threads)


# Large enough for the sampling, the threads and the wide kernels

LARGE = ["50%", "99.9%", "1%", "50%/row", "2:4", "8:16", "32:64", "2:4@axis=0", "10:24", "threshold=0.7", "nonzero"]


@pytest.mark.parametrize("pattern", LARGE)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_large(dtype, pattern):
    for kind in ("normal", "ties"):
        check(weights((520, 1003), dtype, 10, kind), pattern, threads=2)


@pytest.mark.parametrize(
    "pattern", ["75%/4x4", "50%/32x1", "50%/1x16", "50%/64@axis=0", "50%/16@norm=max", "30%/7x9@norm=l1"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_large_blocks(dtype, pattern):
    check(weights((300, 501), dtype, 11), pattern, threads=2)


@pytest.mark.parametrize("shape", [(1, 300_000), (300_000,), (3, 100_001), (100_000, 3), (70_000, 1)])
def test_large_and_narrow(shape):
    w = weights(shape, np.float32, 12)
    for pattern in ("50%", "50%/row", "2:4", "2:4@axis=0", "8:16", "0:1"):
        check(w, pattern, threads=2)


def hard_inputs():
    """Distributions that defeat a bracket guessed from a sample: (name, flat weights)."""
    rng = np.random.default_rng(13)
    n = 400_000
    yield "sorted", np.arange(n)
    yield "reversed", np.arange(n)[::-1]
    yield "two values", np.where(np.arange(n) % 2, 1.0, 2.0)
    yield "one outlier", np.concatenate([[1e30], np.full(n - 1, 1e-30)])
    yield "outliers at the end", np.concatenate([np.full(n - 5, 1e-30), [1e30] * 5])
    yield "mostly zero", np.where(rng.random(n) < 0.001, 1.0, 0.0)
    yield "exponents", 2.0 ** rng.uniform(-120, 120, n)
    yield "strided", np.tile(np.arange(64), n // 64 + 1)[:n]
    yield "steps", np.arange(n) // 1000
    yield "infinite", np.where(rng.random(n) < 0.4, np.inf, rng.standard_normal(n))
    yield "subnormal", rng.integers(0, 1000, n) * 2.0**-149


@pytest.mark.parametrize(("name", "values"), list(hard_inputs()), ids=[name for name, _ in hard_inputs()])
def test_hard_distributions(name, values):
    w = values.astype(np.float32)
    for sparsity in (0.5, 0.001, 0.999, 1 - 1 / len(w), 1 / len(w)):
        check(w, fs.Unstructured(sparsity), threads=2)
    check(w, "50%", scores=-w, threads=2)


@pytest.mark.parametrize("pattern", ["50%", "50%/row", "2:4", "11:24@axis=0", "50%/4x4", "threshold=0.5", "nonzero"])
def test_threads_do_not_change_the_result(pattern):
    w = weights((601, 999), np.float32, 14, "normal")
    w[::3] = weights((201, 999), np.float32, 15, "ties")
    wanted = fs.select(w, pattern, threads=1)
    packed = fs.compress(w, pattern, threads=1)
    pruned = fs.prune(w, pattern, threads=1)
    for threads in (2, 3, 7, np.int64(16)):
        assert fs.select(w, pattern, threads=threads) == wanted
        assert fs.compress(w, pattern, threads=threads) == packed
        assert oracle.same_bits(fs.prune(w, pattern, threads=threads), pruned)


def test_inputs_are_not_changed():
    w, scores, scale = weights((50, 60), np.float32, 16), weights((50, 60), np.float32, 17), np.ones(60)
    copies = [x.copy() for x in (w, scores, scale)]
    for pattern in ("50%", "2:4", "50%/2x2", "50%/3@axis=0"):
        fs.select(w, pattern, scores=scores)
        fs.select(w, pattern, column_scale=scale)
        fs.prune(w, pattern)
        fs.compress(w, pattern)
    assert all(oracle.same_bits(a, b) for a, b in zip((w, scores, scale), copies, strict=True))


def test_masks_nest():
    """A sparser mask keeps a subset of what a denser one keeps, as it must if only the rank decides."""
    w = weights((64, 65), np.float16, 18, "ties")
    sparser, denser = fs.select(w, "70%"), fs.select(w, "30%")
    assert (sparser & denser) == sparser
