"""Saving a mapping of packed tensors and arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import (
    METADATA_KEY,
    Entry,
    Packed,
    density,
    dtype_name,
    needs_stub,
    packed_by_names,
    part_groups,
    prefix_for,
    tensors_of,
    write_record,
)
from fastsparse.checkpoint._reader import Checkpoint, StrPath
from fastsparse.checkpoint._work import flat_bytes, parts_of
from fastsparse.checkpoint._writer import check_place, writing
from fastsparse.packed import BitmaskArray
from fastsparse.quantized import BITS, QuantizedArray

__all__ = ["save"]


def save(
    tensors: Mapping[str, BitmaskArray | QuantizedArray | NDArray[Any]],
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Store packed tensors and arrays as they are.

    What `open` would refuse is not written. The file gets the permissions of the checkpoint that it is made from, where
    `tensors` is one, else those of the file that it replaces, else those of every new file.

    Parameters
    ----------
    tensors : mapping
        From names to `BitmaskArray`, `QuantizedArray` and `numpy.ndarray`. Each value is asked for twice, and used once
        at a time.
    path : path-like
        The file to write.
    metadata : mapping of str to str, optional
        Goes to the file's metadata; by default that of `tensors`, if it is a `Checkpoint`.
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    FastSparseError
        If a name, a value or a dtype cannot be stored, the metadata is not of strings or has the key of the package, or
        `path` exists, names a folder, or is being written by another run.
    OSError
        If the file cannot be written, or its folder does not exist.
    """
    if metadata is None:
        metadata = tensors.metadata if isinstance(tensors, Checkpoint) else {}
    _check_metadata(metadata)
    check_place(path, folder=False, overwrite=overwrite)
    taken = set(tensors)
    packed: dict[str, Packed] = {}
    entries: list[Entry] = []
    record = []
    for name, tensor in tensors.items():
        dtype = _check_tensor(name, tensor)
        if isinstance(tensor, BitmaskArray | QuantizedArray):
            prefix = prefix_for(name, taken)
            if prefix is None:
                raise FastSparseError(f"tensor {name!r}: other tensors have the names of its parts")
            known, bits = tensor.pattern, BITS if isinstance(tensor, QuantizedArray) else None
            stub = bits is not None or needs_stub(name, prefix)
            packed[name] = Packed(name, prefix, dtype, tensor.shape, known, known is not None, stub=stub, bits=bits)
            taken.update(packed[name].keys)
            entries.extend(packed[name].entries(tensor.nnz).values())
            record.append((packed[name], density(tensor.nnz, tensor.shape)))
        else:
            entries.append(Entry(name, dtype, tensor.shape, tensor.nbytes))
    _check_names({entry.key: entry for entry in entries if entry.key in tensors}, tensors, bool(packed))
    extra = {METADATA_KEY: write_record(record)} if record else {}
    with writing(path, entries, {**metadata, **extra}, overwrite, _mode(tensors, path)) as writer:
        for name, tensor in tensors.items():
            if isinstance(tensor, BitmaskArray | QuantizedArray):
                parts = parts_of(packed[name], tensor)
            else:
                parts = {name: flat_bytes(tensor)}
            for key, part in parts.items():
                writer.write(key, part)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not isinstance(metadata, Mapping):
        raise FastSparseError(f"metadata: expected a mapping of strings, got {metadata!r}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise FastSparseError(f"metadata: expected strings, got {key!r}: {value!r}")
        if key == METADATA_KEY:
            raise FastSparseError(f"metadata: the key {key!r} is for the record of packed tensors, which save writes")
        for text in (key, value):
            _check_text("metadata", text)


def _check_tensor(name: Any, tensor: Any) -> str:
    """The name of the dtype of a tensor that can be stored."""
    if not isinstance(name, str):
        raise FastSparseError(f"tensors: expected names that are strings, got {name!r}")
    _check_text("tensors", name)
    if not isinstance(tensor, BitmaskArray | QuantizedArray | np.ndarray | np.generic):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}".removeprefix("builtins.")
        instead = "; safetensors.torch.save_file stores tensors of torch" if kind.startswith("torch.") else ""
        raise FastSparseError(
            f"tensor {name!r}: expected a BitmaskArray, a QuantizedArray or a NumPy array, got {kind}{instead}"
        )
    return dtype_name(tensor.dtype, name)


def _check_text(argument: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FastSparseError(f"{argument}: {text!r} is no text that can be stored: {error}") from None


def _mode(tensors: Mapping[str, Any], path: StrPath) -> int | None:
    """The permissions of the file; None for those of every new file."""
    if isinstance(tensors, Checkpoint):
        mode = 0o777
        for shard in tensors.reader.shards:
            mode &= tensors.reader.mode(shard)
        return mode
    return os.stat(path).st_mode & 0o777 if os.path.exists(path) else None


def _check_names(
    dense: Mapping[str, Entry], tensors: Mapping[str, BitmaskArray | QuantizedArray | NDArray[Any]], recorded: bool
) -> None:
    """Refuses arrays that `open` would take for parts of packed tensors, and refuse or put in the place of others."""
    if recorded:
        for prefix in part_groups(dense):
            raise FastSparseError(f"tensor {prefix!r}: arrays have the names of its parts; save it as a BitmaskArray")

    def shape_of(entry: Entry) -> tuple[int, ...]:
        array = tensors[entry.key]
        assert not isinstance(array, BitmaskArray | QuantizedArray)
        return tuple(array.reshape(-1).tolist())

    tensors_of(dense, packed_by_names(dense, shape_of))
