"""The layers of a model that are pruned with calibration data: weights as matrices, and what goes into them."""

from collections import Counter
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
from fastsparse.torch._places import Use, is_conv1d, packed_at, uses_of
from fastsparse.torch._report import LayerReport
from fastsparse.torch._sparsify import report_row
from fastsparse.torch._tensors import has_memory

__all__ = ["Expert", "Layer", "Stacked", "is_series", "layers_of"]


class Layer:
    """A module with a weight, seen as a matrix of outputs and inputs; `method` where a rule has one.

    What is `routed` may be given any tokens in any order, as rows of a matrix.
    """

    def __init__(
        self, name: str, module: nn.Module, pattern: Pattern, method: str | None = None, *, routed: bool = False
    ) -> None:
        self.name, self.module, self.pattern, self.method = name, module, pattern, method
        self._routed = routed

    unseen = "it saw no token"
    """What a report says where no batch reached it."""

    is_unknown = False
    """Whether nothing is known of what it is multiplied with, so that it stays dense."""

    @property
    def parameter(self) -> str:
        """The name of the parameter that it is, or is a part of: rules decide by that."""
        return self.name

    @property
    def weight(self) -> Tensor:
        """What is pruned, as the model has it."""
        weight: Tensor = self.module.weight.detach()
        return weight

    @property
    def transposed(self) -> bool:
        """Whether the inputs come first."""
        return is_conv1d(self.module)

    @property
    def rows(self) -> int:
        """Outputs."""
        return int(self.weight.shape[1 if self.transposed else 0])

    @property
    def cols(self) -> int:
        """Inputs, of a convolution those of a patch."""
        return int(self.weight.numel() // max(self.rows, 1))

    def matrix(self) -> NDArray[Any]:
        """The weight, ``[outputs, inputs]``, float32."""
        weight = self.weight.float()
        matrix = weight.T if self.transposed else weight.reshape(len(weight), -1)
        return np.ascontiguousarray(matrix.numpy())

    def write(self, matrix: NDArray[Any]) -> None:
        """Makes this the weight."""
        weight = self.weight
        new = torch.from_numpy(np.ascontiguousarray(matrix.T if self.transposed else matrix))
        weight.copy_(new.reshape(weight.shape))

    def tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The inputs of the module as ``[tokens, inputs]``, without those that are masked."""
        module = self.module
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return _patches(module, x)
        masked = mask is not None and x.shape[:-1].numel() == mask.numel() and not (self._routed and x.ndim == 2)
        x = x.reshape(-1, x.shape[-1])
        return x[mask.to(torch.bool).reshape(-1)] if mask is not None and masked else x


class Stacked:
    """A parameter of three dimensions, ``[experts, …, …]``, that experts are slices of."""

    def __init__(self, name: str, weight: Tensor) -> None:
        self.name, self.weight = name, weight
        self.inputs: int | None = None
        """The dimension of the inputs, 1 or 2, once a product has shown it."""


class Expert(Layer):
    """A slice of a stacked parameter. What goes into it is seen by the products with it."""

    unseen = "no product with it was seen"

    def __init__(
        self, name: str, module: nn.Module, stacked: Stacked, index: int, pattern: Pattern, method: str | None
    ) -> None:
        super().__init__(name, module, pattern, method, routed=True)
        self.stacked, self.index = stacked, index

    @property
    def parameter(self) -> str:
        """The name of the parameter that it is a part of."""
        return self.stacked.name

    @property
    def weight(self) -> Tensor:
        """What is pruned, as the model has it."""
        return self.stacked.weight.detach()[self.index]

    @property
    def is_unknown(self) -> bool:  # type: ignore[override]
        """Whether no product with any expert of the parameter was seen."""
        return self.stacked.inputs is None

    @property
    def transposed(self) -> bool:
        """Whether the inputs come first."""
        return self.stacked.inputs == 1

    def tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The inputs that are for this expert: where it is given all tokens, those of others are zero."""
        x = super().tokens(x, mask)
        return x[x.any(dim=1)]


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, position by position."""
    if x.ndim == len(module.kernel_size) + 1:
        x = x.unsqueeze(0)
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
        own = [(name, shown[name].shape)]
        if reason is None:
            assert isinstance(choice, Pattern)
            found = _layers(model, name, names[0], choice, recipe.method_for(name))
            layers.update((layer.name, layer) for layer in found)
            own = [(layer.name, tuple(layer.weight.shape)) for layer in found]
        rows.update((row, LayerReport(row, shape, reason=reason)) for row, shape in own)
    if not layers:
        reasons = Counter(row.reason for row in rows.values() if len(row.shape) > 1)
        most = next((reason for reason, _ in reasons.most_common(1)), None)
        example = next((f" ({name!r}: {most})" for name, row in rows.items() if most and row.reason == most), "")
        raise FastSparseError(f"model: {type(model).__name__} has no weight that is pruned by default{example}")
    return layers, rows


def _layers(model: nn.Module, name: str, use: Use, pattern: Pattern, method: str | None) -> list[Layer]:
    """The layer of a parameter, or its experts."""
    module = model.get_submodule(use.module)
    if _known(module, use.attribute):
        return [Layer(name, module, pattern, method, routed=_is_in_expert(model, use.module))]
    stacked = Stacked(name, getattr(module, use.attribute))
    return [Expert(f"{name}[{i}]", module, stacked, i, pattern, method) for i in range(len(stacked.weight))]


def _is_in_expert(model: nn.Module, path: str) -> bool:
    """Whether a module belongs to one of several of a kind that lie within one of several blocks."""
    parts = path.split(".")
    return sum(is_series(model.get_submodule(".".join(parts[:end]))) for end in range(1, len(parts))) > 1


def is_series(module: nn.Module) -> bool:
    """Whether it is a list of at least two modules of one class, as blocks and experts are."""
    return isinstance(module, nn.ModuleList) and len(module) > 1 and len(set(map(type, module))) == 1


def _known(module: nn.Module, attribute: str) -> bool:
    """Whether what goes into a module is what its weight is multiplied with."""
    known = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) or is_conv1d(module)
    return known and attribute == "weight"


def _obstacle(model: nn.Module, names: Sequence[Any]) -> str | None:
    """Why a weight is not pruned on the inputs of its layer."""
    if len(names) > 1:
        return f"tied to {names[1].name}"
    module, attribute = model.get_submodule(names[0].module), names[0].attribute
    if packed_at(module, attribute) is not None:
        return "packed already"
    weight = getattr(module, attribute)
    if not has_memory(weight):
        return f"the weight is a {type(weight).__name__}, not a plain tensor"
    if not _known(module, attribute):
        if weight.ndim != 3:
            return f"of a {type(module).__name__}, whose inputs are not captured"
        if weight.is_meta:
            return "experts of one parameter are pruned only where the whole model is in memory"
    if getattr(module, "groups", 1) != 1:
        return f"a convolution of {module.groups} groups"
    return None
