"""Models: which of their linear layers become packed ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import fastsparse as fs
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import DTYPES, Entry
from fastsparse.checkpoint._global_sparsity import spread
from fastsparse.checkpoint._reader import native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import Report, TensorReport
from fastsparse.torch._linear import COMPUTES, SparseLinear
from fastsparse.torch._tensors import as_array, compress

__all__ = ["sparsify"]


@dataclass(frozen=True)
class _Use:
    """Where a parameter is: the module that has it, by the names of the module and of the parameter in it."""

    module: str
    attribute: str

    @property
    def name(self) -> str:
        """The name of the tensor in the state dict."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


def sparsify(model: nn.Module, recipe: Recipe | fs.Pattern | str) -> Report:
    """Prune a model's linear layers and replace them by `SparseLinear`, in place.

    The default selection is that of checkpoints: weights of more than 2048 elements, but neither embeddings nor
    `lm_head` unless a rule or `include` of the recipe names them. Names are those of the state dict, such as
    ``model.layers.0.mlp.up_proj.weight``.

    What stays dense, and the report says so: whatever is no `torch.nn.Linear`, subclasses of it among them; a weight
    that something other than linear layers shares, such as an output layer tied to its embedding; a layer with hooks,
    and one whose weight is computed (make that permanent first, with `torch.nn.utils.prune.remove` for example); a
    weight that packed would be larger. Linear layers that share a weight get a packed copy each.

    One dense weight is freed before the next is packed: the memory never holds more than the model and one layer.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    recipe : Recipe, Pattern or str
        A pattern or its short form for the default selection; ``"nonzero"`` for a model that is pruned already. The
        global scope spreads the zeros over all weights of the model that are pruned by default.

    Returns
    -------
    Report
        Every parameter, as it is now.

    Raises
    ------
    FastSparseError
        If the model is itself a linear layer, a weight is not on the CPU or holds NaN, or a pattern does not fit. The
        layers before the one that is named have been replaced by then.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    >>> report = sparsify(model, "50%")
    >>> model
    Sequential(
      (0): SparseLinear(in_features=64, out_features=256, bias=True, float32, 50.0 % sparse)
      (1): ReLU()
      (2): Linear(in_features=256, out_features=4, bias=True)
    )
    >>> [tensor.reason for tensor in report.tensors if tensor.name == "2.weight"]
    ['no more than 2048 elements']
    """
    if isinstance(model, nn.Linear):
        raise FastSparseError("model: a linear layer cannot be replaced in place; use SparseLinear.from_linear")
    started = time.perf_counter()
    wanted = Recipe.of(recipe)
    uses = _uses(model)
    choices = {names[0].name: _choose(model, wanted, names) for names in uses}
    pruned = (name for name, chosen in choices.items() if isinstance(chosen, fs.Pattern))
    choices.update(_shares(model, wanted, sorted(filter(wanted.competes, pruned))))
    rows = []
    for names in uses:
        chosen = choices[names[0].name]
        row = _row(names[0].name, _parameter(model, names[0]))
        rows.append(replace(row, reason=chosen) if isinstance(chosen, str) else _replace(model, names, chosen, row))
    return Report(type(model).__name__, None, tuple(rows), time.perf_counter() - started)


def _uses(model: nn.Module) -> list[list[_Use]]:
    """For each parameter all its names, those of modules that are in several places among them."""
    found: dict[int, list[_Use]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(_Use(path, attribute))
    return list(found.values())


def _parameter(model: nn.Module, use: _Use) -> nn.Parameter:
    return getattr(model.get_submodule(use.module), use.attribute)


def _choose(model: nn.Module, recipe: Recipe, names: list[_Use]) -> fs.Pattern | str:
    """The pattern for a parameter, or the reason why it stays as it is."""
    weight = _parameter(model, names[0])
    for use in names:
        reason = _obstacle(model.get_submodule(use.module), use.attribute)
        if reason is not None:
            return reason if use == names[0] else f"tied to {use.name}: {reason}"
    if weight.dtype not in COMPUTES:
        return f"layers of dtype {_dtype(weight)} are not computed packed"
    found = [recipe.choose(use.name, _dtype(weight), tuple(weight.shape)) for use in names]
    return next((chosen for chosen in found if isinstance(chosen, str)), found[0])


def _obstacle(module: nn.Module, attribute: str) -> str | None:
    """Why the module that holds a parameter is not to be replaced, if it is not."""
    if type(module) is not nn.Linear:
        return f"of a {type(module).__name__}, not a Linear"
    if attribute == "bias":
        return "a bias"
    if attribute != "weight":
        return "the weight is computed from it; make that permanent first"
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "the layer has hooks"
    if "forward" in vars(module):
        return "the layer has a forward of its own"
    return None


def _shares(model: nn.Module, recipe: Recipe, names: list[str]) -> dict[str, fs.Pattern]:
    """What each of these weights, which compete with each other, is pruned by."""
    if not names:
        return {}
    weights = {name: model.get_parameter(name) for name in names}
    entries = {name: Entry(name, _dtype(w), tuple(w.shape), w.nbytes) for name, w in weights.items()}

    def each(function: str, *arguments: int) -> Iterator[tuple[str, Any]]:
        for name, weight in weights.items():
            with _blame(name):
                yield name, getattr(native(), function)(as_array(weight), *arguments)

    assert isinstance(recipe.default, fs.Unstructured), "the recipe has checked that"
    zeros = spread(entries, recipe.default.sparsity, recipe.min_sparsity, recipe.max_sparsity, each)
    return {name: fs.Unstructured(zeros[name][0] / max(weight.numel(), 1)) for name, weight in weights.items()}


def _replace(model: nn.Module, names: list[_Use], chosen: fs.Pattern, row: TensorReport) -> TensorReport:
    """Packs a weight and puts a layer wherever the weight is."""
    weight = _parameter(model, names[0])
    with _blame(row.name):
        s = compress(weight, chosen)
    if s.nbytes > row.bytes_before:
        return replace(row, reason=f"packed it would be larger, {s.nbytes} bytes")
    layers: dict[nn.Module, SparseLinear] = {}
    for use in names:
        linear = model.get_submodule(use.module)
        if linear not in layers:
            layers[linear] = SparseLinear.from_packed(s, linear.bias).train(linear.training)
        path, _, attribute = use.module.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, attribute, layers[linear])
        if isinstance(owner, nn.TransformerEncoderLayer):
            owner.activation_relu_or_gelu = 0  # switches off its fused path, which reads the dense weights
    return replace(row, pattern=str(chosen), sparsity=s.sparsity, bytes_after=s.nbytes * len(layers))


def _row(name: str, parameter: nn.Parameter) -> TensorReport:
    """The row of a parameter as it is, dense."""
    size = parameter.numel() * parameter.element_size()
    return TensorReport(name, tuple(parameter.shape), _dtype(parameter), None, None, size, size)


def _dtype(parameter: nn.Parameter) -> str:
    """The name that safetensors gives the dtype, or torch's where it has none."""
    name = str(parameter.dtype).removeprefix("torch.")
    return next((short for short, dtype in DTYPES.items() if dtype.name == name), name)


@contextmanager
def _blame(name: str) -> Iterator[None]:
    """Errors name the tensor."""
    try:
        yield
    except FastSparseError as error:
        raise type(error)(f"tensor {name!r}: {error}") from None
