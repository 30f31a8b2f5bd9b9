"""A model whose weights stay in their folder: a block of them is in memory at a time, what is done is kept on disk."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fastsparse as fs
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import DTYPES, Entry
from fastsparse.checkpoint._reader import Checkpoint, Reader
from fastsparse.checkpoint._stages import Stages
from fastsparse.packed import new_array
from fastsparse.patterns import NM, Block, Pattern, TopK
from fastsparse.torch._blocks import Place, Tensors, stacks_of
from fastsparse.torch._layers import Layer
from fastsparse.torch._places import Use, uses_of
from fastsparse.torch._tensors import as_array, as_tensor

__all__ = ["OutOfCore", "StoredTensors", "Weights", "torch_dtype", "without_weights"]


_REGISTERING = threading.Lock()
"""Held while `nn.Module.register_parameter` is another function."""


@contextmanager
def without_weights() -> Iterator[None]:
    """Models that this thread makes within have their parameters on the meta device, and their buffers as ever.

    Buffers such as rotary tables are computed when a model is made and are in no file.
    """
    thread = threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta and threading.get_ident() == thread:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    with _REGISTERING:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = on_meta
        try:
            yield
        finally:
            nn.Module.register_parameter = register


class StoredTensors:
    """Tensors in a file, read one at a time.

    Parameters
    ----------
    path : Path
        The file, which is made, or holds `shapes` already.
    stored, computed : torch.dtype
        The dtype in the file, and that of the tensors that are returned.
    shapes : sequence of sequence of int
        Of what an earlier run has written.
    """

    def __init__(
        self, path: Path, stored: torch.dtype, computed: torch.dtype, shapes: Sequence[Sequence[int]] = ()
    ) -> None:
        self.path, self._stored, self._computed = path, stored, computed
        self.shapes: list[tuple[int, ...]] = [tuple(shape) for shape in shapes]
        self._empty = as_array(torch.empty(0, dtype=stored))
        if not shapes:
            path.write_bytes(b"")

    def append(self, tensor: Tensor) -> None:
        """Adds a tensor at the end."""
        array = as_array(tensor.to(self._stored).contiguous())
        with self.path.open("ab") as file:
            array.tofile(file)
        self.shapes.append(tuple(tensor.shape))

    def __getitem__(self, index: int) -> Tensor:
        """The tensor at this place."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        start = sum(sizes[:index]) * self._empty.itemsize
        content = np.fromfile(self.path, np.uint8, sizes[index] * self._empty.itemsize, offset=start)
        return as_tensor(content.view(self._empty.dtype).reshape(self.shapes[index])).to(self._computed)

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))


class Weights:
    """The weights of a model on the meta device, in the folder that they are loaded from.

    Parameters
    ----------
    model : nn.Module
        On the meta device; the dtype of its parameters is that of the loaded ones.
    source : Reader
        Its folder.
    prefix : str
        What names in the folder may lack at the beginning, or have in addition.

    Raises
    ------
    FastSparseError
        If the folder has no tensor for a parameter, or one of another shape.
    """

    def __init__(self, model: nn.Module, source: Reader, prefix: str = "") -> None:
        self.model, self.source = model, source
        self._prefix = prefix
        self.uses: dict[str, list[Use]] = {}
        self.keys: dict[str, str] = {}
        self.buffers: list[str] = []
        """The tensors of the folder that became buffers."""
        for uses in uses_of(model):
            name = uses[0].name
            self.uses[name] = uses
            key = next(iter(self.spelled(name)), None)
            if key is None:
                raise FastSparseError(f"{source.path}: no tensor for the model's {name!r}")
            shape, expected = source.tensors[key].shape, tuple(self._parameter(uses[0]).shape)
            if tuple(shape) != expected:
                raise FastSparseError(f"{source.path}: tensor {key!r} is {list(shape)}, the model's {list(expected)}")
            self.keys[name] = key
        self._meta = {name: self._parameter(uses[0]) for name, uses in self.uses.items()}
        self._load_buffers(prefix)

    def _parameter(self, use: Use) -> nn.Parameter:
        return self.model.get_submodule(use.module)._parameters[use.attribute]

    def _load_buffers(self, prefix: str) -> None:
        """Buffers are small: those that the folder has are loaded at once."""
        for path, module in self.model.named_modules():
            for attribute, buffer in module._buffers.items():
                name = f"{path}.{attribute}" if path else attribute
                key = next((key for key in _spellings(name, prefix) if key in self.source.tensors), None)
                if buffer is not None and key is not None and attribute not in module._non_persistent_buffers_set:
                    module._buffers[attribute] = self.value(key).to(buffer.dtype)
                    self.buffers.append(key)

    def value(self, key: str) -> Tensor:
        """A tensor of the folder, dense and in memory."""
        found = self.source.tensors[key]
        stored = self.source.array(found).copy() if isinstance(found, Entry) else self.source.packed(found).to_dense()
        self.source.release(key)
        return as_tensor(stored)

    def load(self, names: Sequence[str], changed: Mapping[str, Tensor]) -> None:
        """Puts weights into the model: those that were `changed` as they are now."""
        for name in names:
            value = changed[name] if name in changed else self.value(self.keys[name])
            self._put(name, nn.Parameter(value.to(self._meta[name].dtype), requires_grad=False))

    def unload(self, names: Sequence[str]) -> None:
        """Takes them out again."""
        for name in names:
            self._put(name, self._meta[name])

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for use in self.uses[name]:
            self.model.get_submodule(use.module)._parameters[use.attribute] = parameter

    def spelled(self, name: str) -> list[str]:
        """All tensors of the folder that a parameter has."""
        keys = (key for use in self.uses[name] for key in _spellings(use.name, self._prefix))
        return [key for key in keys if key in self.source.tensors]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        return next(iter(self._meta.values())).dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that a weight has in the folder."""
        return torch_dtype(self.source.tensors[self.keys[name]].dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that safetensors calls by this name."""
    return as_tensor(np.empty(0, DTYPES[name])).dtype


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """How a folder may call a tensor: a model with a head has its body under a prefix, a file of the body alone not."""
    if not prefix:
        return (name,)
    start = f"{prefix}."
    return (name, name.removeprefix(start)) if name.startswith(start) else (name, start + name)


