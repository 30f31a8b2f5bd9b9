"""Resuming: what of a run that was killed is what this run would write.

Beside each finished shard of a folder under construction lies its record: the digests of what was read for it and of
what was written. A later run takes the shard over if the source has the same bytes, it holds the keys and the metadata
that it is to hold, in which the pattern of each tensor is written down with its share, and it still has the bytes that
were written. Times and names prove nothing. The folder is for this user only from the start, so nobody else wrote the
records in it.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from fastsparse import _backend, _sigint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._job import Shard
from fastsparse.checkpoint._reader import Reader, native
from fastsparse.checkpoint._work import TensorResult

__all__ = ["Record", "record_name", "resume"]


@dataclass
class Record:
    """What is known of a finished shard."""

    version: str = field(default_factory=_backend.version)
    source: dict[str, str] = field(default_factory=dict)
    header: str = ""
    target: dict[str, str] = field(default_factory=dict)
    kept_energy: dict[str, float | None] = field(default_factory=dict)

    def add(self, name: str, done: TensorResult) -> None:
        """Enters a tensor."""
        self.source[name] = done.source
        self.kept_energy[name] = done.kept_energy
        self.target.update({key: native().digest(part) for key, part in done.parts.items()})

    def write(self, folder: str, shard: Shard) -> None:
        """Writes the record of a finished shard. It needs no flush: one that is not whole is worth nothing."""
        self.header = _header(os.path.join(folder, shard.name), shard.entries)
        text = json.dumps(asdict(self)).encode()
        with open(os.path.join(folder, record_name(shard.name)), "xb") as file:
            file.write(_digest(text).encode() + b"\n" + text)

    @classmethod
    def read(cls, folder: str, shard: Shard) -> "Record":
        """The record of a finished shard, or what `resume` expects of one that is none."""
        with open(os.path.join(folder, record_name(shard.name)), "rb") as file:
            digest, text = file.read().split(b"\n", 1)
        if digest.decode() != _digest(text):
            raise FastSparseError("damaged")
        return cls(**json.loads(text))


def record_name(shard: str) -> str:
    """The name of a shard's record, beside it."""
    return f".{shard}.done"


def resume(source: Reader, folder: str, shard: Shard) -> Record | None:
    """The record of a shard that a killed run finished; None where there is none that holds."""
    path = os.path.join(folder, shard.name)
    try:
        if not _is_ours(path):
            return None
        record = Record.read(folder, shard)
        same = all(_agreements(source, path, shard, record))
    except (OSError, ValueError):  # FastSparseError is a ValueError
        return None
    return record if same else None


def _is_ours(path: str) -> bool:
    """Whether it is a file of this user with no other name, by which somebody could change it. No link is followed."""
    found = os.lstat(path)
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and (os.name != "posix" or found.st_uid == os.geteuid())


def _agreements(source: Reader, path: str, shard: Shard, record: Record) -> Iterator[bool]:
    """Whether each thing is as it has to be, the cheap ones first."""
    yield record.version == _backend.version()
    yield list(record.source) == list(record.kept_energy) == list(shard.tensors)
    yield list(record.target) == [entry.key for entry in shard.entries]
    reader = native().CheckpointReader(path, True)
    yield reader.metadata == shard.metadata
    found = {key: (index, Entry(key, *rest)) for index, (key, *rest) in enumerate(reader.tensors)}
    yield {key: entry for key, (_, entry) in found.items()} == {entry.key: entry for entry in shard.entries}
    yield record.header == _header(path, shard.entries)
    for name, digest in record.source.items():
        _sigint.deliver()
        yield digest == source.digest(name)
        source.release(name)
    for key, digest in record.target.items():
        _sigint.deliver()
        index, _ = found[key]
        yield digest == native().digest(reader.bytes(index))
        reader.release(index)


def _header(path: str, entries: Sequence[Entry]) -> str:
    """The digest of what comes before the data of a file."""
    size = os.path.getsize(path) - sum(entry.nbytes for entry in entries)
    if size < 0:
        raise FastSparseError(f"{path}: it is too short")
    with open(path, "rb") as file:
        return _digest(file.read(size))


def _digest(content: bytes) -> str:
    return str(native().digest(content))
