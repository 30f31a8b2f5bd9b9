"""A packed or dense checkpoint into a model."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import dtype_name
from fastsparse.checkpoint._reader import StrPath
from fastsparse.checkpoint._report import Report, TensorReport
from fastsparse.packed import new_array
from fastsparse.quantized import BITS, quantized
from fastsparse.torch._linear import COMPUTES, Packed, SparseLinear
from fastsparse.torch._places import Use, layer_for, obstacle, packed_at, put_dense, put_packed, takes_bits, uses_of
from fastsparse.torch._tensors import as_array, as_tensor

__all__ = ["cast", "load"]

_Found = Packed | NDArray[Any]


@dataclass(frozen=True)
class _Target:
    """A tensor of the model, everywhere it is, and what the file has for it."""

    uses: list[Use]
    name: str
    found: _Found

    def tensor(self, model: nn.Module) -> Tensor:
        """What the model has now; it is not kept here, so that it is freed when it is replaced."""
        return self.uses[0].tensor(model)


def load(model: nn.Module, path: StrPath, *, strict: bool = True) -> Report:
    """Put a packed file or folder into a model: packed linear layers become `SparseLinear`, the rest is unpacked.

    Names are those of the model's state dict. Tensors get the dtype of the model's, as in `load_state_dict`; those of a
    model on the meta device get that of the file, and nothing is allocated twice. Of tensors that the model ties one
    name is enough. Layers that are packed already take the new weights, dense ones too.

    Everything is read and checked before the model is changed. Its memory grows by one layer at a time.

    Parameters
    ----------
    model : nn.Module
        On the CPU or the meta device.
    path : path-like
        What `fastsparse.checkpoint.open` takes.
    strict : bool
        Whether every tensor has to be on both sides. Otherwise those that are not are in the report, with the reason.

    Returns
    -------
    Report
        Every tensor: packed, or dense with the reason.

    Raises
    ------
    FastSparseError
        If names, shapes or devices do not fit.
    FormatError
        If the file is not valid.

    Examples
    --------
    >>> import tempfile, torch, fastsparse.torch as fst
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    >>> _ = fst.sparsify(model, "50%")
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_file(model.state_dict(), path)
    >>> with torch.device("meta"):
    ...     fresh = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    >>> report = fst.load(fresh, path)
    >>> fresh[0]
    SparseLinear(in_features=64, out_features=256, bias=True, float32, 50.0 % sparse)
    >>> torch.equal(fresh(torch.ones(1, 64)), model(torch.ones(1, 64)))
    True
    """
    started = time.perf_counter()
    if isinstance(model, SparseLinear) or layer_for(model) is not None:
        raise FastSparseError("model: a linear layer cannot be replaced in place; put it into a module")
    source = checkpoint.open(path)
    found = {name: source[name] for name in source}
    targets, missing = _match(model, found)
    extra = found.keys() - {use.name for target in targets for use in target.uses}
    if strict and (missing or extra):
        where = {"the file has no": missing, "the model has no": [name for name in found if name in extra]}
        said = "; ".join(f"{start} {_listed(names)}" for start, names in where.items() if names)
        raise FastSparseError(f"{source.path}: {said}")
    _check(model, targets)
    rows = []
    for target in targets:
        rows.append(_put(model, target))
        source.release(target.name)
    rows += [TensorReport(name, (), "", None, None, 0, 0, reason="not in the file") for name in missing]
    rows += [_row(name, found[name], "not in the model") for name in found if name in extra]
    return Report(source.path, type(model).__name__, tuple(rows), time.perf_counter() - started)


def _match(model: nn.Module, found: Mapping[str, _Found]) -> tuple[list[_Target], list[str]]:
    """What goes where, and the names of what the file has nothing for."""
    targets, missing = [], []
    for uses in [*uses_of(model), *_buffers_of(model)]:
        given = [use.name for use in uses if use.name in found]
        if not given:
            missing.append(uses[0].name)
            continue
        first = found[given[0]]
        for other in given[1:]:
            if not _equal(first, found[other]):
                raise FastSparseError(f"{given[0]!r} and {other!r} are one tensor of the model, but differ in the file")
        targets.append(_Target(uses, given[0], first))
    return targets, missing


def _buffers_of(model: nn.Module) -> list[list[Use]]:
    """For each buffer of the state dict all its names."""
    found: dict[int, list[Use]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, buffer in module._buffers.items():
            if buffer is not None and attribute not in module._non_persistent_buffers_set:
                found.setdefault(id(buffer), []).append(Use(path, attribute))
    return list(found.values())


def _equal(one: _Found, other: _Found) -> bool:
    if isinstance(one, Packed) or isinstance(other, Packed):
        return type(one) is type(other) and one == other
    return one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8))


def _check(model: nn.Module, targets: Iterable[_Target]) -> None:
    for target in targets:
        expected, tensor = tuple(target.found.shape), target.tensor(model)
        if tuple(tensor.shape) != expected:
            raise FastSparseError(f"tensor {target.name!r}: the model's shape is {tuple(tensor.shape)}, not {expected}")
        if tensor.device.type not in ("cpu", "meta"):
            raise FastSparseError(f"tensor {target.name!r}: the model's is on {tensor.device}; move it with .cpu()")
    for name, buffer in model.named_buffers():
        owner = model.get_submodule(name.rpartition(".")[0])
        if buffer.is_meta and name.rpartition(".")[2] in owner._non_persistent_buffers_set:
            hint = "make the model so that it is computed, for example under accelerate.init_empty_weights()"
            raise FastSparseError(f"buffer {name!r} is on the meta device and in no checkpoint; {hint}")


def _put(model: nn.Module, target: _Target) -> TensorReport:
    """Puts a tensor of the file wherever the model has it."""
    uses, tensor, found = target.uses, target.tensor(model), target.found
    dtype = as_tensor(np.empty(0, found.dtype)).dtype if tensor.is_meta else tensor.dtype
    reason = _why_dense(model, target, dtype)
    if reason is None:
        assert isinstance(found, Packed)
        del tensor
        eight = isinstance(found, fs.QuantizedArray) and all(takes_bits(use.owner(model)) for use in uses)
        put_packed(model, uses, cast(found, dtype))
        return _row(target.name, found, None, bits=BITS if eight else None)
    new = as_tensor(found.to_dense() if isinstance(found, Packed) else found)
    if packed_at(uses[0].owner(model), uses[0].attribute) is not None:
        put_dense(model, uses, nn.Parameter(new.to(dtype)))
    elif tensor.is_meta:
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        for use in uses:
            setattr(use.owner(model), use.attribute, new)
    else:
        with torch.no_grad():
            tensor.copy_(new)
    return _row(target.name, found, reason)


def _why_dense(model: nn.Module, target: _Target, dtype: torch.dtype) -> str | None:
    """Why a tensor is not put into packed layers, if it is not."""
    if not isinstance(target.found, Packed):
        return "dense in the file"
    for use in target.uses:
        module = use.owner(model)
        reason = obstacle(module, use.attribute)
        if reason is not None and packed_at(module, use.attribute) is None:
            return f"unpacked: {reason}"
    return None if dtype in COMPUTES else f"unpacked: layers of {dtype} are not computed packed"


def cast(s: Packed, dtype: torch.dtype) -> Packed:
    """The weight as one of another dtype; values of eight bits stay as they are."""
    if isinstance(s, fs.QuantizedArray):
        return quantized(s.packed, s.scale, as_array(torch.empty(0, dtype=dtype)).dtype)
    values = as_array(as_tensor(s.values).to(dtype))
    return new_array(s.shape, values, s.bitmask, s.row_offsets, s.pattern)


def _row(name: str, found: _Found, reason: str | None, bits: int | None = None) -> TensorReport:
    size = found.dense_nbytes if isinstance(found, Packed) else found.nbytes
    row = TensorReport(name, tuple(found.shape), dtype_name(found.dtype, name), None, None, size, size, reason=reason)
    if not isinstance(found, Packed):
        return row
    known = None if found.pattern is None else str(found.pattern)
    if reason is None:
        size = found.nbytes if isinstance(found, fs.BitmaskArray) or bits is not None else found.dequantize().nbytes
    return replace(row, pattern=known, sparsity=found.sparsity, bytes_after=size, bits=bits)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
