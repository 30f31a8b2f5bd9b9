"""The layers of a model that are pruned with calibration data: weights as matrices, and what goes into them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.patterns import Pattern
from fastsparse.torch._places import uses_of
from fastsparse.torch._report import LayerReport
from fastsparse.torch._sparsify import report_row
from fastsparse.torch._tensors import has_memory

__all__ = ["Layer", "layers_of"]


class Layer:
    """A module with a weight, seen as a matrix of outputs and inputs; `method` where a rule has one."""

    def __init__(self, name: str, module: nn.Module, pattern: Pattern, method: str | None = None) -> None:
        self.name, self.module, self.pattern, self.method = name, module, pattern, method
        self.transposed = type(module).__name__ == "Conv1D"
        rows, *cols = module.weight.shape
        self.rows, self.cols = (math.prod(cols), rows) if self.transposed else (rows, math.prod(cols))

    def matrix(self) -> NDArray[Any]:
        """The weight, ``[outputs, inputs]``, float32."""
        weight = self.module.weight.detach().float()
        matrix = weight.T if self.transposed else weight.reshape(len(weight), -1)
        return np.ascontiguousarray(matrix.numpy())

    def write(self, matrix: NDArray[Any]) -> None:
        """Makes this the weight."""
        weight = self.module.weight.data
        new = torch.from_numpy(np.ascontiguousarray(matrix.T if self.transposed else matrix))
        weight.copy_(new.reshape(weight.shape))

    def tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The inputs of the module as ``[tokens, inputs]``, without those that are masked."""
        module = self.module
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return _patches(module, x)
        if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
            x = x[mask.to(torch.bool)]
        return x.reshape(-1, x.shape[-1])


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, position by position."""
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(-2)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        sides = list(module._reversed_padding_repeated_twice)
        x = F.pad(x, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        padding: tuple[int, ...] = (0,) * len(module.kernel_size)
    else:
        padding = tuple(module.padding)
    lead = (1,) if isinstance(module, nn.Conv1d) else ()
    none = (0,) if isinstance(module, nn.Conv1d) else ()
    patches = F.unfold(
        x.float(),
        lead + tuple(module.kernel_size),
        dilation=lead + tuple(module.dilation),
        padding=none + padding,
        stride=lead + tuple(module.stride),
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def layers_of(model: nn.Module, recipe: Recipe) -> tuple[dict[str, Layer], dict[str, LayerReport]]:
    """The layers to prune, and a row for each parameter."""
    uses = {names[0].name: names for names in uses_of(model)}
    shown = {name: report_row(model, names[0]) for name, names in uses.items()}
    choices = recipe.choose_all({name: (row.dtype, row.shape) for name, row in shown.items()})
    layers: dict[str, Layer] = {}
    rows: dict[str, LayerReport] = {}
    for name, names in uses.items():
        choice = choices[name]
        reason = choice if isinstance(choice, str) else _obstacle(model, names)
        if reason is None:
            assert isinstance(choice, Pattern)
            layers[name] = Layer(name, model.get_submodule(names[0].module), choice, recipe.method_for(name))
        rows[name] = LayerReport(name, shown[name].shape, reason=reason)
    if not layers:
        raise FastSparseError(f"model: {type(model).__name__} has no weight that is pruned by default")
    return layers, rows


def _obstacle(model: nn.Module, names: Sequence[Any]) -> str | None:
    """Why a weight is not pruned on the inputs of its layer."""
    if len(names) > 1:
        return f"tied to {names[1].name}"
    module, attribute = model.get_submodule(names[0].module), names[0].attribute
    known = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) or type(module).__name__ == "Conv1D"
    if not known or attribute != "weight":
        return f"of a {type(module).__name__}, whose inputs are not captured"
    if getattr(module, "groups", 1) != 1:
        return f"a convolution of {module.groups} groups"
    if not has_memory(module.weight):
        return f"the weight is a {type(module.weight).__name__}, not a plain tensor"
    return None
