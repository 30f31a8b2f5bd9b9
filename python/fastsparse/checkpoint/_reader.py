"""Reading: an open checkpoint as a lazy mapping."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError, FormatError, near_names
from fastsparse.checkpoint._folder import read_folder
from fastsparse.checkpoint._foreign import refuse_foreign, refuse_missing
from fastsparse.checkpoint._format import (
    DTYPES,
    METADATA_KEY,
    SCALE,
    Entry,
    Packed,
    Pruned,
    packed_by_names,
    read_record,
    refuse_marlin,
    tensors_of,
)
from fastsparse.checkpoint._hf_config import check_config
from fastsparse.masks import Bitmask, matrix_view
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, TopK
from fastsparse.quantized import QuantizedArray

__all__ = ["Checkpoint", "Reader", "StrPath", "matrix_bits", "native", "open"]

StrPath = str | os.PathLike[str]


def native() -> Any:
    """The native module; without it there are no checkpoints."""
    try:
        from fastsparse import _core
    except ImportError as error:
        raise FastSparseError(f"checkpoints need the native module fastsparse._core: {error}") from error
    return _core


class Reader:
    """The files of a checkpoint, open: their keys and the tensors that these stand for.

    Nothing of a tensor is read before it is asked for, and nothing is kept: asking again checks again. It pickles as
    its path.

    Attributes
    ----------
    path : str
        The file or folder.
    folder : ModelFolder or None
        The model folder; None for a single file.
    shards : tuple of str
        The names of the files, in order; one empty name for a single file.
    entries : dict of Entry
        Every key of every file.
    tensors : dict of Packed or Entry
        What the keys stand for, by the tensors' names, in the order of the files.
    metadata : dict of dict
        The metadata of each shard, without the record.
    pruned : dict of (Pattern, float)
        The patterns and densities of dense tensors that are pruned.
    stale : list of str
        For each file whose record is left from before another tool has saved it: what does not fit. A warning has said
        so, and the keys alone decided.
    """

    def __init__(self, path: StrPath, *, mmap: bool = True, trust_shards: bool = False) -> None:
        self.path = os.fspath(path)
        self._options = {"mmap": mmap, "trust_shards": trust_shards}
        refuse_missing(self.path)
        self.folder = read_folder(self.path) if os.path.isdir(self.path) else None
        self.shards = self.folder.shards if self.folder is not None else ("",)
        files = {name: os.path.join(self.path, name) if name else self.path for name in self.shards}
        self._modes = {name: os.stat(file).st_mode & 0o777 for name, file in {"": self.path, **files}.items()}
        self._identity = tuple(_identity(file) for file in files.values())
        self._files = {name: _open_file(file, mmap) for name, file in files.items()}
        self.entries: dict[str, Entry] = {}
        self._where: dict[str, tuple[str, int]] = {}
        keys = {shard: self._read_entries(shard) for shard in self.shards}
        if self.folder is not None and not trust_shards:
            self.folder.check(keys)
        self.metadata: dict[str, dict[str, str]] = {shard: file.metadata for shard, file in self._files.items()}
        self.pruned: dict[str, Pruned] = {}
        self.stale: list[str] = []
        self.tensors = self._read_tensors(keys)

    def _read_entries(self, shard: str) -> dict[str, Entry]:
        """The keys of a shard, and where each is."""
        entries = {key: Entry(key, dtype, shape, size) for key, dtype, shape, size in self._files[shard].tensors}
        for index, key in enumerate(entries):
            if key in self._where:
                raise FormatError(f"{self.path}: tensor {key!r} is in {self._where[key][0]!r} and in {shard!r}")
            self._where[key] = (shard, index)
        self.entries.update(entries)
        return entries

    def _read_tensors(self, keys: Mapping[str, Mapping[str, Entry]]) -> dict[str, Packed | Entry]:
        """What the keys stand for: by the record of their shard, or, where there is none, by their names."""
        tensors: dict[str, Packed | Entry] = {}
        unrecorded: dict[str, Entry] = {}

        def add(found: Mapping[str, Packed | Entry]) -> None:
            for name in found.keys() & tensors.keys():
                raise FormatError(f"tensor {name!r} occurs twice")
            tensors.update(found)

        with self.error_context():
            for shard, entries in keys.items():
                text = self.metadata[shard].pop(METADATA_KEY, None)
                if text is None:
                    unrecorded.update(entries)
                    continue
                record = read_record(entries, text)
                self.pruned.update(record.pruned)
                if record.stale is None:
                    add(tensors_of(entries, record.packed))
                    continue
                self._warn_of_stale_record(shard, record.stale)
                known = dict.fromkeys([*(key for tensor in record.packed for key in tensor.keys), *record.pruned])
                add(tensors_of({key: entries[key] for key in known}, record.packed))
                unrecorded.update((key, entry) for key, entry in entries.items() if key not in known)
            add(tensors_of(unrecorded, packed_by_names(unrecorded, self._shape)))
        place = {shard: at for at, shard in enumerate(keys)}
        return dict(sorted(tensors.items(), key=lambda item: place[self.shard_of(item[1])]))

    def _warn_of_stale_record(self, shard: str, why: str) -> None:
        self.stale.append(f"{shard}: {why}" if shard else why)
        warnings.warn(
            f"{os.path.join(self.path, shard) if shard else self.path}: the record of packed tensors, metadata "
            f"{METADATA_KEY!r}, is stale: {why}. Another tool has saved the file again and kept its metadata; what its "
            "keys say is read; patterns may be lost. Save it without that metadata, or with checkpoint.save",
            stacklevel=4,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, *self._options.values(), self._identity)

    def check_formats(self) -> None:
        """Refuses what `config.json` or the names of keys say is in a layout that cannot be read or given back."""
        with self.error_context():
            if self.folder is not None:
                check_config(self.folder.read_config())
            refuse_marlin(self.entries)

    def shard_of(self, found: Packed | Entry) -> str:
        """The shard that a tensor belongs to: that of its values."""
        return self._where[found.key("compressed") if isinstance(found, Packed) else found.key][0]

    def mode(self, shard: str) -> int:
        """The permissions of a shard, or of the file or folder for an empty name, when it was opened."""
        return self._modes[shard]

    def keys(self, name: str) -> list[Entry]:
        """The keys of a tensor."""
        found = self.tensors[name]
        return [self.entries[key] for key in found.keys] if isinstance(found, Packed) else [found]

    @contextmanager
    def error_context(self, name: str | None = None) -> Iterator[None]:
        """Puts the names of the checkpoint and of the tensor before the message of an error."""
        where = self.path if name is None else f"{self.path}: tensor {name!r}"
        try:
            yield
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None
        except FastSparseError as error:
            raise FastSparseError(f"{where}: {error}") from None

    def raw(self, entry: Entry) -> NDArray[np.uint8]:
        """The bytes of a key."""
        if entry.nbytes == 0:
            return np.frombuffer(b"\0", np.uint8)[:0]
        shard, index = self._where[entry.key]
        if not self._files:
            raise FastSparseError(f"{self.path}: the checkpoint is closed")
        return np.frombuffer(self._files[shard].bytes(index), np.uint8)

    def array(self, entry: Entry) -> NDArray[Any]:
        """The array of a key, read-only and aligned.

        Raises
        ------
        FastSparseError
            If NumPy has no such dtype.
        """
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise FastSparseError(f"{self.path}: tensor {entry.key!r}: NumPy has no dtype for {entry.dtype}")
        try:
            array = self.raw(entry).view(dtype).reshape(entry.shape)
        except ValueError as error:
            raise FormatError(f"{self.path}: tensor {entry.key!r}: shape {list(entry.shape)}: {error}") from None
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def _shape(self, entry: Entry) -> tuple[int, ...]:
        """The content of a ``.shape``."""
        shape = tuple(self.array(entry).reshape(-1).tolist())
        if len(shape) > 64 or any(length < 0 for length in shape):
            raise FormatError(f"{entry.key!r} holds {list(shape[:65])}, which is no shape")
        return shape

    def packed(self, tensor: Packed) -> BitmaskArray | QuantizedArray:
        """A packed tensor.

        Raises
        ------
        FormatError
            If its parts contradict each other.
        """
        part = {part: self.entries[entry.key] for part, entry in tensor.entries(0).items()}
        values, bits = self.array(part["compressed"]), self.array(part["bitmask"])
        with self.error_context(tensor.name):
            shape = self._shape(part["shape"])
            if shape != tensor.shape:
                raise FormatError(f"{part['shape'].key!r} holds {list(shape)}, the metadata {list(tensor.shape)}")
            if tensor.layout == "last-axis":
                bits = matrix_bits(bits, shape)
            lasting = tensor.exact and isinstance(tensor.pattern, NM | TopK | Block)
            try:
                array = BitmaskArray.from_parts(
                    values.reshape(-1), bits, shape, pattern=tensor.pattern if lasting else None
                )
            except FastSparseError as error:
                raise FormatError(str(error)) from None
            # For more than two dimensions compressed-tensors' offsets are sums along the wrong
            # axis.
            if "row_offsets" in part and (tensor.layout == "matrix" or len(shape) <= 2):
                offsets = self.array(part["row_offsets"])
                if not np.array_equal(offsets.reshape(-1), array.row_offsets[:-1]):
                    raise FormatError("the row offsets disagree with the mask")
            if SCALE in part:
                return QuantizedArray.from_parts(array, self.array(part[SCALE]), DTYPES[tensor.dtype])
        return array

    def digest(self, name: str) -> str:
        """The digest of a tensor's bytes, as they are stored; empty for a single file, of which nothing is resumed."""
        if self.folder is None:
            return ""
        return "".join(native().digest(self.raw(entry)) for entry in self.keys(name))

    def close(self) -> None:
        """Closes the files; what was read of them stays valid."""
        self._files.clear()

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's mapped pages back; views of it stay valid and read them again."""
        for entry in self.keys(name):
            shard, index = self._where[entry.key]
            if self._files:
                self._files[shard].release(index)


