"""Model folders as hubs hold them: shards, their index, and the files beside them."""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from fastsparse import _sigint
from fastsparse._errors import FormatError
from fastsparse.checkpoint._foreign import hint, identify, is_weights

__all__ = ["CONFIG", "SINGLE", "ModelFolder", "read_folder", "write_json"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
_NOT_CARRIED = (".git", ".cache")
"""Folders of version control and of download tools; they describe the source, not the model."""
_TRUST = "; trust_shards=True takes the shards as they are"
_CACHED = re.compile("(models|datasets|spaces)--")
"""The folders of hubs' caches; in each of them are `blobs`, which the files of a model are links to."""
_BLOCK = 64 << 20
"""Bytes of a side file that are copied at once."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder: the names of its shards, and its index as it stands, None where one file needs none."""

    path: str
    shards: tuple[str, ...]
    index: dict[str, Any] | None
    index_name: str = INDEX

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
                tied = ". It may be tied to the embeddings, and is then stored once" if "head" in name else ""
                raise FormatError(
                    f"{self.path}: tensor {name!r} is in the index, but not in its shard {shard!r}{tied}{_TRUST}"
                )
        for shard, names in found.items():
            for name in sorted(names):
                if where.get(name) != shard:
                    raise FormatError(
                        f"{self.path}: tensor {name!r} is in shard {shard!r}, but not so in the index{_TRUST}"
                    )

    def write_index(self, folder: str, where: Mapping[str, str], size: int) -> None:
        """Writes the index of a folder like this one, with these keys and bytes of data."""
        if self.index is not None:
            metadata = self.index.get("metadata")
            metadata = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
            index = {**self.index, "metadata": metadata, "weight_map": dict(sorted(where.items()))}
            write_json(os.path.join(folder, self.index_name), index)

    def read_config(self) -> dict[str, Any] | None:
        """The content of `config.json`; None where there is none.

        Raises
        ------
        FormatError
            If it is not a JSON object.
        """
        path = os.path.join(self.path, CONFIG)
        return _read_json(path) if os.path.exists(path) else None

    def other_weights(self) -> Iterator[tuple[str, int]]:
        """The files of weights that are no shards, such as variants and models in folders below; with their bytes."""
        for name in _below(self.path):
            if name not in self.shards and is_weights(os.path.basename(name)):
                yield name, os.path.getsize(os.path.join(self.path, name))

    def copy_side_files(self, folder: str, taken: Collection[str]) -> None:
        """Copies all but shards, index and `config.json`, with their permissions.

        Links to files are followed where they stay in the folder or lead to the blobs of a hub's cache.

        Raises
        ------
        FormatError
            If there is a link to another place or to a folder, index and `config.json` included: who made the folder
            may not know what it leads to here. If there is a pipe or a device. If a name is one of `taken`.
        """
        home = os.path.realpath(self.path)
        for name in (self.index_name, CONFIG):
            _resolve(os.path.join(self.path, name), home)
        for name in sorted(os.listdir(self.path)):
            if name in (self.index_name, CONFIG, *self.shards, *_NOT_CARRIED):
                continue
            if name in taken:
                raise FormatError(f"{os.path.join(self.path, name)}: the name is needed while the target is written")
            for source, target in _files(os.path.join(self.path, name), os.path.join(folder, name)):
                _make_folders(os.path.dirname(source), os.path.dirname(target))
                _copy(_resolve(source, home), target)
                shutil.copymode(source, target)


def read_folder(path: str) -> ModelFolder:
    """Finds the shards of a model folder.

    That is ``model.safetensors`` or what its index names, else the one model that there is under another name: with an
    index, as one file, or as numbered shards that are all there. Of variants such as ``x`` and ``x.fp16`` the plain one
    is the model.

    Raises
    ------
    FormatError
        If there are none or several, the index is not valid, or a shard is missing; the message names what is there.
    """
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    indexes = [name for name in names if _INDEX.fullmatch(name)]
    weights = [name for name in names if name.endswith(".safetensors")]
    if INDEX in indexes:
        found = _read_index(path, INDEX)
        if SINGLE in weights and SINGLE not in found.shards:
            raise FormatError(f"{path}: holds {SINGLE} and an index that does not name it")
        return found
    if SINGLE in weights:
        return ModelFolder(path, (SINGLE,), None)
    models = {name: _read_index(path, name) for name in indexes}
    indexed = {shard for model in models.values() for shard in model.shards}
    sets: dict[str, list[str]] = {}
    for name in weights:
        if name not in indexed:
            sets.setdefault(_NUMBER.sub("", name), []).append(name)
    models.update((name, ModelFolder(path, tuple(shards), None)) for name, shards in sets.items())
    if not models:
        raise FormatError(f"{path}: a folder without safetensors of its own{_models_below(path) or hint(path)}")
    plain = min(models, key=lambda name: len(_stem(name)))
    if any(name != plain and not _is_variant(_stem(name), _stem(plain)) for name in models):
        raise FormatError(
            f"{path}: holds several models, {', '.join(map(repr, models))}; name one of the files, or move the others"
        )
    chosen = models[plain]
    if chosen.index is None:
        _check_numbers(path, chosen.shards)
    return chosen


_INDEX = re.compile(r"(.+)\.safetensors\.index(\.\w+)?\.json")
_NUMBER = re.compile(r"-(\d+)-of-(\d+)(?=(\.\w+)?\.safetensors$)")


def _stem(name: str) -> str:
    """The name of a model, with its variant at the end, from that of its index or file."""
    index = _INDEX.fullmatch(name)
    return name.removesuffix(".safetensors") if index is None else index[1] + (index[2] or "")


def _is_variant(stem: str, plain: str) -> bool:
    """Whether a name is the plain one and a word more, as in ``x.fp16``."""
    return re.fullmatch(re.escape(plain) + r"\.\w+", stem) is not None


def _check_numbers(path: str, shards: tuple[str, ...]) -> None:
    """Holds shards without an index against their own numbers."""
    found = [match for match in map(_NUMBER.search, shards) if match]
    totals = {int(match[2]) for match in found}
    if not found or (len(totals) == 1 and sorted(int(match[1]) for match in found) == list(range(1, max(totals) + 1))):
        return
    raise FormatError(
        f"{path}: {len(shards)} of {max(totals)} shards and no index: {', '.join(map(repr, shards))}; fetch the others"
    )


def _models_below(path: str) -> str:
    """Names models in the folders of a folder, as pipelines have them; empty where there are none."""
    found = sorted(name for name in _below(path) if name.endswith(".safetensors"))
    folders = dict.fromkeys(os.path.dirname(name) for name in found)
    if not found:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return (
        f"; below it are {', '.join(map(repr, found[:5]))}{more}. Compress each folder by itself "
        f"({', '.join(map(repr, list(folders)[:5]))}), and copy the rest"
    )


def _below(path: str) -> Iterator[str]:
    """The files of a folder and of those in it, without links to folders, relative to it."""
    for at, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _NOT_CARRIED)
        yield from (os.path.relpath(os.path.join(at, name), path) for name in sorted(names))