class OutOfCore(Place):
    """Weights are loaded block by block; what is finished is kept in `stages`.

    Parameters
    ----------
    weights : Weights
        Of the model.
    stages : Stages
        Where finished blocks are kept, and the outputs of the last one.
    stored : torch.dtype
        The dtype in which outputs of blocks are stored.
    label : str
        What is done; stages of another label are not its own.
    whole : bool
        Load all weights at once, for models whose blocks cannot be run one by one.

    Attributes
    ----------
    arrays : dict
        What the stage at hand has made so far, by name; `finish` writes it.
    """

    def __init__(
        self, weights: Weights, stages: Stages, stored: torch.dtype, label: str, *, whole: bool = False
    ) -> None:
        super().__init__()
        self.whole, self._label = whole, label
        self.notes = dict(stages.notes(label))
        self.arrays: dict[str, Any] = {}
        self._weights, self._stages, self._dtype = weights, stages, stored
        stacks = [] if whole else [f"{stack.name}." for stack in stacks_of(weights.model)]
        self._rest = [name for name in weights.uses if not name.startswith(tuple(stacks))]
        self._block: str | None = None

    @contextmanager
    def rest(self) -> Iterator[None]:
        changed = self._stages.arrays(self._label)
        self._weights.load(self._rest, {name: _dense(changed, name) for name in self._rest if name in changed})
        try:
            yield
        finally:
            self._weights.unload(self._rest)

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        """The weights stay until others are loaded: the first block runs for batch after batch."""
        if path != self._block and not self.whole:
            self.unload()
            self._weights.load(self._names(path), {})
            self._block = path
        yield

    def _names(self, path: str) -> list[str]:
        return [name for name in self._weights.uses if name.startswith(f"{path}.")]

    def unload(self) -> None:
        """Takes the weights of the block at hand out of memory."""
        if self._block is not None:
            self._weights.unload(self._names(self._block))
            self._block = None

    def tensors(self, name: str) -> StoredTensors:
        return StoredTensors(self._stages.folder / f"{name}.outputs", self._dtype, self._weights.dtype)

    def finished(self, stage: str) -> bool:
        return (self._label, stage) in self._stages

    def outputs(self, stage: str) -> StoredTensors:
        path, shapes = self._stages.outputs(self._label, stage)
        return StoredTensors(path, self._dtype, self._weights.dtype, shapes)

    def store(self, layer: Layer, pattern: Pattern) -> None:
        """Keeps the new weight of a layer, packed. In the model it is then what the file will hold."""
        weight = layer.module.weight.data
        rounded = weight.to(self._weights.stored_dtype(layer.name))
        weight.copy_(rounded)
        self.arrays[layer.name] = _packed(as_array(rounded), layer, pattern)

    def finish(self, stage: str, outputs: Tensors | None) -> None:
        notes = {name: note for name, note in self.notes.items() if name not in self._stages.notes(self._label)}
        names = self._names(stage) if stage == self._block else []
        read = [self._weights.keys[name] for name in names]
        if not self._stages.begun(self._label):
            # All stages depend on what is outside of the blocks; it is enough that the first one says so.
            read += [self._weights.keys[name] for name in self._rest] + self._weights.buffers
        assert outputs is None or isinstance(outputs, StoredTensors), "`tensors` made them"
        kept = None if outputs is None else (outputs.path, outputs.shapes)
        self._stages.add(self._label, stage, self.arrays, notes, read, kept)
        self.arrays = {}


def _dense(files: Mapping[str, Checkpoint], name: str) -> Tensor:
    found = files[name][name]
    return as_tensor(found.copy() if isinstance(found, np.ndarray) else found.to_dense())


def _packed(w: NDArray[Any], layer: Layer, pattern: Pattern) -> fs.BitmaskArray:
    """The weight packed, with the pattern that its mask can be known to obey."""
    s = fs.pack(w)
    known = _as_stored(layer, pattern)
    if known is None or known.kept_count(w.shape) != s.nnz:
        return s
    return new_array(s.shape, s.values, s.bitmask, s.row_offsets, known)


def _as_stored(layer: Layer, pattern: Pattern) -> Pattern | None:
    """The pattern of a layer's matrix as one of the weight as it is stored; None where there is none."""
    if not pattern._lasting or layer.module.weight.ndim != 2:
        return None
    if not layer.transposed:
        return pattern
    assert isinstance(pattern, NM | TopK | Block), "the others do not last"
    if isinstance(pattern, Block) and isinstance(pattern.shape, tuple):
        return replace(pattern, shape=pattern.shape[::-1])
    return replace(pattern, axis=-1 - pattern.axis if pattern.axis < 0 else 1 - pattern.axis)