class Checkpoint(Mapping[str, BitmaskArray | QuantizedArray | NDArray[Any]]):
    """An open checkpoint: a lazy mapping from tensor names to packed tensors and arrays. `open` makes one.

    Nothing of a tensor is read before it is asked for, and nothing is kept: asking again checks again. With
    ``mmap=True`` arrays are read-only views of the file and keep it mapped. It pickles as its path. In a ``with``
    statement it is closed at the end; what was read before stays valid.
    """

    def __init__(self, path: StrPath, *, mmap: bool = True, trust_shards: bool = False) -> None:
        self.reader = Reader(path, mmap=mmap, trust_shards=trust_shards)

    @property
    def path(self) -> str:
        """The file or folder."""
        return self.reader.path

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file; that of a folder's first shard."""
        return dict(self.reader.metadata[self.reader.shards[0]])

    def __getitem__(self, name: str) -> BitmaskArray | QuantizedArray | NDArray[Any]:
        """The tensor of this name.

        Raises
        ------
        KeyError
            If there is none; the message has names that are near.
        FormatError
            If the parts of a packed tensor contradict each other.
        FastSparseError
            If NumPy has no such dtype, or the checkpoint is closed.
        """
        found = self.reader.tensors.get(name)
        if found is None:
            raise UnknownTensor(self.path, name, tuple(self.reader.tensors))
        return self.reader.packed(found) if isinstance(found, Packed) else self.reader.array(found)

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the file."""
        return iter(self.reader.tensors)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.reader.tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name; nothing of it is read."""
        return name in self.reader.tensors

    def __repr__(self) -> str:
        packed = sum(isinstance(found, Packed) for found in self.reader.tensors.values())
        return f"<Checkpoint {self.path!r}: {len(self)} tensors, {packed} packed>"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Arrays that were read stay valid and keep their file mapped; no others can be read."""
        self.reader.close()

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's mapped pages back; views of it stay valid and read them again."""
        self.reader.release(name)


