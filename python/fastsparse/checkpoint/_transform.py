"""The driver of all that makes one checkpoint from another: tensors are worked on ahead and written in order."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace

from fastsparse.checkpoint._executor import Task, map_bounded
from fastsparse.checkpoint._format import Entry
from fastsparse.checkpoint._job import Job, shards_of
from fastsparse.checkpoint._progress import Ticker
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._report import Report, TensorReport
from fastsparse.checkpoint._work import TensorResult
from fastsparse.checkpoint._writer import Target

__all__ = ["transform"]


def transform(
    source: Reader,
    target: StrPath,
    jobs: Sequence[Job],
    worker: Callable[[Reader, Job], TensorResult],
    *,
    pool: Executor,
    ticker: Ticker,
    overwrite: bool,
    packed: bool = True,
    form: str | None = None,
    rows: Sequence[TensorReport] | None = None,
    scratch: int = 0,
) -> Report:
    """Does every job and writes what comes of it.

    A tensor is worked on while the one before it is written, so that memory holds two of them. The target appears when
    all is written and flushed; a failure leaves nothing there.

    Parameters
    ----------
    source : Reader
        What is read; its files are those of the target.
    target : path-like
        The file or folder to write.
    jobs : sequence of Job
        One for each tensor, in the order of the source.
    worker : callable
        A pure function of the source and a job. Where a tensor is taken as it is, it is called in this thread.
    pool : concurrent.futures.Executor
        From `workers`.
    ticker : Ticker
        Told the stored size of each tensor that is done.
    overwrite : bool
        Whether an existing target is replaced.
    packed : bool
        Whether the target is one with packed tensors, whose files have records.
    form : str, optional
        The name that compressed-tensors gives the layout, for a `config.json` that it reads; None for one of ours.
    rows : sequence of TensorReport, optional
        What the report says, where that is not what the jobs say.
    scratch : int
        How many dense tensors a worker needs at once beside what it reads and returns.

    Returns
    -------
    Report
        With the kept energies; `seconds` is the time of this call.
    """
    started = time.perf_counter()
    rows = [job.report() for job in jobs] if rows is None else rows
    report = Report(source.path, os.fspath(target), tuple(rows), 0.0)
    shards = shards_of(source, jobs, packed=packed)
    largest = max((job.entry.nbytes for job in jobs), default=0)
    done = []
    with Target(source, target, shards, overwrite, report if packed else None, form) as writing:
        tasks = _tasks(source, (job for job in jobs if job.shard not in writing.resumed), worker, scratch)
        with closing(map_bounded(pool, tasks, largest)) as results:
            for job, row in zip(jobs, rows, strict=True):
                if job.shard in writing.resumed:
                    energy = writing.resumed[job.shard].kept_energy[job.name]
                else:
                    result = next(results)
                    writing.write(job.shard, job.name, result)
                    energy = result.kept_energy
                    del result
                    source.release(job.name)
                done.append(replace(row, kept_energy=energy))
                ticker.tick(job.stored, job.name)
    seconds = time.perf_counter() - started
    return replace(report, tensors=tuple(done), seconds=seconds, resumed=tuple(writing.resumed))


def _tasks(
    source: Reader, jobs: Iterator[Job], worker: Callable[[Reader, Job], TensorResult], scratch: int
) -> Iterator[Task[TensorResult]]:
    for job in jobs:
        size = job.size
        as_it_is = job.packed is None and job.pruned is None and isinstance(source.tensors[job.name], Entry)
        peak = size if as_it_is else job.stored + size + scratch * job.entry.nbytes
        yield Task(worker, (source, job), peak=peak, held=size, here=as_it_is)
