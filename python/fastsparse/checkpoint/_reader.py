"""Reading: an open checkpoint as a lazy mapping."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.checkpoint._folder import read_folder
from fastsparse.checkpoint._foreign import refuse_foreign
from fastsparse.checkpoint._format import DTYPES, METADATA_KEY, Entry, Packed, read_keys, read_pruned
from fastsparse.masks import Bitmask, matrix_view
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, Pattern, TopK

__all__ = ["Checkpoint", "StrPath", "matrix_bits", "native", "open"]

StrPath = str | os.PathLike[str]


def native() -> Any:
    """The native module; without it there are no checkpoints."""
    try:
        from fastsparse import _core
    except ImportError as error:
        raise FastSparseError(f"checkpoints need the native module fastsparse._core: {error}") from error
    return _core


class Checkpoint(Mapping[str, BitmaskArray | NDArray[Any]]):
    """An open checkpoint: a lazy mapping from tensor names to packed tensors and arrays. `open` makes one.

    Nothing of a tensor is read before it is asked for, and nothing is kept: asking again checks again. With
    ``mmap=True`` arrays are read-only views of the file and keep it mapped. It pickles as its path.
    """

    def __init__(self, path: StrPath, *, mmap: bool = True) -> None:
        self.path = os.fspath(path)
        self._mmap = mmap
        self._folder = read_folder(self.path) if os.path.isdir(self.path) else None
        names = self._folder.shards if self._folder is not None else ("",)
        files = {name: os.path.join(self.path, name) if name else self.path for name in names}
        self._identity = tuple(_identity(file) for file in files.values())
        self._shards = {name: _reader(file, mmap) for name, file in files.items()}
        self._entries: dict[str, Entry] = {}
        self._where: dict[str, tuple[str, int]] = {}
        keys = {shard: self._read_entries(shard) for shard in self._shards}
        if self._folder is not None:
            self._folder.check(keys)
        self._metadata: dict[str, dict[str, str]] = {shard: reader.metadata for shard, reader in self._shards.items()}
        self._pruned: dict[str, tuple[Pattern, float]] = {}
        self._tensors = self._read_tensors(keys)

    def _read_entries(self, shard: str) -> dict[str, Entry]:
        """The keys of a shard, and where each is."""
        entries = {key: Entry(key, dtype, shape, size) for key, dtype, shape, size in self._shards[shard].tensors}
        for index, key in enumerate(entries):
            if key in self._where:
                raise FormatError(f"{self.path}: tensor {key!r} is in {self._where[key][0]!r} and in {shard!r}")
            self._where[key] = (shard, index)
        self._entries.update(entries)
        return entries

    def _read_tensors(self, keys: Mapping[str, Mapping[str, Entry]]) -> dict[str, Packed | Entry]:
        """What the keys stand for: by the record of their shard, or, where there is none, by their names."""
        parts: list[tuple[Mapping[str, Entry], str | None]] = []
        unrecorded: dict[str, Entry] = {}
        for shard, entries in keys.items():
            record = self._metadata[shard].pop(METADATA_KEY, None)
            if record is None:
                unrecorded.update(entries)
            else:
                parts.append((entries, record))
        if unrecorded:
            parts.append((unrecorded, None))
        tensors: dict[str, Packed | Entry] = {}
        with self._blame():
            for entries, record in parts:
                own = read_keys(entries, record, self._shape)
                for name, found in own.items():
                    if name in tensors:
                        raise FormatError(f"tensor {name!r} occurs twice")
                    tensors[name] = found
                if record is not None:
                    self._pruned.update(read_pruned(own, record))
        place = {shard: at for at, shard in enumerate(keys)}
        return dict(sorted(tensors.items(), key=lambda item: place[self._shard_of(item[1])]))

    def _shard_of(self, found: Packed | Entry) -> str:
        """The shard that a tensor belongs to: that of its values."""
        return self._where[found.key("compressed") if isinstance(found, Packed) else found.key][0]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file; that of a folder's first shard."""
        return dict(next(iter(self._metadata.values()), {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._mmap, self._identity)

    def __getitem__(self, name: str) -> BitmaskArray | NDArray[Any]:
        """The tensor of this name.

        Raises
        ------
        KeyError
            If there is none.
        FormatError
            If the parts of a packed tensor contradict each other.
        FastSparseError
            If NumPy has no such dtype.
        """
        found = self._tensors[name]
        return self._packed(found) if isinstance(found, Packed) else self._array(found)

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the file."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name; nothing of it is read."""
        return name in self._tensors

    def __repr__(self) -> str:
        packed = sum(isinstance(found, Packed) for found in self._tensors.values())
        return f"<Checkpoint {self.path!r}: {len(self)} tensors, {packed} packed>"

    @contextmanager
    def _blame(self, name: str | None = None) -> Iterator[None]:
        """Puts the file's and the tensor's name in front of an error's message."""
        where = self.path if name is None else f"{self.path}: tensor {name!r}"
        try:
            yield
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None
        except FastSparseError as error:
            raise FastSparseError(f"{where}: {error}") from None

    def _raw(self, entry: Entry) -> NDArray[np.uint8]:
        if entry.nbytes == 0:
            return np.frombuffer(b"\0", np.uint8)[:0]
        shard, index = self._where[entry.key]
        return np.frombuffer(self._shards[shard].bytes(index), np.uint8)

    def _array(self, entry: Entry) -> NDArray[Any]:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise FastSparseError(f"{self.path}: tensor {entry.key!r}: NumPy has no dtype for {entry.dtype}")
        try:
            array = self._raw(entry).view(dtype).reshape(entry.shape)
        except ValueError as error:
            raise FormatError(f"{self.path}: tensor {entry.key!r}: shape {list(entry.shape)}: {error}") from None
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def _shape(self, entry: Entry) -> tuple[int, ...]:
        """The content of a ``.shape``."""
        shape = tuple(self._array(entry).reshape(-1).tolist())
        if len(shape) > 64 or any(length < 0 for length in shape):
            raise FormatError(f"{entry.key!r} holds {list(shape[:65])}, which is no shape")
        return shape

    def _packed(self, tensor: Packed) -> BitmaskArray:
        part = {part: self._entries[tensor.key(part)] for part in tensor.entries(0)}
        values, bits = self._array(part["compressed"]), self._array(part["bitmask"])
        with self._blame(tensor.name):
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
            # For more than two dimensions compressed-tensors' offsets are sums along the wrong axis.
            if "row_offsets" in part and (tensor.layout == "matrix" or len(shape) <= 2):
                offsets = self._array(part["row_offsets"])
                if not np.array_equal(offsets.reshape(-1), array.row_offsets[:-1]):
                    raise FormatError("the row offsets disagree with the mask")
        return array

    def _keys(self, name: str) -> list[Entry]:
        found = self._tensors[name]
        return [self._entries[key] for key in found.keys] if isinstance(found, Packed) else [found]

    def digest(self, name: str) -> str:
        """The digest of a tensor's bytes, as they are stored; empty for a single file, of which nothing is resumed."""
        if self._folder is None:
            return ""
        return "".join(native().digest(self._raw(entry)) for entry in self._keys(name))

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's mapped pages back; views of it stay valid and read them again."""
        for entry in self._keys(name):
            shard, index = self._where[entry.key]
            self._shards[shard].release(index)


def _reader(file: str, mmap: bool) -> Any:
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
def _reopen(path: str, mmap: bool, identity: tuple[tuple[int, ...], ...]) -> Checkpoint:
    """The checkpoint that another process has open. Kept, because one job after the other comes with the same."""
    checkpoint = Checkpoint(path, mmap=mmap)
    if checkpoint._identity != identity:
        raise FastSparseError(f"{path}: it changed while it was read")
    return checkpoint


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


def open(path: StrPath, *, mmap: bool = True) -> Checkpoint:
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

    Returns
    -------
    Checkpoint
        A lazy mapping from names to `BitmaskArray` and `numpy.ndarray`.

    Raises
    ------
    FormatError
        If the file is not valid.
    OSError
        If it cannot be read.
    """
    return Checkpoint(path, mmap=mmap)
