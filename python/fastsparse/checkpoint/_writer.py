"""Writing: a file, or a folder of the shape of the source; under a temporary name until all of it is there."""

import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.checkpoint import _sigint
from fastsparse.checkpoint._executor import Task, map_bounded, result_of
from fastsparse.checkpoint._folder import CONFIG, SINGLE, read_folder, write_json
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._hf_config import dense_config, packed_config, sparse_config
from fastsparse.checkpoint._reader import Reader, StrPath, native
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._resume import Record, Shard, TensorResult, record_name, resume

__all__ = ["Target", "check_target", "writing"]

_BLOCK = 16 << 20
"""Bytes that are written at once: a slow disk takes them in a fraction of a second, and then an interrupt comes."""


def check_target(source: Reader, dst: StrPath, overwrite: bool) -> None:
    """Refuses before any work what the writers would refuse, and a target that is, holds or is held by the source."""
    target = os.fspath(dst)
    if os.path.exists(dst) and os.path.samefile(source.path, dst):
        kind = "file" if source.folder is None else "folder"
        raise FastSparseError(f"{target}: source and target are the same {kind}")
    if os.path.lexists(dst) and not overwrite:
        raise FastSparseError(f"{target}: it exists already; ask for overwriting to replace it")
    if source.folder is None:
        return
    inner, outer = (os.path.join(os.path.realpath(path), "") for path in (source.path, target))
    if inner.startswith(outer) or outer.startswith(inner):
        raise FastSparseError(f"{target}: source and target lie in each other")
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
        report: Report | None = None,
        form: str | None = None,
    ) -> None:
        self._source, self._dst, self._overwrite, self._report = source, os.fspath(dst), overwrite, report
        self._form = form
        self._shards = {shard.name: shard for shard in shards}
        self._open = ExitStack()
        self._folder: Any = None
        self._current: str | None = None
        self._writer: Any = None
        self._flusher = ThreadPoolExecutor(1, "fastsparse-flush")
        self._flushing: Future[None] | None = None
        self._record = Record()
        self.resumed: dict[str, Record] = {}

    def __enter__(self) -> "Target":
        if self._source.folder is not None:
            self._folder = native().CheckpointFolder(self._dst, self._overwrite)
            try:
                self._resume_shards(str(self._folder.partial))
                self._write_side_files(str(self._folder.partial))
            except BaseException:
                self._folder.abort()
                raise
        return self

    def fill(
        self, pool: Executor, work: Mapping[str, Task[TensorResult]], largest: int
    ) -> Generator[tuple[str, float | None], None, None]:
        """Does the work on each tensor, shard by shard, and writes it; yields the names and the kept energies."""
        where = {name: shard for shard in self._shards for name in self._shards[shard].tensors}
        tasks = (task for name, task in work.items() if where[name] not in self.resumed)
        with closing(map_bounded(pool, tasks, largest)) as results:
            for name in work:
                resumed = self.resumed.get(where[name])
                if resumed is not None:
                    yield name, resumed.kept_energy[name]
                    continue
                done = next(results)
                self._write(where[name], name, done)
                energy = done.kept_energy
                del done
                self._source.release(name)
                yield name, energy

    def _write(self, shard: str, name: str, done: TensorResult) -> None:
        self._move_to(shard)
        for key, part in done.parts.items():
            for start in range(0, len(part), _BLOCK):
                _sigint.deliver()
                self._writer.write(key, part[start : start + _BLOCK])
        # Else the system gathers gigabytes, and the end of the shard waits for the disk while nothing computes.
        if self._flushing is None or self._flushing.done():
            self._wait_for_flush()
            self._flushing = self._flusher.submit(self._writer.flush)
        if self._folder is not None:
            self._record.add(name, done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._open.__exit__(kind, error, trace)
                return
            if self._current is None and not self.resumed:
                self._move_to(next(iter(self._shards)))
            try:
                self._close()
            except BaseException:
                self._open.__exit__(*sys.exc_info())
                raise
            if self._folder is not None:
                for shard in self._shards:
                    Path(self._folder.partial, record_name(shard)).unlink(missing_ok=True)
                self._folder.finish()
        finally:
            self._flusher.shutdown()
            if self._folder is not None:
                self._folder.abort()

    def _wait_for_flush(self) -> None:
        """Lets the flush that is under way come to its end, or to its error."""
        if self._flushing is not None:
            result_of(self._flushing)
            self._flushing = None

    def _move_to(self, shard: str) -> None:
        """Finishes the shard at hand and begins another."""
        if shard == self._current:
            return
        self._close()
        self._current, self._record = shard, Record()
        wanted = self._shards[shard]
        path = self._dst if self._folder is None else str(self._folder.partial / shard)
        self._writer = self._open.enter_context(writing(path, wanted.entries, wanted.metadata, self._overwrite))

    def _close(self) -> None:
        """Finishes the shard at hand, if there is one. Most of the waiting is done where an interrupt comes through."""
        self._wait_for_flush()
        if self._current is not None:
            self._flushing = self._flusher.submit(self._writer.flush)
            self._wait_for_flush()
        self._open.close()
        if self._folder is not None and self._current is not None:
            self._record.write(str(self._folder.partial), self._shards[self._current])

    def _resume_shards(self, partial: str) -> None:
        """Keeps the shards that a killed run finished, and nothing else that it left."""
        found = {name: resume(self._source, partial, shard) for name, shard in self._shards.items()}
        self.resumed = {name: record for name, record in found.items() if record is not None}
        self._folder.retain({*self.resumed, *map(record_name, self.resumed)})

    def _write_side_files(self, partial: str) -> None:
        """Writes everything that is no shard: all of it is known before the data."""
        folder = self._source.folder
        assert folder is not None
        folder.copy_side_files(partial, {*self._shards, *map(record_name, self._shards)})
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


@contextmanager
def writing(path: StrPath, entries: Iterable[Entry], metadata: Mapping[str, str], overwrite: bool) -> Iterator[Any]:
    """A writer that is finished on success, and removes what it wrote otherwise."""
    layout = [(entry.key, entry.dtype, entry.shape) for entry in entries]
    writer = native().CheckpointWriter(os.fspath(path), layout, dict(metadata), overwrite)
    try:
        yield writer
        writer.finish()
    finally:
        writer.abort()
