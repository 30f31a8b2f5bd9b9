"""What goes into experts that are slices of one parameter: seen in the products with its memory.

How a model multiplies its experts differs from family to family and from version to version: one by one with the
tokens that are routed to each, all at once in a batched product, or in a grouped one. All of them end in a few
operations, one factor of which lies in the memory of the parameter. Where it lies there tells which expert it is, and
its strides tell which of its dimensions are the inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastsparse.torch._layers import Expert, Layer, Stacked

__all__ = ["ProductsWithExperts"]

_FACTORS = {
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::bmm": (0, 1),
    "aten::baddbmm": (1, 2),
    "aten::_grouped_mm": (0, 1),
    "transformers::grouped_mm_fallback": (0, 1),
}
"""Products, and where their factors are among the arguments."""

_GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
"""Those whose third argument, `offs`, says where the rows of each expert end."""


class ProductsWithExperts(TorchDispatchMode):
    """Within, `note` is called with each expert that something is multiplied with, and that.

    It is ``[1, tokens, inputs]`` in a batched product, whose tokens may be all in their order, and ``[tokens, inputs]``
    in others.
    """

    def __init__(self, layers: Sequence[Layer], note: Callable[[Layer, Tensor], None]) -> None:
        super().__init__()
        self._note = note
        self._experts: dict[Stacked, list[Expert]] = {}
        for layer in layers:
            if isinstance(layer, Expert):
                self._experts.setdefault(layer.stacked, []).append(layer)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at an operation and runs it."""
        name, kwargs = func._schema.name, kwargs or {}
        if name in _FACTORS:
            left, right = (args[at] for at in _FACTORS[name])
            ends = (*args, kwargs.get("offs"))[2] if name in _GROUPED else None
            self._look(left, right, ends)
        return func(*args, **kwargs)

    def _look(self, left: Tensor, right: Tensor, ends: Tensor | None) -> None:
        for weight, x, dimension in ((right, left, -2), (left, right.mT, -1)):
            for stacked, experts in self._experts.items():
                first = _expert_at(weight, dimension, stacked)
                if first is not None:
                    # One expert repeated, as by `expand`, is given the inputs of all repetitions.
                    groups = [torch.cat([*_tokens(x, ends)], dim=-2)] if _is_repeated(weight) else _tokens(x, ends)
                    for index, tokens in enumerate(groups, first):
                        if index < len(experts):
                            self._note(experts[index], tokens)
                    return


def _is_repeated(factor: Tensor) -> bool:
    return factor.ndim == 3 and len(factor) > 1 and factor.stride(0) == 0


def _expert_at(factor: Tensor, dimension: int, stacked: Stacked) -> int | None:
    """The first expert that a factor holds, where it lies in a parameter with all inputs along a dimension."""
    weight = stacked.weight
    if factor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
        return None
    if factor.ndim == 3 and len(factor) > 1 and factor.stride(0) not in (0, weight.stride(0)):
        return None
    first, rest = divmod(factor.storage_offset() - weight.storage_offset(), weight.stride(0))
    inputs = next((axis for axis in (1, 2) if weight.stride(axis) == factor.stride(dimension)), None)
    # What begins within an expert, such as the second half of its outputs, is given the same as its first half.
    if rest or inputs is None or not 0 <= first < len(weight) or factor.shape[dimension] != weight.shape[inputs]:
        return None
    if factor.shape[-3 - dimension] > weight.shape[3 - inputs]:  # several experts as one matrix
        return None
    stacked.inputs = inputs
    return int(first)


def _tokens(x: Tensor, ends: Tensor | None) -> Iterator[Tensor]:
    """What each expert is given: all, a matrix each, or the rows up to the end of each."""
    if ends is not None:
        yield from x.tensor_split(ends[:-1].to(torch.int64).cpu()) if len(ends) > 1 else [x]
    elif x.ndim == 3:
        yield from x.unsqueeze(1)  # all tokens in their order, as in a batch of one
    else:
        yield x
