"""Models: which of their linear layers become packed ones, and dense ones again."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

import fastsparse as fs
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._global_sparsity import spread
from fastsparse.checkpoint._reader import native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import Report, TensorReport
from fastsparse.packed import new_array
from fastsparse.quantized import BITS, check_bits
from fastsparse.torch._linear import COMPUTES, SparseLinear
from fastsparse.torch._places import (
    Use,
    check_replaceable,
    dtype_name,
    error_context,
    layer_for,
    obstacle,
    packed_at,
    put_dense,
    put_packed,
    takes_bits,
    uses_of,
)
from fastsparse.torch._tensors import as_array, pack, select

__all__ = ["chosen_of", "report_row", "sparsify", "to_dense"]


def sparsify(model: nn.Module, recipe: Recipe | fs.Pattern | str, *, weight_bits: int | None = None) -> Report:
    """Prune the layers of a model and pack them, in place: linear ones become `SparseLinear`.

    The default selection is that of checkpoints: weights of more than 2048 elements, but no embeddings, output layers
    and routers unless a rule or `include` of the recipe names them. Names are those of the state dict, such as
    ``model.layers.0.mlp.up_proj.weight``.

    Packed are `torch.nn.Linear`, transformers' `Conv1D`, convolutions of one group with a kernel of one and no padding,
    experts that are one parameter of three dimensions in a module that is not of torch, and the weights of
    `torch.nn.MultiheadAttention`. A pattern is that of the tensor as the state dict has it.

    What stays dense, and the report says so: whatever is none of these, subclasses of `torch.nn.Linear` among them; a
    weight that something else shares, such as an output layer tied to its embedding; a layer with hooks, and one whose
    weight is computed (make that permanent first, with `torch.nn.utils.prune.remove` for example); a weight that is no
    plain tensor, quantised by torchao for example; one that packed would be larger. Layers that share a weight get a
    packed copy each. What is packed already stays as it is and is reported.

    All masks are chosen before the first layer is replaced, so that an error leaves the model as it was. Then one dense
    weight is freed before the next is packed: the memory never holds more than the model, the masks and one layer.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    recipe : Recipe, Pattern or str
        A pattern or its short form for the default selection; ``"nonzero"`` for a model that is pruned already. The
        global scope spreads the zeros over all weights of the model that are pruned by default.
    weight_bits : {None, 8}
        8 rounds what is kept to int8 with a scale for each row, as `fs.BitmaskArray.quantize` does: 5 bits a weight at
        50 %. Weights of linear layers only; others keep their dtype. None is what the recipe says.

    Returns
    -------
    Report
        Every parameter, as it is now.

    Raises
    ------
    FastSparseError
        If the model is itself a linear layer, a weight is not on the CPU or holds NaN, or with eight bits an infinity,
        a pattern does not fit, or an expression of the recipe is found in no name. The model is as it was then.

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
    if layer_for(model) is not None:
        hint = "use SparseLinear.from_linear" if isinstance(model, nn.Linear) else "put it into a module"
        raise FastSparseError(f"model: a linear layer cannot be replaced in place; {hint}")
    started = time.perf_counter()
    wanted = Recipe.of(recipe)
    if weight_bits is not None:
        check_bits("weight_bits", weight_bits)
        wanted = replace(wanted, bits=weight_bits)
    uses = {names[0].name: names for names in uses_of(model)}
    choices = chosen_of(model, wanted)
    pruned = (name for name, chosen in choices.items() if isinstance(chosen, fs.Pattern))
    choices.update(_shares(model, wanted, sorted(filter(wanted.competes, pruned))))
    rows = {name: report_row(model, names[0]) for name, names in uses.items()}
    masks: dict[str, tuple[fs.Bitmask, fs.Pattern]] = {}
    for name, chosen in choices.items():
        if isinstance(chosen, str):
            rows[name] = replace(rows[name], reason=chosen)
            continue
        weight, bits = uses[name][0].tensor(model), _bits(model, wanted, uses[name])
        with error_context(name):
            mask = select(weight, chosen)
            if bits is not None and not weight.isfinite().all():
                raise FastSparseError(f"it holds an infinity, which has no place in {bits} bits")
        size = _packed_bytes(mask, weight.element_size(), bits)
        if size > rows[name].bytes_before:
            rows[name] = replace(rows[name], reason=f"packed it would be larger, {size} bytes")
        else:
            masks[name] = mask, chosen
    for name, choice in masks.items():
        rows[name] = _replace(model, uses[name], *choice, _bits(model, wanted, uses[name]), rows[name])
    return Report(type(model).__name__, None, tuple(rows.values()), time.perf_counter() - started)


