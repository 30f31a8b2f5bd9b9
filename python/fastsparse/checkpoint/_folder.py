"""Model folders as hubs hold them: shards, their index, and the files beside them."""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from fastsparse._errors import FormatError
from fastsparse.checkpoint import _sigint
from fastsparse.checkpoint._foreign import hint

__all__ = ["CONFIG", "ModelFolder", "read_folder", "write_json"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
_NOT_CARRIED = (".git", ".cache")
"""Folders of version control and of download tools; they describe the source, not the model."""
_BLOCK = 64 << 20
"""Bytes of a side file that are copied at once."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder: the names of its shards, and its index as it stands, None where one file needs none."""

    path: str
    shards: tuple[str, ...]
    index: dict[str, Any] | None

    def check(self, keys: Mapping[str, Iterable[str]]) -> None:
        """Holds the index against the keys of each shard.

        Raises
        ------
        FormatError
            If a tensor is in the index but not in its shard, or the other way round.
        """
        if self.index is None:
            return
        where: dict[str, str] = self.index["weight_map"]
        found = {shard: set(names) for shard, names in keys.items()}
        for name, shard in where.items():
            if name not in found[shard]:
                raise FormatError(f"{self.path}: tensor {name!r} is in the index, but not in its shard {shard!r}")
        for shard, names in found.items():
            for name in sorted(names):
                if where.get(name) != shard:
                    raise FormatError(f"{self.path}: tensor {name!r} is in shard {shard!r}, but not so in the index")

    def write_index(self, folder: str, where: Mapping[str, str], size: int) -> None:
        """Writes the index of a folder like this one, with these keys and bytes of data."""
        if self.index is not None:
            metadata = self.index.get("metadata")
            metadata = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
            index = {**self.index, "metadata": metadata, "weight_map": dict(sorted(where.items()))}
            write_json(os.path.join(folder, INDEX), index)

    def read_config(self) -> dict[str, Any] | None:
        """The content of `config.json`; None where there is none.

        Raises
        ------
        FormatError
            If it is not a JSON object.
        """
        path = os.path.join(self.path, CONFIG)
        return _read_json(path) if os.path.exists(path) else None

    def copy_side_files(self, folder: str, taken: Collection[str]) -> None:
        """Copies all but shards, index and `config.json`. Links to files are followed: hubs' caches are made of them.

        Raises
        ------
        FormatError
            If there is a link to a folder: it may lead anywhere, back to where it is too. If there is a pipe or a
            device. If a name is one of `taken`.
        """
        for name in sorted(os.listdir(self.path)):
            if name in (INDEX, CONFIG, *self.shards, *_NOT_CARRIED):
                continue
            if name in taken:
                raise FormatError(f"{os.path.join(self.path, name)}: the name is needed while the target is written")
            for source, target in _files(os.path.join(self.path, name), os.path.join(folder, name)):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                _copy(source, target)
                shutil.copymode(source, target)


def read_folder(path: str) -> ModelFolder:
    """Finds the shards of a model folder.

    Raises
    ------
    FormatError
        If there are none, the index is not valid, or a shard is missing.
    """
    indexed, single = (os.path.exists(os.path.join(path, name)) for name in (INDEX, SINGLE))
    if not indexed:
        if not single:
            raise FormatError(f"{path}: a folder without {SINGLE} or {INDEX}{hint(path)}")
        return ModelFolder(path, (SINGLE,), None)
    index = _read_json(os.path.join(path, INDEX))
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise FormatError(f"{path}: {INDEX}: 'weight_map' does not map tensors to shards")
    shards = tuple(sorted(set(where.values())))
    if not shards:
        raise FormatError(f"{os.path.join(path, INDEX)}: 'weight_map' names no shard")
    for shard in shards:
        # The index comes from strangers: a shard is a file of this folder and nothing else.
        if shard in ("", ".", "..", INDEX, CONFIG) or any(mark in shard for mark in "/\\:\0"):
            raise FormatError(f"{path}: {INDEX}: {shard!r} is not the name of a file in the folder")
        if not os.path.exists(os.path.join(path, shard)):
            raise FormatError(f"{path}: shard {shard!r} is missing")
    if single and SINGLE not in shards:
        raise FormatError(f"{path}: holds {SINGLE} and an index that does not name it")
    return ModelFolder(path, shards, index)


def _read_json(path: str) -> dict[str, Any]:
    _refuse_special(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: not a JSON object")
    return content


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as transformers lays it out, flushed."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        _flush(file)


def _files(source: str, target: str) -> Iterator[tuple[str, str]]:
    """The file, or all files below the folder, and where each goes."""
    if not os.path.isdir(source):
        _refuse_special(source)
        yield source, target
    elif os.path.islink(source):
        raise FormatError(f"{source}: a link to a folder is not carried over")
    else:
        for name in sorted(os.listdir(source)):
            yield from _files(os.path.join(source, name), os.path.join(target, name))


def _refuse_special(path: str) -> None:
    """Raises for what is there and no file: a pipe would be waited for, a device read without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise FormatError(f"{path}: not a regular file")


def _copy(source: str, target: str) -> None:
    """Copies a file, flushed block by block: it may be weights of another format, and an interrupt does not wait."""
    with open(source, "rb") as reading, open(target, "xb") as writing:
        while block := reading.read(_BLOCK):
            writing.write(block)
            _flush(writing)
            _sigint.deliver()


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
