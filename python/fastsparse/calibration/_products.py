"""Products of matrices and factorisations: those of NumPy, or of another library while it computes in this process.

Two libraries that both have threads slow each other down: those of one spin for a while after each product, on the
cores that the other one's threads need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Products", "active", "using"]

Array = NDArray[Any]


class Products:
    """Those of NumPy, by its BLAS and LAPACK. Arrays of one dtype, float32 or float64."""

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """`a @ b`, into contiguous memory if given."""
        product: Array = np.matmul(a, b, out=out)
        return product

    def add_gram(self, sums: Array, x: Array) -> None:
        """Adds `xᵀ x` on and below the diagonal; what is above it does not count."""
        sums += x.T @ x  # a product that makes use of the symmetry

    def cholesky(self, matrix: Array) -> Array | None:
        """The lower triangle L with `L Lᵀ = matrix`; None where it is not positive definite."""
        try:
            lower: Array = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None
        return lower

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """The eigenvalues of a symmetric matrix, ascending, and its eigenvectors as columns."""
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors


_NUMPY = Products()
_ACTIVE: ContextVar[Products] = ContextVar("products", default=_NUMPY)


def active() -> Products:
    """What computes now."""
    return _ACTIVE.get()


@contextmanager
def using(products: Products) -> Iterator[None]:
    """Within, these compute."""
    token = _ACTIVE.set(products)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
