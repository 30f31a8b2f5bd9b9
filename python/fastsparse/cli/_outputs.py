"""Files of text that a command writes beside what it prints."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._folder import CONFIG, read_folder
from fastsparse.checkpoint._writer import check_place

__all__ = ["check_outputs", "files_of", "write_outputs"]


def files_of(model: Path) -> list[Path]:
    """The files that a checkpoint is read from."""
    if not model.is_dir():
        return [model]
    found = read_folder(str(model))
    return [model / name for name in (*found.shards, found.index_name, CONFIG)]


def check_outputs(outputs: Sequence[Path], inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuses before any work what cannot be written, one file for two outputs, and one that is read."""
    taken = list(inputs)
    for path in outputs:
        if any(_same(path, other) for other in taken):
            raise FastSparseError(f"{path}: this file is an input or another output; name another one to write")
        check_place(path, folder=False, overwrite=overwrite)
        taken.append(path)


def _same(a: Path, b: Path) -> bool:
    if os.path.exists(a) and os.path.exists(b):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def write_outputs(texts: Mapping[Path, str]) -> None:
    """Writes files under temporary names, and gives them their own once all are whole."""
    partials = {path: path.with_name(f".{path.name}.partial") for path in texts}
    try:
        for path, text in texts.items():
            partials[path].unlink(missing_ok=True)
            with open(partials[path], "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
