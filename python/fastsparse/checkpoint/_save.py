"""Saving a mapping of packed tensors and arrays."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import METADATA_KEY, Entry, Packed, density, dtype_name, prefix_for, write_record
from fastsparse.checkpoint._plan import (
    flat_bytes,
    parts_of,
)
from fastsparse.checkpoint._reader import Checkpoint, StrPath
from fastsparse.checkpoint._writer import writing
from fastsparse.packed import BitmaskArray

__all__ = ["save"]


def save(
    tensors: Mapping[str, BitmaskArray | NDArray[Any]],
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Store packed tensors and arrays as they are.

    Parameters
    ----------
    tensors : mapping
        From names to `BitmaskArray` and `numpy.ndarray`. Each value is asked for twice, and used once at a time.
    path : path-like
        The file to write.
    metadata : mapping of str to str, optional
        Goes to the file's metadata; by default that of `tensors`, if it is a `Checkpoint`.
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    FastSparseError
        If a name or a dtype cannot be stored, or `path` exists or is being written by another run.
    OSError
        If the file cannot be written.
    """
    if metadata is None:
        metadata = tensors.metadata if isinstance(tensors, Checkpoint) else {}
    taken = set(tensors)
    packed: dict[str, Packed] = {}
    entries: list[Entry] = []
    record = []
    for name, tensor in tensors.items():
        dtype = dtype_name(tensor.dtype, name)
        if isinstance(tensor, BitmaskArray):
            prefix = prefix_for(name, taken)
            if prefix is None:
                raise FastSparseError(f"tensor {name!r}: other tensors have the names of its parts")
            packed[name] = Packed(name, prefix, dtype, tensor.shape, tensor.pattern, tensor.pattern is not None)
            taken.update(packed[name].keys)
            entries.extend(packed[name].entries(tensor.nnz).values())
            record.append((packed[name], density(tensor.nnz, tensor.shape)))
        else:
            entries.append(Entry(name, dtype, tensor.shape, tensor.nbytes))
    extra = {METADATA_KEY: write_record(record)} if record else {}
    with writing(path, entries, {**metadata, **extra}, overwrite) as writer:
        for name, tensor in tensors.items():
            parts = parts_of(packed[name], tensor) if isinstance(tensor, BitmaskArray) else {name: flat_bytes(tensor)}
            for key, part in parts.items():
                writer.write(key, part)
