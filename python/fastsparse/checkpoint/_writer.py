"""Writing: a file, or a folder of the shape of the source; under a temporary name until all of it is there."""

import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from fastsparse import _sigint
from fastsparse._errors import FastSparseError, FormatError
from fastsparse.checkpoint._executor import result_of
from fastsparse.checkpoint._folder import CONFIG, SINGLE, read_folder, write_json
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._hf_config import dense_config, packed_config, sparse_config
from fastsparse.checkpoint._job import Shard
from fastsparse.checkpoint._reader import Reader, StrPath, native
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._resume import Record, record_name, resume
from fastsparse.checkpoint._work import TensorResult

__all__ = ["Target", "check_place", "check_target", "writing"]

_BLOCK = 16 << 20
"""Bytes that are written at once: a slow disk takes them in a fraction of a second, and then an interrupt comes."""
_UNFLUSHED = 64 << 20
"""Bytes that are written before the disk is asked to take them: a flush for each small tensor takes minutes."""


def check_place(path: StrPath, *, folder: bool, overwrite: bool) -> None:
    """Refuses before any work a path at which no file, or no `folder`, can be written.

    Raises
    ------
    FastSparseError
        If it names none, exists and is not to be replaced or is of the other kind.
    OSError
        If the folder that it is to lie in does not exist, or nothing may be written there.
    """
    target = os.fspath(path)
    if os.path.lexists(path) and not overwrite:
        raise FastSparseError(f"{target}: it exists already; overwrite=True replaces it")
    place = Path(path)
    if place.name in ("", ".."):
        raise FastSparseError(f"{target}: expected the name of the {'folder' if folder else 'file'} to write")
    if not folder and (os.path.isdir(path) or os.path.basename(target) in ("", ".")):
        raise FastSparseError(f"{target}: this names a folder, and a file is to be written; name the file in it")
    if folder and os.path.lexists(path) and not os.path.isdir(path):
        raise FastSparseError(f"{target}: it exists and is no folder")
    try:
        os.stat(os.path.join(place.parent, "."))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no folder to write it in" if missing else error.strerror
        raise OSError(error.errno, why, target) from None
    if os.name == "posix" and not os.access(place.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), target)


def check_target(source: Reader, dst: StrPath, overwrite: bool) -> None:
    """Refuses before any work what the writers would refuse, and a target that is, holds or is held by the source."""
    target = os.fspath(dst)
    if os.path.exists(dst) and os.path.samefile(source.path, dst):
        kind = "file" if source.folder is None else "folder"
        raise FastSparseError(f"{target}: source and target are the same {kind}")
    check_place(dst, folder=source.folder is not None, overwrite=overwrite)
    if source.folder is None:
        return
    inner, outer = (os.path.join(os.path.realpath(path), "") for path in (source.path, target))
    if inner.startswith(outer) or outer.startswith(inner):
        raise FastSparseError(f"{target}: one of source and target is inside the other")
    if os.path.isdir(dst) and os.listdir(dst):
        try:
            found = read_folder(target)
        except FormatError:
            found = None
        if found is None or (found.index is None and found.shards not in ((SINGLE,), source.folder.shards)):
            raise FastSparseError(f"{target}: it holds something else than a model and is not replaced")


