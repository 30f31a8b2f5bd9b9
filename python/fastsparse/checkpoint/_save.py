"""Saving a mapping of packed tensors and arrays."""

from collections.abc import Mapping
from typing import Any

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
        If a name or a dtype cannot be stored, `metadata` has the key of the record or the arrays the names of a packed
        tensor's parts, so that `open` would refuse the file, or `path` exists or is being written by another run.
    OSError
        If the file cannot be written.
    """
    if metadata is None:
        metadata = tensors.metadata if isinstance(tensors, Checkpoint) else {}
    if METADATA_KEY in metadata:
        raise FastSparseError(
            f"metadata: the key {METADATA_KEY!r} is for the record of packed tensors, which save writes"
        )
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
            exact, stub = tensor.pattern is not None, needs_stub(name, prefix)
            packed[name] = Packed(name, prefix, dtype, tensor.shape, tensor.pattern, exact, stub=stub)
            taken.update(packed[name].keys)
            entries.extend(packed[name].entries(tensor.nnz).values())
            record.append((packed[name], density(tensor.nnz, tensor.shape)))
        else:
            entries.append(Entry(name, dtype, tensor.shape, tensor.nbytes))
    _check_names({entry.key: entry for entry in entries if entry.key in tensors}, tensors, bool(packed))
    extra = {METADATA_KEY: write_record(record)} if record else {}
    with writing(path, entries, {**metadata, **extra}, overwrite) as writer:
        for name, tensor in tensors.items():
            parts = parts_of(packed[name], tensor) if isinstance(tensor, BitmaskArray) else {name: flat_bytes(tensor)}
            for key, part in parts.items():
                writer.write(key, part)


def _check_names(
    dense: Mapping[str, Entry], tensors: Mapping[str, BitmaskArray | NDArray[Any]], recorded: bool
) -> None:
    """Refuses arrays that `open` would take for parts of packed tensors, and refuse or put in the place of others."""
    if recorded:
        for prefix in part_groups(dense):
            raise FastSparseError(f"tensor {prefix!r}: arrays have the names of its parts; save it as a BitmaskArray")

    def shape_of(entry: Entry) -> tuple[int, ...]:
        array = tensors[entry.key]
        assert not isinstance(array, BitmaskArray)
        return tuple(array.reshape(-1).tolist())

    tensors_of(dense, packed_by_names(dense, shape_of))
