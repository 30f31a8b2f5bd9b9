"""Tensors in, tensors out: the same memory, the same bits as NumPy's side, and errors that say what to do."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst

KINDS = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
}


def raw(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture(params=KINDS, ids=str)
def w(request):
    return torch.randint(-60, 60, (24, 40), generator=torch.Generator().manual_seed(1)).abs().to(request.param)


def test_memory_is_shared(w):
    a = fst.as_array(w)
    assert a.dtype == KINDS[w.dtype]
    assert a.ctypes.data == w.data_ptr()
    back = fst.as_tensor(a)
    assert back.dtype == w.dtype
    assert back.data_ptr() == w.data_ptr()


def test_all_strides_and_shapes_cross(w):
    for view in (w.t(), w[::2, 1::3], w[0, 0], w[:0], w.expand(2, 24, 40)):
        a = fst.as_array(view)
        assert a.shape == tuple(view.shape)
        assert torch.equal(raw(fst.as_tensor(a.copy())), raw(view))


def test_memory_outlives_whoever_brought_it():
    a = fst.as_array(torch.arange(1000.0, dtype=torch.bfloat16)[5:15])
    t = fst.as_tensor(np.arange(1000.0)[5:15])
    junk = [torch.full((1000,), 7.0) for _ in range(100)]
    assert a.tolist() == t.tolist() == list(range(5, 15))
    assert len(junk) == 100


def test_what_tensors_and_arrays_mean_is_kept():
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert z.conj().imag.is_neg()
    with pytest.raises(RuntimeError, match="resolve_neg"):  # torch's own, of lazily negated memory
        fst.as_array(z.conj().imag)
    a = np.arange(4.0)
    assert fst.as_tensor(a[::-1].copy()).tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="negative"):
        fst.as_tensor(a[::-1])
    a.flags.writeable = False
    copied = fst.as_tensor(a)
    copied[0] = 9
    assert a[0] == 0
    w = torch.ones(3, requires_grad=True)
    assert fst.as_array(w * 2).tolist() == [2, 2, 2]
    fst.as_array(w)[0] = 5
    assert w.tolist() == [5, 1, 1]


def test_what_numpy_gets_is_what_torch_gets(w):
    a = fst.as_array(w)
    mask = fst.select(w, "2:4")
    assert mask == fs.select(a, "2:4")
    assert fst.compress(w, "30%") == fs.compress(a, "30%")
    assert fst.pack(w) == fs.pack(a)
    assert fst.pack(w, mask) == fst.pack(w, fst.as_tensor(mask)) == fs.pack(a, mask)
    pruned = fs.prune(a, "2:4").view(np.uint8)
    for dense in (fst.prune(w, "2:4"), fst.apply_mask(w, mask), fst.unpack(fst.compress(w, "2:4"))):
        assert dense.dtype == w.dtype
        assert np.array_equal(raw(dense).numpy(), pruned.reshape(-1))
    out = torch.empty_like(w)
    assert fst.unpack(fst.compress(w, "2:4"), out) is out
    assert np.array_equal(raw(out).numpy(), pruned.reshape(-1))
    assert fst.prune(w.t(), "2:4").shape == (40, 24)
    assert fst.prune(w, "2:4", out=w) is w
    assert np.array_equal(raw(w).numpy(), pruned.reshape(-1))


def test_scores_and_column_scale_are_tensors():
    w = torch.randn(8, 16, dtype=torch.bfloat16)
    scores, scale = torch.randn(8, 16), torch.rand(16)
    assert fst.select(w, "50%", scores=scores) == fs.select(fst.as_array(w), "50%", scores=scores.numpy())
    assert fst.compress(w, "50%", column_scale=scale) == fs.compress(fst.as_array(w), "50%", column_scale=scale.numpy())


def test_a_parameter_is_chosen_and_packed_from():
    layer = nn.Linear(16, 8)
    assert fst.select(layer.weight, "50%").count == 64
    assert fst.compress(layer.weight, "2:4").nnz == fst.pack(fst.prune(layer.weight.detach(), "2:4")).nnz == 64


def test_a_gradient_is_not_lost_in_silence():
    layer = nn.Linear(16, 8)
    mask = fst.select(layer.weight, "50%")
    calls = [
        lambda: fst.prune(layer.weight, "50%"),
        lambda: fst.apply_mask(layer.weight, mask),
        lambda: fst.prune(torch.ones(8, 16), "50%", out=layer.weight),
        lambda: fst.linear(torch.ones(1, 16, requires_grad=True), fst.pack(layer.weight)),
    ]
    for call in calls:
        with pytest.raises(fs.FastSparseError, match="it requires grad, which does not pass through here"):
            call()
        with torch.no_grad():
            call()


def test_linear_is_that_of_numpy():
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        s = fst.compress(torch.randn(24, 40).to(kind), "50%")
        x, bias = torch.randn(2, 3, 40).to(kind), torch.randn(24).to(kind)
        y = fst.linear(x, s, bias)
        assert y.dtype == kind
        expected = fs.linear(fst.as_array(x), s, fst.as_array(bias))
        assert np.array_equal(fst.as_array(y).view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.ones(3), "w: expected a tensor, got ndarray"),
        (torch.ones(3, device="meta"), "w: expected a tensor on the CPU, got one on meta"),
        (torch.eye(3).to_sparse(), "w: expected a strided tensor, got torch.sparse_coo"),
        (torch.ones(3).to(torch.float8_e4m3fnuz), "w: dtype torch.float8_e4m3fnuz has no counterpart"),
        (torch.ones(3, dtype=torch.complex64), "complex64"),
        (torch.ones(3, dtype=torch.int64), "int64"),
    ],
)
def test_what_cannot_be_taken(tensor, message):
    with pytest.raises(fs.FastSparseError, match=message):
        fst.select(tensor, "50%")


HINT = "fastsparse.torch has the same functions for tensors"


def test_array_functions_point_here():
    """Where a tensor cannot be taken as an array, and where a result would not be a tensor."""
    narrow, dense = torch.ones(4, 8, dtype=torch.bfloat16), torch.ones(4, 8)
    s = fs.pack(np.ones((4, 8), np.float32))
    for call in (
        lambda: fs.compress(narrow, "50%"),
        lambda: fs.prune(dense.numpy(), "50%", out=dense),
        lambda: fs.unpack(dense),
        lambda: fs.linear(dense, dense),
        lambda: s @ narrow.T,
        lambda: dense @ s.T,
        lambda: dense @ s,
        lambda: s.to_dense(out=dense),
    ):
        with pytest.raises((fs.FastSparseError, TypeError), match=HINT):
            call()
