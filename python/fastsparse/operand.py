"""What packed weights of every kind are as an operand of ``@``, and their transpose."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, torch_hint
from fastsparse.masks import matrix_view

__all__ = ["Operand", "Transposed", "check_matrix"]


class Operand:
    """Base of packed weights: products are those of `fs.linear`, shapes are counted as in NumPy."""

    __slots__ = ()

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""
        raise NotImplementedError

    def _linear(
        self, x: ArrayLike, bias: ArrayLike | None, weight_scale: ArrayLike | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements, zeros included, as in NumPy; `nnz` counts those that are kept."""
        return math.prod(self.shape)

    @property
    def T(self) -> Transposed:
        """The transpose of the matrix view, over the same memory, for ``x @ s.T``, which is ``fs.linear(x, s)``.

        Raises
        ------
        FastSparseError
            If the tensor has fewer than two dimensions.
        """
        check_matrix(self.shape)
        return Transposed(self)

    def __matmul__(self, x: ArrayLike) -> NDArray[Any]:
        """The product with a vector ``[cols]`` or a matrix ``[cols, n]``, computed from the packed weights.

        The tensor is seen as a matrix. See `fs.linear` for dtypes and errors; activations that lie by rows are faster
        there, they need not be transposed.
        """
        try:
            columns = np.asarray(x)
        except (RuntimeError, TypeError) as error:
            if not torch_hint(x):
                raise
            raise FastSparseError(f"x: cannot be read as an array: {error}{torch_hint(x)}") from error
        if columns.ndim not in (1, 2):
            raise FastSparseError(f"x: expected one or two dimensions, got shape {columns.shape}")
        return np.ascontiguousarray(self._linear(columns.T, None, None, None).T)

    def __rmatmul__(self, x: object) -> NoReturn:
        raise TypeError(f"x @ s is not computed from packed weights; x @ s.T and s @ x are{torch_hint(x)}")


class Transposed:
    """The transpose of packed weights, over the same memory; their `T` makes one.

    All that it does is to be multiplied from the left: ``x @ s.T`` is ``fs.linear(x, s)``, whose dtypes and errors it
    has. Everything else is asked of ``s.T.T``, which is `s`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.compress(np.float32([[0.1, -4, 0.2, 3], [5, 0.3, 0.4, -6]]), "2:4")
    >>> s.T
    <transpose of <BitmaskArray 2×4 float32, 50.0 % sparse, 42 B (1.31 of dense)>>
    >>> np.float32([[1, 1, 1, 1], [0, 1, 0, 2]]) @ s.T
    array([[ -1.,  -1.],
           [  2., -12.]], dtype=float32)
    >>> s.T.T is s
    True
    """

    __slots__ = ("_weights",)

    __array_ufunc__ = None

    def __init__(self, weights: Operand) -> None:
        self._weights = weights

    @property
    def T(self) -> Operand:
        """The weights."""
        return self._weights

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows of the matrix view of the weights."""
        rows, cols = matrix_view(self._weights.shape)
        return cols, rows

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weights."""
        return self._weights.dtype

    def __rmatmul__(self, x: ArrayLike) -> NDArray[Any]:
        """``x @ s.T``, for `x` of shape ``(…, cols)``; see `fs.linear`."""
        if torch_hint(x):
            raise FastSparseError(f"x: expected an array, got {type(x).__name__}{torch_hint(x)}: linear(x, s)")
        return self._weights._linear(x, None, None, None)

    def __matmul__(self, x: object) -> NoReturn:
        raise TypeError("s.T @ x is not computed from packed weights; x @ s.T and s @ x are")

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuses, as a `BitmaskArray` does."""
        raise TypeError("the transpose of packed weights does not become dense by itself; use s.to_dense().T")

    def __repr__(self) -> str:
        return f"<transpose of {self._weights!r}>"


def check_matrix(shape: tuple[int, ...]) -> None:
    """Refuses to compute with what is no matrix."""
    if len(shape) < 2:
        raise FastSparseError(f"s: a tensor of shape {shape} is no matrix; two dimensions are needed")
