"""While torch prunes a model its products take the place of NumPy's: results are the same up to rounding."""

import calibration_oracle as oracle
import numpy as np
import pytest
import torch

import fastsparse.torch as fst
from fastsparse import calibration
from fastsparse.calibration import _products
from fastsparse.torch import _products as _products_of_torch
from fastsparse.torch._products import TorchProducts


def results(w, x, mask):
    gram = calibration.Gram(w.shape[1])
    for piece in np.array_split(x, 3):
        gram.update(piece)
        yield gram.matrix.copy()  # looked at in between: it goes on from there
    yield calibration.factorize(gram).upper[np.triu_indices(w.shape[1])]
    yield calibration.refine(w, gram, mask)
    for method in (calibration.sparsegpt, calibration.alps):
        for pattern in ("50%", "2:4"):
            # A weight at the edge may fall on the other side and move those after it: compared is what is lost.
            yield oracle.layer_error(w, method(w, gram, pattern)[0], x)


@pytest.mark.parametrize("cols", [40, 600])
def test_torch_computes_what_numpy_computes(cols):
    w, x = oracle.layer(24, cols)
    mask = calibration.wanda(w, np.ones(cols), "50%")
    plain = list(results(w, x, mask))
    with _products.using(TorchProducts()):
        found = list(results(w, x, mask))
    for ours, theirs in zip(found, plain, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_nothing_is_copied_that_is_read_only():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (a, a.T, a[1:, 1:]):
        array.flags.writeable = False
        assert _products_of_torch._read(array).data_ptr() == array.ctypes.data
        assert np.array_equal(TorchProducts().matmul(array, array.T), array @ array.T)
        assert not array.flags.writeable


def test_not_positive_definite():
    matrix = -np.eye(8) + 2 * np.eye(8, k=1) + 2 * np.eye(8, k=-1)
    assert _products.Products().cholesky(matrix) is None
    assert TorchProducts().cholesky(matrix) is None


def test_no_other_library_multiplies_while_a_model_is_pruned(monkeypatch):
    for name in ("matmul", "add_gram", "cholesky", "eigh"):
        monkeypatch.setattr(_products.Products, name, lambda *_: pytest.fail("NumPy computes"))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    for method in ("sparsegpt", "wanda", "alps"):
        report = fst.prune_model(model, "50%", [torch.randn(300, 64)], method=method)
        assert report.sparsity == 0.5
