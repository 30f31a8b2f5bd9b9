"""Selection against torch, which has no ties to break here: every magnitude is different from every other."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn.utils import prune

import fastsparse as fs
from fastsparse import _backend, _numpy

DTYPES = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
}
SPARSITIES = [0.0, 0.3, 0.5, 0.9, 1.0]


@pytest.fixture(params=DTYPES)
def pair(request: pytest.FixtureRequest, distinct) -> tuple[np.ndarray, torch.Tensor]:
    """The same 48 × 72 weights for NumPy and for torch."""
    numpy_dtype, torch_dtype = DTYPES[request.param]
    w = distinct((48, 72), np.dtype(numpy_dtype))
    bits = torch.from_numpy(w.view(np.int32 if w.itemsize == 4 else np.int16))
    return w, bits.view(torch_dtype)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_unstructured_keeps_what_topk_keeps(pair, sparsity):
    w, t = pair
    keep = w.size - round(sparsity * w.size)
    expected = torch.zeros(w.size, dtype=torch.bool)
    expected[t.abs().flatten().topk(keep).indices] = True
    assert np.array_equal(fs.select(w, fs.Unstructured(sparsity)).to_bool(), expected.reshape(w.shape).numpy())


@pytest.mark.parametrize("zeros", [1, 100, 1728, 3455])
def test_unstructured_cuts_at_kthvalue(pair, zeros):
    w, t = pair
    cut = t.abs().flatten().kthvalue(zeros).values
    assert np.array_equal(fs.select(w, fs.Unstructured(zeros / w.size)).to_bool(), (t.abs() > cut).numpy())


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_unstructured_is_l1_unstructured(pair, sparsity):
    w, t = pair
    module = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=t.dtype)
    module.weight = torch.nn.Parameter(t)
    prune.l1_unstructured(module, "weight", amount=sparsity)
    assert np.array_equal(fs.select(w, fs.Unstructured(sparsity)).to_bool(), module.weight_mask.bool().numpy())


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_each_row_keeps_what_topk_keeps(pair, sparsity):
    w, t = pair
    keep = w.shape[1] - round(sparsity * w.shape[1])
    expected = torch.zeros(w.shape, dtype=torch.bool).scatter(1, t.abs().topk(keep, dim=1).indices, True)
    assert np.array_equal(fs.select(w, fs.Unstructured(sparsity, per="row")).to_bool(), expected.numpy())


@pytest.mark.parametrize(("zeros", "of"), [(2, 4), (1, 4), (4, 8), (10, 12), (8, 24)])
def test_nm_keeps_what_topk_of_each_group_keeps(pair, zeros, of):
    w, t = pair
    groups = t.abs().reshape(-1, of)
    expected = torch.zeros(groups.shape, dtype=torch.bool).scatter(1, groups.topk(of - zeros, dim=1).indices, True)
    assert np.array_equal(fs.select(w, fs.NM(zeros=zeros, of=of)).to_bool(), expected.reshape(w.shape).numpy())


def test_a_pruned_module_packs_and_comes_back(pair):
    w, t = pair
    module = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=t.dtype)
    module.weight = torch.nn.Parameter(t)
    prune.l1_unstructured(module, "weight", amount=0.5)
    prune.remove(module, "weight")
    bits = module.weight.detach().view(torch.int32 if w.itemsize == 4 else torch.int16).numpy()
    packed = fs.pack(bits.view(w.dtype))
    assert packed.nnz == w.size // 2
    assert np.array_equal(packed.to_dense().view(bits.dtype), fs.prune(w, "50%").view(bits.dtype))


def test_takes_a_tensor_as_it_is(distinct):
    w = distinct((8, 16), np.dtype(np.float32))
    assert fs.compress(torch.from_numpy(w), "2:4") == fs.compress(w, "2:4")


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize(
    "tensor",
    [torch.ones(4, 8).bfloat16(), torch.ones(4, 8, requires_grad=True), torch.ones(4, 8, device="meta")],
    ids=["bfloat16", "gradient", "meta"],
)
def test_a_tensor_that_numpy_cannot_take_is_told_where_to_go(tensor, backend, monkeypatch):
    if backend == "numpy":
        monkeypatch.setattr(_backend, "active", _numpy)
    w = np.ones((4, 8), np.float32)
    calls = {
        "w": lambda: fs.select(tensor, "50%"),
        "x": lambda: fs.linear(tensor, fs.compress(w, "50%")),
        "scores": lambda: fs.compress(w, "50%", scores=tensor),
    }
    for name, call in calls.items():
        with pytest.raises(
            fs.FastSparseError, match=rf"^{name}: .*; fastsparse.torch has the same functions for tensors"
        ):
            call()
