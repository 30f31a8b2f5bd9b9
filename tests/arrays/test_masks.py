"""Bitmask: layout, algebra, what comes from outside."""

import copy
import pickle

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LENGTHS, shapes

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


@st.composite
def bool_arrays(draw, shape=None):
    shape = draw(shapes()) if shape is None else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return np.asarray(rng.random(shape) < draw(st.sampled_from([0, 1 / 64, 0.5, 63 / 64, 1])))


@given(bool_arrays())
def test_from_bool_and_back(keep):
    mask = fs.Bitmask.from_bool(keep)
    assert mask.shape == keep.shape
    assert mask.count == np.count_nonzero(keep)
    assert type(mask.count) is int
    assert np.array_equal(mask.bits, oracle.bits_of(keep))
    back = mask.to_bool()
    assert isinstance(back, np.ndarray)
    assert oracle.same_bits(back, keep)
    assert back.flags.writeable
    assert back.flags.c_contiguous
    assert fs.Bitmask.from_bits(mask.bits, mask.shape) == mask


@pytest.mark.parametrize("cols", LENGTHS)
def test_every_width(cols):
    keep = np.random.default_rng(cols).random((3, cols)) < 0.5
    mask = fs.Bitmask.from_bool(keep)
    assert np.array_equal(mask.bits, oracle.bits_of(keep))
    assert np.array_equal(mask.to_bool(), keep)
    assert np.array_equal((~mask).to_bool(), ~keep)
    assert np.array_equal((~mask).bits, oracle.bits_of(~keep))


def test_layout_of_the_specification():
    rows = [[0, 7, 0, 0, 0, 0, 0, 56.3, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]]
    assert fs.Bitmask.from_bool(np.array(rows) != 0).bits.tolist() == [[0x82, 0x02], [0x00, 0x02]]


@given(st.data())
def test_algebra(data):
    a = data.draw(bool_arrays())
    b = data.draw(bool_arrays(a.shape))
    x, y = fs.Bitmask.from_bool(a), fs.Bitmask.from_bool(b)
    for mask, wanted in ((x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (~x, ~a)):
        wanted = np.asarray(wanted)
        assert mask == fs.Bitmask.from_bool(wanted)
        assert mask.count == np.count_nonzero(wanted)
        assert not mask.bits.flags.writeable
    assert ~~x == x
    assert (x == y) == np.array_equal(a, b)


def test_masks_of_different_shapes_do_not_combine():
    a, b = fs.Bitmask.from_bool(np.ones((2, 8), bool)), fs.Bitmask.from_bool(np.ones((1, 16), bool))
    for combine in (lambda: a & b, lambda: a | b, lambda: a ^ b):
        with pytest.raises(fs.FastSparseError, match=r"masks of shapes \(2, 8\) and \(1, 16\) do not combine"):
            combine()
    assert a != b
    assert fs.Bitmask.from_bool(np.ones((2, 4), bool)) != fs.Bitmask.from_bool(np.ones((2, 4, 1), bool))


def test_masks_do_not_mix_with_arrays():
    mask = fs.Bitmask.from_bool([True, False])
    for mix in (
        lambda: mask & np.ones(2, bool),
        lambda: np.ones(2, bool) & mask,
        lambda: mask | 1,
        lambda: np.asarray(mask),
    ):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(TypeError, match=r"to_bool\(\)"):
        np.asarray(mask)
    assert mask != np.array([True, False]).tolist()
    assert mask != "mask"


def test_immutable():
    keep = np.array([True, False])
    mask = fs.Bitmask.from_bool(keep)
    keep[:] = False
    assert mask.count == 1
    with pytest.raises(ValueError, match="read-only"):
        mask.bits[0] = 0
    for name in ("shape", "bits", "count", "sparsity", "other"):
        with pytest.raises(AttributeError):
            setattr(mask, name, 1)
    with pytest.raises(TypeError, match=r"fs\.select"):
        fs.Bitmask(np.uint8([[1]]), (1,))
    with pytest.raises(TypeError, match="unhashable"):
        hash(mask)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0), (0, 2), (3, 5, 7)])
def test_copies_and_pickles(shape):
    mask = fs.Bitmask.from_bool(np.random.default_rng(1).random(shape) < 0.5)
    assert copy.copy(mask) is mask
    for twin in [copy.deepcopy(mask), *(pickle.loads(pickle.dumps(mask, p)) for p in range(2, 6))]:
        assert twin == mask
        assert twin.count == mask.count
        assert not np.shares_memory(twin.bits, mask.bits)
        assert not twin.bits.flags.writeable


