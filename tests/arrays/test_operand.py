"""Packed weights of every kind as operands: ``x @ s.T``, ``s @ x``, shapes as NumPy counts them."""

import numpy as np
import pytest

import fastsparse as fs

RNG = np.random.default_rng(5)
W = RNG.standard_normal((6, 4, 8)).astype(np.float32)
KINDS = {
    "packed": lambda w: fs.compress(w, "50%"),
    "prepared": lambda w: fs.compress(w, "90%").prepare(),
    "quantized": lambda w: fs.compress(w, "50%").quantize(),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def s(request, backend):
    return request.param(W)


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (0,)])
def test_a_transpose_is_multiplied_by(s, leading):
    x = RNG.standard_normal((*leading, 32)).astype(np.float32)
    y = x @ s.T
    assert y.shape == (*leading, 6)
    assert np.array_equal(y, fs.linear(x, s))
    if len(leading) == 1:
        assert np.array_equal(y, (s @ x.T).T)


def test_what_it_is(s):
    assert (s.ndim, s.size, s.shape) == (3, 192, (6, 4, 8))
    assert (s.T.ndim, s.T.shape, s.T.dtype) == (2, (32, 6), s.dtype)
    assert s.T.T is s
    assert repr(s.T) == f"<transpose of {s!r}>"


def test_what_is_not_computed_says_what_is(s):
    x = np.ones((32, 32), np.float32)
    for product in (lambda: x @ s, lambda: s.T @ x):
        with pytest.raises(TypeError, match=r"x @ s\.T and s @ x are"):
            product()
    with pytest.raises(TypeError, match=r"use s\.to_dense\(\)\.T"):
        np.asarray(s.T)
    with pytest.raises(fs.FastSparseError, match="31"):
        np.ones(31, np.float32) @ s.T


def test_a_vector_has_no_transpose():
    with pytest.raises(fs.FastSparseError, match="is no matrix"):
        fs.pack(np.ones(3, np.float32)).T  # noqa: B018
    assert (fs.pack(np.float32(3)).ndim, fs.pack(np.float32(3)).size) == (0, 1)
