"""Packed weights that lie in another order than a linear layer computes with, and the layers that have such weights.

Files and state dicts hold a tensor as the dense layer has it: `Conv1D` of transformers has inputs by outputs, experts
are matrices in one tensor, the weight of a convolution has a kernel. A layer here holds it as one matrix with a row for
each output, and changes the order when its state is saved or loaded.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastsparse as fs
from fastsparse.packed import new_array
from fastsparse.patterns import NM, TopK
from fastsparse.torch._linear import KEYS, Packed, SparseLinear
from fastsparse.torch._tensors import as_tensor

__all__ = ["ArrangedLinear", "Arrangement", "SparseConv", "SparseConv1D", "kept"]


@dataclass(frozen=True)
class Arrangement:
    """How a stored tensor becomes one matrix with a row for each output.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor.
    stacked : bool
        Whether its first dimension counts matrices, which come one after the other.
    swapped : bool
        Whether the rows of a stored matrix are inputs.
    """

    shape: tuple[int, ...]
    stacked: bool = False
    swapped: bool = False

    @property
    def count(self) -> int:
        """How many matrices there are."""
        return self.shape[0] if self.stacked else 1

    @property
    def _stored(self) -> tuple[int, int]:
        rows, *rest = self.shape[1:] if self.stacked else self.shape
        return rows, math.prod(rest)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of one matrix that is computed with."""
        rows, cols = self._stored
        return (cols, rows) if self.swapped else (rows, cols)

    def matrix(self, s: fs.BitmaskArray) -> fs.BitmaskArray:
        """The matrix to compute with, ``[count · rows, columns]``, of the stored tensor."""
        rows, cols = self.size
        shape = (self.count * rows, cols)
        if not self.stacked and not self.swapped:
            return new_array(shape, s.values, s.bitmask, s.row_offsets, _of_rows(s.pattern))
        if not self.swapped and cols % 8 == 0:  # rows end on bytes: the bits are the same
            known = _of_rows(s.pattern)
            return fs.BitmaskArray.from_parts(s.values, s.bitmask.reshape(shape[0], -1), shape, pattern=known)
        pieces = [s.rows(i, i + 1) for i in range(self.count)] if self.stacked else [s]
        return _joined([_ordered(piece, self._stored, self.swapped, (rows, cols)) for piece in pieces], shape)

    def stored(self, m: fs.BitmaskArray) -> fs.BitmaskArray:
        """The stored tensor, of the matrix that is computed with."""
        if not self.stacked and not self.swapped:
            return new_array(self.shape, m.values, m.bitmask, m.row_offsets, None)
        rows, cols = self.size
        if not self.swapped and cols % 8 == 0:
            return fs.BitmaskArray.from_parts(m.values, m.bitmask.reshape(self.count, -1), self.shape)
        row = (1, rows * cols) if self.stacked else self._stored
        pieces = [m.rows(i * rows, (i + 1) * rows) for i in range(self.count)]
        return _joined([_ordered(piece, (rows, cols), self.swapped, row) for piece in pieces], self.shape)

    def dense(self, m: Tensor) -> Tensor:
        """The dense stored tensor, of the dense matrix."""
        matrices = m.view(self.count, *self.size)
        return (matrices.transpose(1, 2) if self.swapped else matrices).reshape(self.shape)


def _of_rows(pattern: fs.Pattern | None) -> fs.Pattern | None:
    """The pattern where it holds for rows alone, however many matrices they are in."""
    return pattern if isinstance(pattern, NM | TopK) and pattern.axis == -1 else None


def _ordered(s: fs.BitmaskArray, shape: tuple[int, int], swap: bool, to: tuple[int, int]) -> fs.BitmaskArray:
    """One matrix of this shape, transposed if `swap`, as a tensor of the shape `to`."""
    parts = (part.reshape(shape) for part in (s.to_dense(), s.mask.to_bool()))
    dense, keep = (np.ascontiguousarray(part.T if swap else part).reshape(to) for part in parts)
    return fs.pack(dense, keep)


def _joined(pieces: list[fs.BitmaskArray], shape: tuple[int, ...]) -> fs.BitmaskArray:
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0]
    values = np.concatenate([piece.values for piece in pieces])
    return fs.BitmaskArray.from_parts(values, np.concatenate([piece.bitmask for piece in pieces]), shape)


