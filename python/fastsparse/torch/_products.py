"""Products of calibration by torch, whose threads are then the only ones that compute."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsparse.calibration._products import Products
from fastsparse.torch._tensors import as_array, as_tensor

__all__ = ["TorchProducts"]

Array = NDArray[Any]
_PANEL = 256
"""Columns of a Gram matrix that are computed at a time."""


def _read(array: Array) -> torch.Tensor:
    """A tensor that is only read, over the same memory where the array is read-only too: torch has no word for that."""
    return as_tensor(array if array.flags.writeable else np.asarray(_Writeable(array)))


class _Writeable:
    """An array that NumPy takes for a writeable one."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


class TorchProducts(Products):
    """The same as NumPy's up to rounding."""

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        product = torch.matmul(_read(a), _read(b), out=None if out is None else as_tensor(out))
        return as_array(product)

    def add_gram(self, sums: Array, x: Array) -> None:
        # torch knows no product that makes use of the symmetry.
        whole, tokens = as_tensor(sums), _read(x)
        for first in range(0, len(whole), _PANEL):
            panel = slice(first, first + _PANEL)
            whole[first:, panel].addmm_(tokens[:, first:].T, tokens[:, panel])

    def cholesky(self, matrix: Array) -> Array | None:
        lower, failed = torch.linalg.cholesky_ex(_read(matrix))
        return None if failed.item() else as_array(lower)

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        values, vectors = torch.linalg.eigh(_read(matrix))
        return as_array(values), as_array(vectors)