class UnknownTensor(KeyError):
    """A name that no tensor of a checkpoint has."""

    def __init__(self, path: str, name: object, known: tuple[str, ...]) -> None:
        super().__init__(path, name, known)

    def __str__(self) -> str:
        path, name, known = self.args
        near = near_names(name, known) if isinstance(name, str) else ""
        return f"{path}: there is no tensor {name!r} among its {len(known)}{near}"


def _open_file(file: str, mmap: bool) -> Any:
    """The open file; one of another kind is refused by its name."""
    try:
        return native().CheckpointReader(file, mmap)
    except FormatError:
        refuse_foreign(file)
        raise


def _identity(path: str) -> tuple[int, ...]:
    """What changes when another file takes the path or its content is replaced."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1)
def _reopen(path: str, mmap: bool, trust_shards: bool, identity: tuple[tuple[int, ...], ...]) -> Reader:
    """The checkpoint that another process has open. Kept, because one job after the other comes with the same."""
    reader = Reader(path, mmap=mmap, trust_shards=trust_shards)
    if reader._identity != identity:
        raise FastSparseError(f"{path}: it changed while it was read")
    return reader


def matrix_bits(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The mask of the matrix view from one that pads every run along the last axis."""
    last = shape[-1]
    if last % 8:
        if (bits[..., -1:] >> (last % 8)).any():
            raise FormatError("padding bits of the mask are set")
        keep = np.unpackbits(bits, axis=-1, count=last, bitorder="little").view(np.bool_)
        return Bitmask.from_bool(keep.reshape(shape)).bits
    rows, cols = matrix_view(shape)
    return bits.reshape(rows, cols // 8)


def open(path: StrPath, *, mmap: bool = True, trust_shards: bool = False) -> Checkpoint:
    """Open a checkpoint for reading.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file, or a model folder with ``model.safetensors`` or with shards and their
        ``model.safetensors.index.json``; dense or with packed tensors, by fastsparse or in the sparse-bitmask and
        sparse-24-bitmask layouts of compressed-tensors.
    mmap : bool
        Whether tensors are views of a memory map. A file that somebody cuts short while it is mapped ends the process;
        without the map every tensor is read when asked for, and a shorter file is an error.
    trust_shards : bool
        Whether the shards of a folder are taken as they are where the index says something else of their tensors.

    Returns
    -------
    Checkpoint
        A lazy mapping from names to `BitmaskArray`, `QuantizedArray` for what is stored in eight bits, and
        `numpy.ndarray`.

    Raises
    ------
    FormatError
        If the file is not valid.
    OSError
        If it cannot be read.
    """
    return Checkpoint(path, mmap=mmap, trust_shards=trust_shards)
