"""The semi-structured layout, by its rules; torch itself is asked in tests/interop."""

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse.cutlass import from_cutlass_24, to_cutlass_24

KINDS = {np.float16: (32, 32), ml_dtypes.bfloat16: (32, 32), np.float32: (32, 16), np.int8: (16, 64)}


def test_the_first_words():
    w = np.zeros((32, 64), np.float16)
    w[0, :8] = [1, 2, 0, 0, 3, 0, 0, 4]
    packed, meta = to_cutlass_24(w)
    assert packed[0, :4].tolist() == [1, 2, 3, 4]
    assert packed[0, 4:].tolist() == [0] * 28
    assert meta.dtype == np.int16
    assert meta.view(np.uint16).reshape(-1).tolist() == [0xEEC4] + [0xEEEE] * (32 * 4 - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(1, 1), (2, 1), (1, 3), (3, 4)])
def test_comes_back(kind, times):
    shape = tuple(a * b for a, b in zip(KINDS[kind], times, strict=True))
    rng = np.random.default_rng(3)
    w = (rng.integers(-9, 10, shape) * (rng.random(shape) < 0.6)).astype(kind)
    w = fs.prune(w, "1:2" if kind is np.float32 else "2:4")
    packed, meta = to_cutlass_24(w)
    assert packed.dtype == w.dtype
    assert packed.shape == (shape[0], shape[1] // 2)
    assert np.array_equal(from_cutlass_24(packed, meta), w)
    assert np.array_equal(from_cutlass_24(np.asfortranarray(packed), np.asfortranarray(meta)), w)


def test_takes_what_does_not_lie_in_order():
    w = fs.prune(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float16), "2:4")
    for ours, other in zip(to_cutlass_24(w), to_cutlass_24(np.asfortranarray(w)), strict=True):
        assert np.array_equal(ours, other)


def test_what_is_dense_is_an_error():
    w = np.zeros((32, 32), np.float16)
    w[5, 8:11] = 1
    with pytest.raises(fs.FastSparseError, match="row 5, columns 8 to 11 hold more non-zeros than 2 in every 4"):
        to_cutlass_24(w)
    with pytest.raises(fs.FastSparseError, match="row 0, columns 2 to 3 hold more non-zeros than 1 in every 2"):
        to_cutlass_24(np.float32([[0, 1, 1, 1] * 4] * 32))


@pytest.mark.parametrize("shape", [(32,), (31, 32), (32, 16), (32, 32, 1)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(fs.FastSparseError, match="multiples of 32 and 32 for float16"):
        to_cutlass_24(np.zeros(shape, np.float16))


def test_other_dtypes_are_an_error():
    with pytest.raises(fs.FastSparseError, match="expected float32, float16, bfloat16, int8, got float64"):
        to_cutlass_24(np.zeros((32, 32)))


def test_parts_that_do_not_fit_are_an_error():
    packed, meta = to_cutlass_24(np.zeros((32, 64), np.float16))
    with pytest.raises(fs.FormatError, match=r"expected int16 of shape \(32, 4\)"):
        from_cutlass_24(packed, meta[:, :2])
    with pytest.raises(fs.FormatError, match="expected int16"):
        from_cutlass_24(packed, meta.view(np.uint16))
    with pytest.raises(fs.FastSparseError, match="packed: expected two dimensions"):
        from_cutlass_24(packed[0], meta)
    broken = meta.copy()
    broken[0, 0] = 0
    with pytest.raises(fs.FormatError, match="the nibble 0x0 of row 0, group 0"):
        from_cutlass_24(packed, broken)
