"""Products of calibration by torch, whose threads are then the only ones that compute."""

from typing import Any

import torch
from numpy.typing import NDArray

from fastsparse.calibration._products import Products
from fastsparse.torch._tensors import as_array, as_tensor

__all__ = ["TorchProducts"]

Array = NDArray[Any]
_PANEL = 256
"""Columns of a Gram matrix that are computed at a time."""


class TorchProducts(Products):
    """The same as NumPy's up to rounding."""

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        product = torch.matmul(as_tensor(a), as_tensor(b), out=None if out is None else as_tensor(out))
        return as_array(product)

    def add_gram(self, sums: Array, x: Array) -> None:
        # torch knows no product that makes use of the symmetry.
        whole, tokens = as_tensor(sums), as_tensor(x)
        for first in range(0, len(whole), _PANEL):
            panel = slice(first, first + _PANEL)
            whole[first:, panel].addmm_(tokens[:, first:].T, tokens[:, panel])

    def cholesky(self, matrix: Array) -> Array | None:
        lower, failed = torch.linalg.cholesky_ex(as_tensor(matrix))
        return None if failed.item() else as_array(lower)

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        values, vectors = torch.linalg.eigh(as_tensor(matrix))
        return as_array(values), as_array(vectors)
