"""What `detect` finds against a naive reading of the same rules."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, NAMES, weights

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


def common(groups):
    """The least number of zeros of all groups, where at least three in four have no more."""
    counts = groups.sum(axis=1)
    least = int(counts.min())
    return least if 4 * np.count_nonzero(counts != least) <= len(counts) else 0


def blocks_of(pattern, shape):
    """Flat indices of the elements of each block."""
    if isinstance(pattern.shape, tuple) or len(shape) < 2:
        return list(oracle.blocks_of(shape, pattern.shape, -1))
    return list(oracle.blocks_of(shape, pattern.shape, pattern.axis))


def check_block(w, pattern):
    """What is said of blocks: most zeros are in those that have nothing else, most others have none."""
    zero = (w.astype(np.float64) == 0).reshape(-1)
    counts = [(int(zero[block].sum()), len(block)) for block in blocks_of(pattern, w.shape)]
    gone = sum(count == size for count, size in counts)
    whole = sum(count == 0 for count, _ in counts)
    assert round(pattern.sparsity * len(counts)) == gone
    assert 0 < gone < len(counts)
    assert 4 * whole >= 3 * (len(counts) - gone)
    assert 4 * gone * max(size for _, size in counts) >= 3 * zero.sum()


def naive(w):
    """The short forms of what the zeros of a tensor obey, without an order: one loop after the other."""
    zero = np.asarray(w).astype(np.float64) == 0
    if not zero.any() or zero.sum() * 1000 < zero.size:
        return set()
    if zero.all():
        return {"100%"}
    found = {("tensor", int(zero.sum()))}
    for axis, length in enumerate(zero.shape):
        lines = np.moveaxis(zero, axis, -1).reshape(-1, length)
        best = 0
        for of in (2, 4, 8, 16, 32, 64):
            if of > length:
                break
            full = length // of * of
            zeros = common(lines[:, :full].reshape(-1, of))
            if not 0 < zeros < of or zeros / of <= best:
                continue
            best = zeros / of
            rest = length - full
            fits = not rest or lines[:, full:].sum(axis=1).min() >= round(zeros * rest / of)
            found.add(("nm", axis, zeros, of, "proportional" if fits else "keep"))
    matrix = zero.reshape(zero.shape[0] if zero.ndim > 1 else 1, -1)
    rows, cols = matrix.shape
    if rows > 1 and cols > 1 and 0 < common(matrix) < cols:
        found.add(("row", common(matrix)))
    return found


def as_found(pattern, shape):
    """A pattern in the words of `naive`."""
    size = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    cols = size // rows
    match pattern:
        case fs.Unstructured(sparsity=1.0):
            return "100%"
        case fs.Unstructured(sparsity=share, per="row"):
            return "row", round(share * cols)
        case fs.Unstructured(sparsity=share):
            return "tensor", round(share * size)
        case fs.NM():
            return "nm", pattern.axis % len(shape), pattern.zeros, pattern.of, pattern.tail


def check(w):
    found = fs.detect(w)
    expected = naive(w)
    others = [pattern for pattern in found if not isinstance(pattern, fs.Block)]
    assert {as_found(pattern, w.shape) for pattern in others} == expected
    assert len(others) == len(expected)
    for pattern in found:
        if isinstance(pattern, fs.Block):
            check_block(w, pattern)
    assert fs.detect(fs.pack(w)) == found
    return [str(pattern) for pattern in found]


@given(st.data())
def test_any_zeros(data):
    shape = data.draw(
        st.one_of(
            st.tuples(st.integers(1, 200)),
            st.tuples(st.integers(1, 20), st.integers(1, 70)),
            st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4)),
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    w = (rng.random(shape) < data.draw(st.sampled_from([0.02, 0.5, 0.9, 1.0]))).astype(np.float32)
    of = data.draw(st.sampled_from([1, 2, 4, 8, 13, 16]))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    chosen = data.draw(
        st.sampled_from(
            [
                fs.NM(zeros=(of + 1) // 2, of=of, axis=axis),
                fs.NM(zeros=of - 1, of=of, axis=axis, tail="keep"),
                fs.Block(of, 0.5, axis=axis),
                fs.Block((data.draw(st.integers(1, 5)), of), 0.7),
                fs.Unstructured(0.3, per="row"),
                fs.Unstructured(0.5),
            ]
        )
    )
    check(fs.prune(w, chosen))


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_every_dtype(dtype):
    w = weights((64, 128), dtype, 1)
    w[w.astype(np.float32) == 0] = 1
    assert fs.detect(w) == []
    assert check(fs.prune(w, "2:4")) == ["2:4", "50%/row", "50%"]
    assert check(fs.prune(w, "75%/4x1")) == ["75%/4x1", "75%"]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ("1:4", ["1:4", "25%/row", "25%"]),
        ("3:4@axis=0", ["3:4@axis=0", "75%"]),
        ("24:32", ["24:32", "75%/row", "75%"]),
        ("50%/16", ["50%/1x16", "50%"]),
        ("50%/64x1", ["50%/64x1", "50%/row", "50%"]),
        ("75%/16x16", ["75%/16x16", "75%"]),
        ("60%/row", ["60%/row", "60.16%"]),
        ("33%", ["33%"]),
        ("100%", ["100%"]),
        ("0%", []),
    ],
)
def test_what_a_pattern_is_found_as(chosen, found):
    assert check(fs.prune(weights((64, 128), np.float32, 2), chosen)) == found


def test_whole_rows_are_blocks_and_the_strictest():
    assert check(fs.prune(weights((64, 128), np.float32, 2), "25%/1x128"))[0] == "25%/1x128"


def test_zeros_that_rounding_adds_do_not_hide_a_pattern():
    w = fs.prune(np.random.default_rng(3).standard_normal((128, 256)).astype(np.float32), "2:4")
    rounded = np.rint(w / np.abs(w).max() * 31).astype(np.int8)
    assert np.count_nonzero(rounded) < np.count_nonzero(w)
    assert check(rounded)[0] == "2:4"


@pytest.mark.parametrize("chosen", ["75%/4x1", "50%/1x16", "75%/16x16", "50%/1x256", "75%/3x5"])
def test_a_few_more_zeros_do_not_hide_blocks(chosen):
    w = fs.prune(weights((192, 256), np.float32, 6), chosen)
    w.reshape(-1)[::977] = 0
    assert check(w)[0].endswith(chosen.rpartition("/")[2])


def test_blocks_along_an_axis_between():
    w = weights((40, 32, 3, 3), np.float32, 7)
    assert check(fs.prune(w, "75%/8@axis=1"))[0] == "75%/8@axis=1"
    assert check(fs.prune(w, "50%/1x9"))[0] == "50%/1x9"


def test_less_than_one_zero_in_a_thousand_is_chance():
    w = np.ones((30, 100), np.float32)
    w[3, 5] = w[7, 9] = 0
    assert check(w) == []
    w[8, 8] = 0
    assert check(w) == ["0.1%"]


def test_a_few_zeros_in_dense_weights_are_no_pattern():
    w = np.random.default_rng(4).integers(-127, 128, (64, 100)).astype(np.int8)
    found = check(w)
    assert len(found) == 1
    assert found[0].endswith("%")


@pytest.mark.parametrize(
    "chosen", ["10%", "25%", "30%", "50%", "75%", "95%", "2:4", "3:16@axis=0", "75%/4x1", "50%/8x64"]
)
def test_large_tensors(chosen):
    """Where a search may end long before the last group."""
    w = weights((512, 640), np.float32, 8)
    w[w == 0] = 1
    found = check(fs.prune(w, chosen))
    assert len(found) == 1 or not chosen.endswith("%")
    check(np.ascontiguousarray(fs.prune(w, chosen)[:, 3:635]))


@pytest.mark.parametrize("of", [2, 8, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_as_many_groups_with_more_zeros_as_may_be(of, axis):
    """A quarter of the groups, all zeros, is allowed; one more is not."""
    for more in (0, 1):
        groups = np.ones((64 * 64, of), np.float32)
        groups[:, of // 2] = 0
        groups[: 64 * 16 + more] = 0
        lines = np.random.default_rng(9).permutation(groups).reshape(64, 64 * of)
        w = lines if axis else np.ascontiguousarray(lines.T)
        check(w)
        assert (fs.NM(zeros=1, of=of, axis=-axis) in fs.detect(w)) == (more == 0)


def test_many_random_zeros_are_no_groups():
    w = fs.prune(weights((300, 640), np.float32, 5), "99%")
    assert check(w) == ["99%"]


def test_both_zeros_are_zero_and_nan_is_not():
    assert check(np.float32([[-0.0, 1, 0.0, 2]] * 3)) == ["50%/3x1", "1:2", "50%/row", "50%"]
    assert fs.detect(np.float32([np.nan, 1, np.nan, 2])) == []


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (1,), (1, 1)])
def test_small_shapes(shape):
    assert fs.detect(np.ones(shape, np.float32)) == []
    size = math.prod(shape)
    assert fs.detect(np.zeros(shape, np.float32)) == ([fs.Unstructured(1.0)] if size else [])


def test_other_dtypes_are_refused():
    with pytest.raises(fs.FastSparseError, match="dtype int16"):
        fs.detect(np.ones(3, np.int16))