def _read_index(path: str, name: str) -> ModelFolder:
    index = _read_json(os.path.join(path, name))
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise FormatError(f"{path}: {name}: 'weight_map' does not map tensors to shards")
    shards = tuple(sorted(set(where.values())))
    if not shards:
        raise FormatError(f"{os.path.join(path, name)}: 'weight_map' names no shard")
    for shard in shards:
        # The index comes from strangers: a shard is a file of this folder and nothing else.
        if shard in ("", ".", "..", name, CONFIG) or any(mark in shard for mark in "/\\:\0"):
            raise FormatError(f"{path}: {name}: {shard!r} is not the name of a file in the folder")
        if shard.startswith("."):
            raise FormatError(f"{path}: {name}: shard {shard!r}: names that begin with a dot are for temporary files")
        if not os.path.exists(os.path.join(path, shard)):
            raise FormatError(f"{path}: shard {shard!r} is missing")
    return ModelFolder(path, shards, index, name)


def _read_json(path: str) -> dict[str, Any]:
    _refuse_special(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        found = identify(path)
        why = f"this is {found}" if found is not None and not found.startswith("JSON") else f"not valid JSON: {error}"
        raise FormatError(f"{path}: {why}") from None
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


def _make_folders(source: str, target: str) -> None:
    """Makes the folder of a side file, with the permissions of the one in the source; its owner may remove it."""
    if not os.path.isdir(target):
        _make_folders(os.path.dirname(source), os.path.dirname(target))
        os.mkdir(target)
        os.chmod(target, os.stat(source).st_mode & 0o777 | 0o700)


def _resolve(path: str, home: str) -> str:
    """Where a file is that may be a link: in the folder `home`, or among the blobs of a hub's cache."""
    real = os.path.realpath(path)
    blobs = os.path.dirname(real)
    in_cache = os.path.basename(blobs) == "blobs" and _CACHED.match(os.path.basename(os.path.dirname(blobs)))
    if os.path.islink(path) and not in_cache and not real.startswith(os.path.join(home, "")):
        raise FormatError(f"{path}: a link to {real}, outside of the folder, is not carried over; put a copy there")
    return real


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