def test_sparsity():
    assert fs.Bitmask.from_bool([True, False, False, False]).sparsity == 0.75
    assert fs.Bitmask.from_bool(np.ones((0, 3), bool)).sparsity == 0.0
    assert fs.Bitmask.from_bool(True).sparsity == 0.0


def test_repr():
    assert repr(fs.Bitmask.from_bool(np.arange(10).reshape(2, 5) > 3)) == "<Bitmask 2×5: 6 kept, 40.0 % sparse>"
    assert repr(fs.Bitmask.from_bool(True)) == "<Bitmask scalar: 1 kept, 0.0 % sparse>"
    assert repr(fs.Bitmask.from_bool(np.arange(10_000) > 0)) == "<Bitmask 10000: 9999 kept, 0.0 % sparse>"
    assert repr(fs.Bitmask.from_bool(np.arange(10_000) < 1)) == "<Bitmask 10000: 1 kept, 99.9 % sparse>"


def test_bits_from_outside_are_not_copied():
    bits = np.uint8([[0b101], [0b010]])
    mask = fs.Bitmask.from_bits(bits, (2, 3))
    assert np.shares_memory(mask.bits, bits)
    assert bits.flags.writeable
    assert not mask.bits.flags.writeable
    assert mask.to_bool().tolist() == [[True, False, True], [False, True, False]]
    strided = np.zeros((2, 2), np.uint8)
    strided[:, 0] = bits[:, 0]
    assert fs.Bitmask.from_bits(strided[:, :1], [2, np.int64(3)]) == mask


@pytest.mark.parametrize(
    ("bits", "shape", "message"),
    [
        (np.uint8([[0b1000]]), (3,), "padding bits of"),
        (np.uint8([[0], [0x80]]), (2, 7), "padding bits of .*row 1"),
        (np.uint8([1]), (3,), r"expected uint8 of shape \(1, 1\)"),
        (np.uint8([[1, 0]]), (3,), r"expected uint8 of shape \(1, 1\)"),
        (np.uint8([[1]]), (2, 3), r"expected uint8 of shape \(2, 1\)"),
        (np.int8([[1]]), (3,), "expected uint8 .*got int8"),
        (np.array([[True]]), (3,), "expected uint8 .*got bool"),
        (np.uint8([[1]]), (-3,), "shape: expected integers ≥ 0"),
        (np.uint8([[1]]), (3.0,), "shape: expected integers ≥ 0"),
        (np.uint8([[1]]), 3, "shape: expected integers ≥ 0, got 3"),
        (np.uint8([[1]]), None, "shape: expected integers ≥ 0"),
        (np.uint8([[1]]), ("3",), "shape: expected integers ≥ 0"),
        (np.uint8([[1]]), (2**40, 2**40), "shape"),
        (np.uint8([[1]]), (2**62, 3), "shape"),
        (np.uint8([[1]]), (2**80,), "shape"),
        (np.zeros((0, 1), np.uint8), (0, 2**62, 2**62), "shape"),
    ],
)
def test_bits_that_are_no_mask(bits, shape, message):
    with pytest.raises(fs.FormatError, match=message):
        fs.Bitmask.from_bits(bits, shape)


@pytest.mark.parametrize("mask", [[0, 1], np.uint8([1]), [1.0], "x", [None], [[True], [False, True]]], ids=str)
def test_what_is_no_bool_array(mask):
    with pytest.raises(fs.FastSparseError, match="mask: "):
        fs.Bitmask.from_bool(mask)
    with pytest.raises(fs.FastSparseError, match="mask: "):
        fs.pack(np.ones(2), mask)
    with pytest.raises(fs.FastSparseError, match="mask: "):
        fs.apply_mask(np.ones(2), mask)


def test_non_contiguous_bool_arrays():
    base = np.random.default_rng(2).random((12, 40)) < 0.5
    for keep in (base.T, base[::2], base[:, ::3], base[::-1, ::-1], np.broadcast_to(base[0], (3, 40))):
        assert np.array_equal(fs.Bitmask.from_bool(keep).to_bool(), keep)


def test_large():
    keep = np.random.default_rng(3).random((301, 1999)) < 0.3
    mask = fs.Bitmask.from_bool(keep)
    assert np.array_equal(mask.bits, oracle.bits_of(keep))
    assert np.array_equal(mask.to_bool(), keep)
    assert mask.count == keep.sum()
