"""Planning: what becomes of each tensor."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._executor import Task, map_bounded, workers
from fastsparse.checkpoint._format import QUANTIZABLE, Packed, needs_stub, prefix_for
from fastsparse.checkpoint._global_sparsity import check_bounds, passes, spread
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._progress import Phases, Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath, native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import FILE, Report, TensorReport
from fastsparse.checkpoint._selection import quantisation_method
from fastsparse.checkpoint._work import count_kept, prune_or_pack
from fastsparse.patterns import Pattern, Unstructured

__all__ = ["Choice", "Plan", "choose", "copied_rows", "plan"]


@dataclass(frozen=True, repr=False)
class Plan:
    """What `compress` will do: every tensor with its exact size, known before anything is written.

    Printed it is the table of its `report`.

    `copied` are the rows of files of weights that are copied as they are, `kept_energy` what was measured of it.
    """

    source: str
    jobs: tuple[Job, ...]
    seconds: float
    copied: tuple[TensorReport, ...] = ()
    kept_energy: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        """What the report of the run will say, with the kept energies that were measured."""
        rows = (job.report(self.kept_energy.get(job.name)) for job in self.jobs)
        return Report(self.source, None, (*rows, *self.copied), self.seconds)

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return str(self)


def plan(
    src: StrPath,
    recipe: Recipe | Pattern | str,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    trust_shards: bool = False,
    kept_energy: bool = False,
) -> Plan:
    """What `compress` would do.

    Reads the tensors that are to be pruned once, because a checkpoint stores no zeros: what a pattern keeps of a tensor
    that has zeros already is known only from its data. Global pruning reads those that compete two to four times.

    Parameters
    ----------
    src : path-like
        A ``.safetensors`` file or a model folder, without packed tensors.
    recipe : Recipe, Pattern or str
        A pattern or its short form prunes the usual tensors, see `Recipe`.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.
    executor : concurrent.futures.Executor, optional
        Its workers read and count, one thread each.
    trust_shards : bool
        As for `compress`.
    kept_energy : bool
        Whether the report says how much of the energy of each tensor is kept, which takes as long as packing them.

    Raises
    ------
    FastSparseError
        If a tensor holds NaN, a pattern does not fit its shape, the source holds packed tensors, or the bounds of a
        global recipe cannot be met.
    FormatError
        If the source is not valid.
    OSError
        If it cannot be read.
    """
    chosen = choose(src, recipe, trust_shards=trust_shards)
    measured = [name for name, found in chosen.patterns.items() if kept_energy and isinstance(found, Pattern)]
    measuring = "measuring", sum(chosen.source.entries[name].nbytes for name in measured)
    with workers(executor) as pool:
        ticker = Ticker(progress, [*chosen.phases, measuring])
        planned = chosen.plan(pool, ticker)
        if not measured:
            return planned
        started = time.perf_counter()
        energies = _measure_energies(chosen.source, planned.jobs, measured, pool, ticker)
        return replace(planned, kept_energy=energies, seconds=planned.seconds + time.perf_counter() - started)


def _measure_energies(
    source: Reader, jobs: Iterable[Job], names: Collection[str], pool: Executor, ticker: Ticker
) -> dict[str, float | None]:
    """The share of its energy that each tensor of these names keeps, by doing what is planned and writing nothing."""
    measured = set(names)
    wanted = [job for job in jobs if job.name in measured]
    largest = max((job.stored for job in wanted), default=0)
    energies = {}
    tasks = (Task(_energy, (source, job), job.stored + job.size) for job in wanted)
    with closing(map_bounded(pool, tasks, largest)) as results:
        for job, energy in zip(wanted, results, strict=True):
            energies[job.name] = energy
            ticker.tick(job.stored, job.name)
    return energies


def _energy(source: Reader, job: Job) -> float | None:
    return prune_or_pack(source, job).kept_energy


@dataclass(frozen=True)
class Choice:
    """The source, and for each tensor its pattern or the reason for having none.

    `scope` names the tensors that global pruning spreads its zeros over, in the order in which ties are kept. `stubs`
    says that every packed tensor gets one, so that readers that do not know the layout stop at it, `calibrated` that
    what is pruned has new values.
    """

    source: Reader
    recipe: Recipe
    patterns: dict[str, Pattern | str]
    scope: Mapping[str, None]
    stubs: bool
    calibrated: bool = False

    @property
    def phases(self) -> Phases:
        """What planning reads of the source: what competes several times, what does not once."""
        entries = self.source.entries
        competing = [entries[name] for name in self.scope]
        size = sum(entry.nbytes for entry in competing)
        count = passes(entry.dtype for entry in competing) if competing else 0
        alone = [name for name, chosen in self.patterns.items() if isinstance(chosen, Pattern)]
        rest = sum(entries[name].nbytes for name in alone if name not in self.scope)
        return [*((f"counting {number}/{count}", size) for number in range(1, count + 1)), ("counting", rest)]

    def plan(self, pool: Executor, ticker: Ticker) -> Plan:
        """The plan for these choices, computed on the workers of the pool."""
        started = time.perf_counter()
        source = self.source
        shares, counts = _spread(self, pool, ticker)
        patterns = {**self.patterns, **shares}
        alone = {name: found for name, found in patterns.items() if isinstance(found, Pattern) and name not in shares}
        largest = max((source.entries[name].nbytes for name in alone), default=0)
        tasks = (Task(_count, (source, name, found), source.entries[name].nbytes) for name, found in alone.items())
        with closing(map_bounded(pool, tasks, largest)) as results:
            for name, count in zip(alone, results, strict=True):
                counts[name] = count
                ticker.tick(source.entries[name].nbytes, name)
        taken = set(source.entries)
        jobs = []
        for name, pattern in patterns.items():
            job = self.job(name, pattern, taken, counts.get(name), name in shares)
            if job.packed is not None:
                taken.update(job.packed.keys)
            jobs.append(job)
        return Plan(source.path, tuple(jobs), time.perf_counter() - started, copied_rows(source))

    def job(
        self, name: str, chosen: Pattern | str, taken: set[str], count: tuple[int, bool] | None, competes: bool
    ) -> Job:
        """What becomes of a tensor. One that competes with others loses its share even where it stays dense."""
        entry = self.source.entries[name]
        shard = self.source.shard_of(entry)
        if not isinstance(chosen, Pattern) or count is None:
            return Job(name, entry, shard, entry.nbytes, reason=str(chosen))
        kept, exact = count
        pruned = chosen if competes else None
        prefix = prefix_for(name, taken)
        if prefix is None:
            why = "other tensors have the names of its parts"
            return Job(name, entry, shard, entry.nbytes, None, kept, why, pruned, self.calibrated)
        bits = self.recipe.bits if entry.dtype in QUANTIZABLE else None
        stub = self.stubs or bits is not None or needs_stub(name, prefix)
        new = self.calibrated
        packed = Packed(name, prefix, entry.dtype, entry.shape, chosen, exact, stub=stub, bits=bits, calibrated=new)
        job = Job(name, entry, shard, entry.nbytes, packed, kept, calibrated=new)
        if job.size > entry.nbytes:
            why = f"packed it would be larger, {job.size} bytes"
            return Job(name, entry, shard, entry.nbytes, None, kept, why, pruned, self.calibrated)
        return job


def choose(src: StrPath, recipe: Recipe | Pattern | str, *, trust_shards: bool = False, stubs: bool = True) -> Choice:
    """Opens the source and asks the recipe about each tensor; `stubs` is for folders."""
    wanted = Recipe.of(recipe)
    needs = wanted.calibrated()
    if needs is not None:
        raise FastSparseError(f"recipe: {needs} needs calibration data; use fastsparse prune or torch.prune_model")
    source = Reader(src, trust_shards=trust_shards)
    source.check_formats()
    tensors = {}
    for name, found in source.tensors.items():
        if isinstance(found, Packed):
            raise FastSparseError(f"{source.path}: tensor {name!r} is packed already; decompress the checkpoint first")
        tensors[name] = found.dtype, found.shape
    config = source.folder.read_config() if source.folder is not None else None
    with source.error_context():
        choices = wanted.choose_all(tensors, quantisation_method(config))
    scope = [name for name, chosen in choices.items() if isinstance(chosen, Pattern) and wanted.competes(name)]
    stubs = stubs and source.folder is not None
    return Choice(source, wanted, choices, dict.fromkeys(sorted(scope)), stubs)


def copied_rows(source: Reader) -> tuple[TensorReport, ...]:
    """The rows of files of weights that are copied as they are: nobody is to think that they are pruned."""
    rows = []
    for name, size in source.folder.other_weights() if source.folder is not None else ():
        folder = os.path.dirname(name)
        if not name.endswith(".safetensors"):
            why = "no safetensors file"
        elif folder:
            why = f"a model of its own; compress the folder {folder!r} by itself"
        else:
            why = "no file of this model; compress it by itself"
        row = TensorReport(name, (), FILE, None, None, size, size, reason=f"copied, not pruned: {why}")
        rows.append(row)
    return tuple(rows)


_Counts = dict[str, tuple[int, bool]]
"""By name how many elements a pattern keeps that are not zero, and whether those are all that it keeps."""


def _spread(chosen: Choice, pool: Executor, ticker: Ticker) -> tuple[dict[str, Pattern], _Counts]:
    """What each tensor in the scope of global pruning is pruned by, its own share, exact; and what that keeps."""
    if not chosen.scope:
        return {}, {}
    source, recipe = chosen.source, chosen.recipe
    entries = {name: source.entries[name] for name in chosen.scope}
    largest = max(entry.nbytes for entry in entries.values())

    def each(function: str, *arguments: int) -> Iterator[tuple[str, Any]]:
        tasks = (Task(_measure, (source, name, function, arguments), entry.nbytes) for name, entry in entries.items())
        with closing(map_bounded(pool, tasks, largest)) as results:
            for (name, entry), result in zip(entries.items(), results, strict=True):
                yield name, result
                ticker.tick(entry.nbytes, name)

    assert isinstance(recipe.default, Unstructured), "the recipe has checked that"
    bounds = recipe.default.sparsity, recipe.min_sparsity, recipe.max_sparsity
    with source.error_context():
        check_bounds(entries, *bounds)
    spreading = spread(entries, *bounds, each)
    shares: dict[str, Pattern] = {}
    counts = {}
    for name, (pruned, zeros) in spreading.items():
        size = math.prod(entries[name].shape)
        shares[name] = Unstructured(pruned / max(size, 1))
        counts[name] = (size - max(pruned, zeros), pruned >= zeros)
    return shares, counts


def _measure(source: Reader, name: str, function: str, arguments: tuple[int, ...]) -> Any:
    """What a function of the native module finds in one tensor."""
    with source.error_context(name):
        found = getattr(native(), function)(source.array(source.entries[name]), *arguments)
    source.release(name)
    return found


def _count(source: Reader, name: str, chosen: Pattern) -> tuple[int, bool]:
    """How many elements of a tensor a pattern keeps that are not zero, and whether those are all that it keeps."""
    with source.error_context(name):
        count = count_kept(source.array(source.entries[name]), chosen)
    source.release(name)
    return count