def to_dense(model: nn.Module) -> nn.Module:
    """Replace the packed layers of a model by dense ones, in place: for ONNX, and whatever knows no packed layer.

    The weights are those that are packed, zeros among them; ``sparsify(model, "nonzero")`` packs them again. Layers
    that shared a weight before they were packed have one each.

    Parameters
    ----------
    model : nn.Module
        With any number of `SparseLinear`, or one itself.

    Returns
    -------
    nn.Module
        The model; for a `SparseLinear` its dense layer.

    Raises
    ------
    FastSparseError
        If a packed layer has hooks or a forward of its own, which would be lost. The model is as it was then.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU())
    >>> report = sparsify(model, "50%")
    >>> to_dense(model)
    Sequential(
      (0): Linear(in_features=64, out_features=256, bias=True)
      (1): ReLU()
    )
    >>> int((model[0].weight == 0).sum())
    8192
    """
    check_replaceable(model)
    if isinstance(model, SparseLinear):
        return model.to_dense()
    for uses in uses_of(model):
        if packed_at(uses[0].owner(model), uses[0].attribute) is not None:
            put_dense(model, uses)
    return model


def chosen_of(model: nn.Module, recipe: Recipe) -> dict[str, fs.Pattern | str]:
    """For each parameter and packed weight the pattern that a recipe has for it, or the reason why it stays as it is.

    Raises
    ------
    FastSparseError
        If an expression of the recipe is found in no name.
    """
    uses = uses_of(model)
    found = recipe.choose_all(_tensors(model, uses))
    return {names[0].name: _choose(model, found, names) for names in uses}


def _tensors(model: nn.Module, uses: Iterable[list[Use]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes by the names that a recipe may mean: of parameters and packed weights, and of buffers."""
    tensors = {name: (dtype_name(buffer), tuple(buffer.shape)) for name, buffer in model.named_buffers()}
    for names in uses:
        weight = names[0].tensor(model)
        tensors.update(dict.fromkeys((use.name for use in names), (dtype_name(weight), tuple(weight.shape))))
    return tensors


def _choose(model: nn.Module, choices: Mapping[str, fs.Pattern | str], names: list[Use]) -> fs.Pattern | str:
    """The pattern for a parameter, or the reason why it stays as it is. `choices` is what the recipe says."""
    weight = names[0].tensor(model)
    for use in names:
        reason = obstacle(use.owner(model), use.attribute)
        if reason is not None:
            return reason if use == names[0] else f"tied to {use.name}: {reason}"
    if weight.dtype not in COMPUTES:
        return f"layers of dtype {dtype_name(weight)} are not computed packed"
    found = [choices[use.name] for use in names]
    return next((chosen for chosen in found if isinstance(chosen, str)), found[0])


def _shares(model: nn.Module, recipe: Recipe, names: list[str]) -> dict[str, fs.Pattern]:
    """What each of these weights, which compete with each other, is pruned by."""
    if not names:
        return {}
    weights = {name: model.get_parameter(name) for name in names}
    entries = {name: Entry(name, dtype_name(w), tuple(w.shape), w.nbytes) for name, w in weights.items()}

    def each(function: str, *arguments: int) -> Iterator[tuple[str, Any]]:
        for name, weight in weights.items():
            with error_context(name):
                yield name, getattr(native(), function)(as_array(weight), *arguments)

    assert isinstance(recipe.default, fs.Unstructured), "the recipe has checked that"
    zeros = spread(entries, recipe.default.sparsity, recipe.min_sparsity, recipe.max_sparsity, each)
    return {name: fs.Unstructured(zeros[name][0] / max(weight.numel(), 1)) for name, weight in weights.items()}


def _bits(model: nn.Module, recipe: Recipe, names: list[Use]) -> int | None:
    """In how many bits a weight is kept; None for its own dtype."""
    return recipe.bits if all(takes_bits(use.owner(model)) for use in names) else None


def _packed_bytes(mask: fs.Bitmask, itemsize: int, bits: int | None) -> int:
    values = mask.count * itemsize if bits is None else mask.count * bits // 8 + 4 * mask.shape[0]
    return values + mask.bits.nbytes + 8 * (mask.shape[0] + 1)


def _replace(
    model: nn.Module, names: list[Use], mask: fs.Bitmask, chosen: fs.Pattern, bits: int | None, row: TensorReport
) -> TensorReport:
    """Packs a weight and puts a layer wherever the weight is."""
    kept = pack(names[0].tensor(model), mask)
    kept = new_array(kept.shape, kept.values, kept.bitmask, kept.row_offsets, chosen if chosen._lasting else None)
    layers = put_packed(model, names, kept if bits is None else kept.quantize(bits))
    size = sum(layer.packed.nbytes for layer in layers)
    return replace(row, pattern=str(chosen), sparsity=kept.sparsity, bytes_after=size, bits=bits)


def report_row(model: nn.Module, use: Use) -> TensorReport:
    """The row of a parameter or packed weight as it is."""
    parameter, packed = use.tensor(model), packed_at(use.owner(model), use.attribute)
    size = parameter.numel() * parameter.element_size()
    row = TensorReport(use.name, tuple(parameter.shape), dtype_name(parameter), None, None, size, size)
    if packed is None:
        return row
    s = packed.packed
    known = None if s.pattern is None else str(s.pattern)
    bits = BITS if isinstance(s, fs.QuantizedArray) else None
    return replace(row, pattern=known, sparsity=s.sparsity, bytes_after=s.nbytes, bits=bits)