class Target:
    """The file or folder under construction. As a context it is finished on success and removed otherwise.

    Parameters
    ----------
    source : Reader
        What it is made from; a folder gives its side files.
    dst : path-like
        Its name.
    shards : list of Shard
        In the order in which they are written.
    overwrite : bool
        Whether an existing one is replaced.
    report : Report, optional
        What will be packed, for `config.json`; None where everything is dense.
    form : str, optional
        The name that compressed-tensors gives the layout, for a `config.json` that it reads; None for one of ours.

    Attributes
    ----------
    resumed : dict of Record
        By name the shards that a killed run finished, from when the context is entered. They are not written again.
    """

    def __init__(
        self,
        source: Reader,
        dst: StrPath,
        shards: list[Shard],
        overwrite: bool,
        report: Report | None,
        form: str | None,
    ) -> None:
        self._source, self._dst, self._overwrite, self._report = source, str(Path(dst)), overwrite, report
        self._form = form
        self._shards = {shard.name: shard for shard in shards}
        self._process = os.getpid()
        self._open = ExitStack()
        self._folder: Any = None
        self._shard: str | None = None
        self._writer: Any = None
        self._flusher = ThreadPoolExecutor(1, "fastsparse-flush")
        self._flushing: Future[None] | None = None
        self._unflushed = 0
        self._record = Record()
        self.resumed: dict[str, Record] = {}

    def __enter__(self) -> "Target":
        if self._source.folder is not None:
            # The owner may always remove what is written.
            mode = self._source.mode("") | 0o700
            self._folder = native().CheckpointFolder(self._dst, self._overwrite, mode)
            try:
                self._resume_shards(str(self._folder.partial))
                self._write_side_files(str(self._folder.partial))
            except BaseException:
                self._folder.abort()
                raise
        return self

    def write(self, shard: str, name: str, result: TensorResult) -> None:
        """Writes the tensor of this name; those of a shard come one after the other."""
        if shard != self._shard:
            self._begin(shard)
        for key, part in result.parts.items():
            for start in range(0, len(part), _BLOCK):
                _sigint.deliver()
                self._writer.write(key, part[start : start + _BLOCK])
            self._unflushed += len(part)
        # Else the system gathers gigabytes, and the end of the shard waits for the disk while
        # nothing computes.
        if self._unflushed >= _UNFLUSHED and (self._flushing is None or self._flushing.done()):
            self._wait_for_flush()
            self._flush()
        if self._folder is not None:
            self._record.add(name, result)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return  # A forked child: what is under construction is its parent's, and so are the locks and threads.
        try:
            if kind is not None:
                self._open.__exit__(kind, error, trace)
                return
            try:
                self._close()
                for shard in self._shards.values():
                    if not shard.tensors and shard.name not in self.resumed:
                        self._begin(shard.name)
                        self._close()
            except BaseException:
                self._open.__exit__(*sys.exc_info())
                raise
            if self._folder is not None:
                self._finish_folder(self._folder.partial)
        finally:
            self._flusher.shutdown()
            if self._folder is not None:
                self._folder.abort()

    def _finish_folder(self, partial: Path) -> None:
        """Gives the folder its name if all shards are there, whatever else went on in it."""
        for shard in self._shards:
            Path(partial, record_name(shard)).unlink(missing_ok=True)
            if not Path(partial, shard).is_file():
                raise FastSparseError(f"{self._dst}: shard {shard!r} was removed while the target was written")
        self._folder.finish()

    def _flush(self) -> None:
        """Begins to hand what was written to the disk."""
        self._unflushed = 0
        self._flushing = self._flusher.submit(self._writer.flush)

    def _wait_for_flush(self) -> None:
        """Lets the flush that is under way come to its end, or to its error."""
        if self._flushing is not None:
            result_of(self._flushing)
            self._flushing = None

    def _begin(self, shard: str) -> None:
        """Finishes the shard at hand and begins another."""
        self._close()
        self._shard, self._record = shard, Record()
        wanted = self._shards[shard]
        path = self._dst if self._folder is None else str(self._folder.partial / shard)
        mode = self._source.mode(shard)
        self._writer = self._open.enter_context(writing(path, wanted.entries, wanted.metadata, self._overwrite, mode))

    def _close(self) -> None:
        """Finishes the shard at hand, if there is one. Most of the waiting is done where an interrupt comes through."""
        self._wait_for_flush()
        if self._writer is None:
            return
        self._flush()
        self._wait_for_flush()
        self._open.close()
        self._writer = None
        if self._folder is not None and self._shard is not None:
            self._record.write(str(self._folder.partial), self._shards[self._shard])

    def _resume_shards(self, partial: str) -> None:
        """Keeps the shards that a killed run finished, and nothing else that it left."""
        found = {name: resume(self._source, partial, shard) for name, shard in self._shards.items()}
        self.resumed = {name: record for name, record in found.items() if record is not None}
        self._folder.retain({*self.resumed, *map(record_name, self.resumed)})

    def _write_side_files(self, partial: str) -> None:
        """Writes everything that is no shard: all of it is known before the data."""
        folder = self._source.folder
        assert folder is not None
        needed = [name for shard in self._shards for name in (shard, record_name(shard), f".{shard}.partial")]
        folder.copy_side_files(partial, needed)
        where = {entry.key: shard.name for shard in self._shards.values() for entry in shard.entries}
        size = sum(entry.nbytes for shard in self._shards.values() for entry in shard.entries)
        folder.write_index(partial, where, size)
        config = folder.read_config()
        if config is not None:
            turned = dense_config(config)
            if self._report is not None and self._form is None:
                turned = packed_config(turned)
            elif self._report is not None and self._form is not None:
                turned = sparse_config(turned, self._report.tensors, self._form)
            write_json(os.path.join(partial, CONFIG), turned)
        for name in (folder.index_name, CONFIG):
            if os.path.exists(os.path.join(partial, name)):
                shutil.copymode(os.path.join(folder.path, name), os.path.join(partial, name))


@contextmanager
def writing(
    path: StrPath, entries: Iterable[Entry], metadata: Mapping[str, str], overwrite: bool, mode: int | None
) -> Iterator[Any]:
    """A writer that is finished on success, and removes what it wrote otherwise; see `Target` for a forked child.

    With a `mode` the file is for this user only until it is finished, and then gets that mode.
    """
    process = os.getpid()
    layout = [(entry.key, entry.dtype, entry.shape) for entry in entries]
    writer = native().CheckpointWriter(os.fspath(path), layout, dict(metadata), overwrite, mode)
    try:
        yield writer
        writer.finish()
    finally:
        if os.getpid() == process:
            writer.abort()
