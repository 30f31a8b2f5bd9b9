"""Stages of a long run, kept beside its target: a run that ended early is taken up after the last finished one.

Each stage is a safetensors file that appears when it is whole. It holds the tensors that the stage made, and in its
metadata notes, the digests of what was read for it, and where its outputs are, which are what the next stage goes on
from. A later run takes stages over if it is the same run in all that decides about the result, and the source has the
same bytes. Times and names prove nothing. The folder is for this user only. What another run
finished is refused, unless it is to be overwritten.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any

from numpy.typing import NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._reader import Checkpoint, Reader, StrPath, native
from fastsparse.checkpoint._save import save
from fastsparse.packed import BitmaskArray

__all__ = ["Stages", "file_digest", "folder_beside"]

METADATA_KEY = "fastsparse.stage"
_PIECE = 16 << 20
_Array = BitmaskArray | NDArray[Any]


class Stages:
    """The finished stages of a run. As a context it holds the folder: a second run into it is refused.

    It is removed where the block ends well, or before a stage was finished; otherwise it stays for the next run, and a
    note of the error says so.

    Parameters
    ----------
    folder : Path
        Made where it does not exist.
    source : Reader
        What the stages read.
    settings : object
        All else that decides about the result, as plain values.
    overwrite : bool
        Whether the finished stages of another run are removed.

    Attributes
    ----------
    resumed : tuple of str
        The stages that an earlier run finished.

    Raises
    ------
    FastSparseError
        On entry, if the folder is not ours, another run holds it, or it has the finished stages of another run.
    """

    def __init__(self, folder: Path, source: Reader, settings: Any, *, overwrite: bool = False) -> None:
        self.folder, self._source, self._overwrite = folder, source, overwrite
        self._key = str(native().digest(json.dumps([_backend.version(), settings]).encode()))
        self._stages: dict[tuple[str, str], dict[str, Any]] = {}
        self._files: dict[tuple[str, str], Checkpoint] = {}
        self.resumed: tuple[str, ...] = ()
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "Stages":
        self.folder.mkdir(mode=0o700, exist_ok=True)
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and found.st_uid != os.geteuid()):
            raise FastSparseError(f"{self.folder}: it is needed while the target is made, and is not ours; remove it")
        self._lock = _locked(self.folder)
        try:
            self._take_over()
        except BaseException:
            self._files = {}
            self._lock.close()
            raise
        return self

    def _take_over(self) -> None:
        """Takes the stages over that an earlier run finished; all else in the folder goes."""
        for stage in self._valid():
            self._take(stage)
        self.resumed = tuple(f"{label}: {stage}" for label, stage in self._stages)
        kept = {"lock", *(stage["file"] for stage in self._stages.values())}
        kept.update(stage["outputs"]["file"] for stage in self._last_outputs())
        for path in self.folder.iterdir():
            if path.name not in kept:
                _remove(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files = {}
        assert self._lock is not None
        if error is not None and self._stages:
            error.add_note(f"finished blocks are kept in {self.folder}; the same command goes on after them")
        else:
            if _fcntl() is None:
                self._lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def __contains__(self, stage: tuple[str, str]) -> bool:
        """Whether a stage, by its label and its name, is finished."""
        return stage in self._stages

    def begun(self, label: str) -> bool:
        """Whether any stage of this label is finished."""
        return any(kind == label for kind, _ in self._stages)

    def notes(self, label: str) -> dict[str, Any]:
        """The notes of the finished stages of this label, in one."""
        own = (stage["notes"] for (kind, _), stage in self._stages.items() if kind == label)
        return {name: note for notes in own for name, note in notes.items()}

    def arrays(self, label: str) -> dict[str, Checkpoint]:
        """The file that has each tensor of the finished stages of this label."""
        return {name: file for (kind, _), file in self._files.items() if kind == label for name in file}

    def outputs(self, label: str, stage: str) -> tuple[Path, list[list[int]]]:
        """The file with the outputs of a stage, there if it is the last one that has any, and their shapes."""
        outputs = self._stages[label, stage]["outputs"]
        return self.folder / outputs["file"], outputs["shapes"]

    def add(
        self,
        label: str,
        stage: str,
        arrays: Mapping[str, _Array],
        notes: Mapping[str, Any],
        read: Sequence[str],
        outputs: tuple[Path, Sequence[Sequence[int]]] | None,
    ) -> None:
        """Keeps a stage that is finished. The outputs of the one before it go.

        Parameters
        ----------
        label, stage : str
            What is done, and its name in that.
        arrays, notes : mapping
            What it made.
        read : sequence of str
            The tensors of the source that it read.
        outputs : tuple of Path and shapes, optional
            A file in the folder, and the shapes of the tensors in it.
        """
        content = {
            "key": self._key,
            "label": label,
            "stage": stage,
            "notes": dict(notes),
            "source": {name: self._source.digest(name) for name in read},
            "outputs": None,
        }
        for name in read:
            self._source.release(name)
        if outputs is not None:
            path, shapes = outputs
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            content["outputs"] = {"file": path.name, "digest": file_digest(path), "shapes": [list(s) for s in shapes]}
        name = f"{len(self._stages):06}.safetensors"
        save(arrays, self.folder / name, metadata={METADATA_KEY: json.dumps(content)}, overwrite=True)
        earlier = list(self._last_outputs())
        self._take({**content, "file": name})
        for old in earlier if outputs is not None else ():
            (self.folder / old["outputs"]["file"]).unlink(missing_ok=True)

    def _take(self, stage: dict[str, Any]) -> None:
        place = stage["label"], stage["stage"]
        self._stages[place], self._files[place] = stage, Checkpoint(self.folder / stage["file"])

    def _last_outputs(self) -> Iterator[dict[str, Any]]:
        """The last stage that has outputs, if there is one."""
        yield from [stage for stage in self._stages.values() if stage["outputs"] is not None][-1:]

    def _valid(self) -> list[dict[str, Any]]:
        """The stages that an earlier run finished and this one would make. Those of another run are refused."""
        found: list[dict[str, Any]] = []
        while True:
            name = f"{len(found):06}.safetensors"
            try:
                stage = json.loads(Checkpoint(self.folder / name).metadata[METADATA_KEY])
                same = stage["key"] == self._key and all(
                    self._source.digest(tensor) == digest for tensor, digest in stage["source"].items()
                )
            except (OSError, ValueError, KeyError, TypeError):  # FastSparseError is a ValueError
                break
            if not same:
                if self._overwrite:
                    break
                raise FastSparseError(
                    f"{self.folder}: it has finished blocks made with other settings or from other weights; run the "
                    "command that made them to go on, or remove the folder; overwrite=True replaces it"
                )
            for tensor in stage["source"]:
                self._source.release(tensor)
            found.append({**stage, "file": name})
        outputs = [stage["outputs"] for stage in found if stage["outputs"] is not None][-1:]
        try:
            return found if all(file_digest(self.folder / last["file"]) == last["digest"] for last in outputs) else []
        except OSError:
            return []


def folder_beside(target: StrPath) -> Path:
    """Where the finished stages of a run are kept."""
    path = Path(target).absolute()
    return path.with_name(f".{path.name}.stages")


def file_digest(path: Path) -> str:
    """The digest of a file, read piece by piece."""
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(_PIECE), b"")
        return str(native().digest("".join(native().digest(piece) for piece in pieces).encode()))


def _locked(folder: Path) -> IO[bytes]:
    """A file in the folder that no other run holds until it is closed."""
    file = (folder / "lock").open("ab")
    fcntl = _fcntl()
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FastSparseError(f"{folder}: another run is writing it") from None
    return file


def _fcntl() -> ModuleType | None:
    """What locks files; None on Windows, where nobody can remove a file that is open, this run included."""
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