def kept(s: Packed) -> fs.BitmaskArray:
    """The weight in its own dtype: the scales of one of eight bits belong to rows in the order of the file."""
    return s if isinstance(s, fs.BitmaskArray) else s.dequantize()


class ArrangedLinear(SparseLinear):
    """A packed layer whose state dict has its weight in another order. It keeps its own dtype, never eight bits."""

    @property
    def _arrangement(self) -> Arrangement:
        raise NotImplementedError

    def stored(self) -> fs.BitmaskArray:
        """The weight as state dicts and files have it."""
        return self._arrangement.stored(kept(self.packed))

    def _stored_shape(self) -> tuple[int, ...]:
        return self._arrangement.shape

    def _arrange(self, s: Packed) -> fs.BitmaskArray:
        return self._arrangement.matrix(kept(s))

    def _order(self, dense: Tensor) -> Tensor:
        return self._arrangement.dense(dense)

    def _parts(self) -> dict[str, Tensor]:
        s = self.stored()
        shape = torch.tensor(s.shape, dtype=torch.int64, device="cpu")
        return dict(zip(KEYS, (shape, *map(as_tensor, (s.values, s.bitmask, s.row_offsets[:-1]))), strict=True))

    def _dense_parameter(self) -> nn.Parameter:
        return nn.Parameter(self._order(as_tensor(self.packed.to_dense())))


class SparseConv1D(ArrangedLinear):
    """The packed form of transformers' `Conv1D`, a linear layer whose weight is ``[in_features, out_features]``.

    `fastsparse.torch.sparsify` makes them. Everything but the order of the weight is as with `SparseLinear`.
    """

    @classmethod
    def of(cls, s: Packed, dense: nn.Module) -> "SparseConv1D":
        """A layer of the packed weight of another, and its very bias."""
        layer = cls.from_packed(Arrangement(s.shape, swapped=True).matrix(kept(s)), dense.bias)
        assert isinstance(layer, cls)
        return layer

    @property
    def nx(self) -> int:
        """Inputs, as `Conv1D` calls them."""
        return self.in_features

    @property
    def nf(self) -> int:
        """Outputs, as `Conv1D` calls them."""
        return self.out_features

    @property
    def _arrangement(self) -> Arrangement:
        return Arrangement((self.in_features, self.out_features), swapped=True)

    def to_dense(self) -> nn.Module:
        """A `Conv1D` with the same weight, and the very bias of this one."""
        from transformers.pytorch_utils import Conv1D  # whoever has such a layer has transformers

        with torch.device("meta"):
            dense = Conv1D(self.out_features, self.in_features)
        dense.weight, dense.bias = self._dense_parameter(), self.bias
        return dense.train(self.training)


class SparseConv(ArrangedLinear):
    """The packed form of a convolution of one group whose kernel is one element wide: a linear layer at each position.

    `fastsparse.torch.sparsify` makes them. Its input is that of the dense layer; the rest is as with `SparseLinear`.
    """

    stride: tuple[int, ...] = (1, 1)
    """Steps along each dimension, as many as the kernel has."""

    @classmethod
    def of(cls, s: Packed, dense: Any) -> "SparseConv":
        """A layer of the packed weight of another, and its very bias."""
        layer = cls.from_packed(Arrangement(s.shape).matrix(kept(s)), dense.bias)
        assert isinstance(layer, cls)
        layer.stride = tuple(dense.stride)
        return layer

    @property
    def _arrangement(self) -> Arrangement:
        return Arrangement((self.out_features, self.in_features, *(1 for _ in self.stride)))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x of shape ``([batch,] in_features, …)``."""
        channels = -1 - len(self.stride)
        if any(step > 1 for step in self.stride):
            x = x[(..., *(slice(None, None, step) for step in self.stride))]
        return super().forward(x.movedim(channels, -1)).movedim(-1, channels)

    def to_dense(self) -> nn.Module:
        """A convolution with the same weight, and the very bias of this one."""
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.stride) - 1]
        ones: Any = tuple(1 for _ in self.stride)
        stride: Any = self.stride
        dense = kind(self.in_features, self.out_features, ones, stride=stride, bias=False, device="meta")
        dense.weight, dense.bias = self._dense_parameter(), self.bias
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """What `repr` says between the brackets."""
        return f"{super().extra_repr()}, stride={self.stride}"
