"""Planning: what becomes of each tensor, and the work on one of them."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._executor import Task, map_bounded, workers
from fastsparse.checkpoint._format import Entry, Packed, density, needs_stub, prefix_for
from fastsparse.checkpoint._global_sparsity import passes, spread
from fastsparse.checkpoint._reader import Reader, StrPath, native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import FILE, Report, TensorReport
from fastsparse.checkpoint._resume import TensorResult
from fastsparse.checkpoint._selection import quantisation_method
from fastsparse.masks import Bitmask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Nonzero, Pattern, TopK, Unstructured

__all__ = [
    "Job",
    "Plan",
    "Progress",
    "Ticker",
    "choose",
    "flat_bytes",
    "kept_energy",
    "make_plan",
    "mask_of",
    "pack",
    "parts_of",
    "plan",
    "task",
]

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the tensor at hand."""


@dataclass(frozen=True)
class Job:
    """What becomes of one tensor. Plain data: it pickles, and with the source it says all that there is to do.

    `shard` is the file of a model folder that the tensor is in, empty for a single file. `packed` is None for tensors
    that stay dense, and `reason` says why; `pruned` is what makes zeros in such a tensor all the same.
    """

    name: str
    entry: Entry
    shard: str = ""
    packed: Packed | None = None
    kept: int = 0
    reason: str | None = None
    pruned: Pattern | None = None

    @property
    def pattern(self) -> Pattern | None:
        """What makes the zeros; None where none are made."""
        return self.pruned if self.packed is None else self.packed.pattern

    @property
    def density(self) -> float:
        """Share of elements that are kept."""
        return density(self.kept, self.entry.shape)

    @property
    def entries(self) -> list[Entry]:
        """The keys that the tensor has in the target."""
        return [self.entry] if self.packed is None else list(self.packed.entries(self.kept).values())

    def report(self, kept_energy: float | None = None) -> TensorReport:
        """The row of the report."""
        return TensorReport(
            self.name,
            self.entry.shape,
            self.entry.dtype,
            None if self.pattern is None else str(self.pattern),
            None if self.pattern is None else 1 - self.density,
            self.entry.nbytes,
            sum(entry.nbytes for entry in self.entries),
            kept_energy,
            self.reason,
        )


@dataclass(frozen=True)
class Plan:
    """What `compress` will do: every tensor with its exact size, known before anything is written.

    `copied` are the rows of files of weights that are copied as they are.
    """

    source: str
    jobs: tuple[Job, ...]
    seconds: float
    copied: tuple[TensorReport, ...] = ()

    @property
    def report(self) -> Report:
        """What the report of the run will say, without the kept energies."""
        return Report(self.source, None, (*(job.report() for job in self.jobs), *self.copied), self.seconds)


class Ticker:
    """Counts bytes for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def tick(self, size: int, name: str) -> None:
        """`size` more bytes are done, those of this tensor."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total, name)


def plan(
    src: StrPath,
    recipe: Recipe | Pattern | str,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    trust_shards: bool = False,
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
    with workers(executor) as pool:
        return make_plan(chosen, pool, Ticker(progress, chosen.bytes_to_plan))


@dataclass(frozen=True)
class Choice:
    """The source, and for each tensor its pattern or the reason for having none.

    `scope` names the tensors that global pruning spreads its zeros over, in the order in which ties are kept. `stubs`
    says that every packed tensor gets one, so that readers that do not know the layout stop at it.
    """

    source: Reader
    recipe: Recipe
    patterns: dict[str, Pattern | str]
    scope: Mapping[str, None]
    stubs: bool

    @property
    def bytes_to_plan(self) -> int:
        """How much of the source planning reads."""
        entries = self.source.entries
        alone = [name for name, chosen in self.patterns.items() if isinstance(chosen, Pattern)]
        pruned = sum(entries[name].nbytes for name in alone if name not in self.scope)
        counted = [entries[name] for name in self.scope]
        return pruned + passes(entry.dtype for entry in counted) * sum(entry.nbytes for entry in counted)


def choose(src: StrPath, recipe: Recipe | Pattern | str, *, trust_shards: bool = False, stubs: bool = True) -> Choice:
    """Opens the source and asks the recipe about each tensor; `stubs` is for folders."""
    wanted = Recipe.of(recipe)
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


def make_plan(chosen: Choice, pool: Executor, ticker: Ticker) -> Plan:
    """The plan for these choices, computed on the workers of the pool."""
    started = time.perf_counter()
    source = chosen.source
    shares, counts = _spread(chosen, pool, ticker)
    patterns = {**chosen.patterns, **shares}
    alone = {name: found for name, found in patterns.items() if isinstance(found, Pattern) and name not in shares}
    largest = max((source.entries[name].nbytes for name in alone), default=0)
    tasks = (Task(_count, (source, name, found), peak=source.entries[name].nbytes) for name, found in alone.items())
    with closing(map_bounded(pool, tasks, largest)) as results:
        for name, count in zip(alone, results, strict=True):
            counts[name] = count
            ticker.tick(source.entries[name].nbytes, name)
    taken = set(source.entries)
    jobs = []
    for name, pattern in patterns.items():
        job = _job(source, name, pattern, taken, counts.get(name), name in shares, chosen.stubs)
        if job.packed is not None:
            taken.update(job.packed.keys)
        jobs.append(job)
    return Plan(source.path, tuple(jobs), time.perf_counter() - started, _copied_rows(source))


def _copied_rows(source: Reader) -> tuple[TensorReport, ...]:
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
    with source.error_context():
        spreading = spread(entries, recipe.default.sparsity, recipe.min_sparsity, recipe.max_sparsity, each)
    shares: dict[str, Pattern] = {}
    counts = {}
    for name, (goes, zeros) in spreading.items():
        size = math.prod(entries[name].shape)
        shares[name] = Unstructured(goes / max(size, 1))
        counts[name] = (size - max(goes, zeros), goes >= zeros)
    return shares, counts


def _measure(source: Reader, name: str, function: str, arguments: tuple[int, ...]) -> Any:
    """What a function of the native module finds in one tensor."""
    with source.error_context(name):
        found = getattr(native(), function)(source.array(source.entries[name]), *arguments)
    source.release(name)
    return found


def _job(
    source: Reader,
    name: str,
    chosen: Pattern | str,
    taken: set[str],
    count: tuple[int, bool] | None,
    competes: bool,
    stubs: bool,
) -> Job:
    """What becomes of a tensor. One that competes with others loses its share even where it stays dense."""
    entry = source.entries[name]
    shard = source.shard_of(entry)
    if not isinstance(chosen, Pattern) or count is None:
        return Job(name, entry, shard, reason=str(chosen))
    kept, exact = count
    pruned = chosen if competes else None
    prefix = prefix_for(name, taken)
    if prefix is None:
        return Job(name, entry, shard, None, kept, "other tensors have the names of its parts", pruned)
    stub = stubs or needs_stub(name, prefix)
    job = Job(name, entry, shard, Packed(name, prefix, entry.dtype, entry.shape, chosen, exact, stub=stub), kept)
    size = sum(part.nbytes for part in job.entries)
    if size > entry.nbytes:
        return Job(name, entry, shard, None, kept, f"packed it would be larger, {size} bytes", pruned)
    return job


def _count(source: Reader, name: str, chosen: Pattern) -> tuple[int, bool]:
    """How many elements of a tensor a pattern keeps that are not zero, and whether those are all that it keeps."""
    with source.error_context(name):
        count = _count_kept(source.array(source.entries[name]), chosen)
    source.release(name)
    return count


def _count_kept(w: NDArray[Any], chosen: Pattern) -> tuple[int, bool]:
    """How many elements a pattern keeps that are not zero, and whether those are all that it keeps."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w).nnz, True
    nonzero = ops.select(w, Nonzero())
    fixed = _fixed_count(chosen, w.shape)
    if fixed is not None and nonzero.count == w.size:
        return fixed, True
    if fixed is not None and isinstance(chosen, Unstructured) and chosen.per == "tensor":
        return min(fixed, nonzero.count), fixed <= nonzero.count
    mask = ops.select(w, chosen)
    kept = (mask & nonzero).count
    return kept, kept == mask.count


def _fixed_count(chosen: Pattern, shape: tuple[int, ...]) -> int | None:
    """How many elements a pattern keeps of this shape, where the shape alone decides."""
    size = math.prod(shape)
    if isinstance(chosen, Unstructured):
        rows = shape[0] if chosen.per == "row" and len(shape) > 1 else 1
        cols = size // rows if rows else 0
        return rows * (cols - round(chosen.sparsity * cols))
    if isinstance(chosen, NM | TopK) and chosen.tail == "proportional" and -len(shape) <= chosen.axis < len(shape):
        zeros = chosen.zeros if isinstance(chosen, NM) else chosen.of - chosen.keep
        length = shape[chosen.axis]
        groups, rest = divmod(length, chosen.of)
        lines = size // length if length else 0
        return lines * (length - groups * zeros - round(zeros * rest / chosen.of))
    return None


def task(source: Reader, job: Job) -> Task[TensorResult]:
    """A job as something to do."""
    if job.pruned is not None:
        return Task(_with_zeros, (source, job), peak=2 * job.entry.nbytes, held=job.entry.nbytes)
    if job.packed is None:
        return Task(_as_it_is, (source, job), peak=job.entry.nbytes, held=job.entry.nbytes, here=True)
    packed = sum(part.nbytes for part in job.entries)
    return Task(run, (source, job), peak=job.entry.nbytes + packed, held=packed)


def _as_it_is(source: Reader, job: Job) -> TensorResult:
    return TensorResult({job.entry.key: source.raw(job.entry)}, source.digest(job.name))


def _with_zeros(source: Reader, job: Job) -> TensorResult:
    assert job.pruned is not None
    w = source.array(job.entry)
    with source.error_context(job.name):
        dense = ops.prune(w, job.pruned)
    done = TensorResult({job.entry.key: flat_bytes(dense)}, source.digest(job.name), kept_energy(dense, w))
    source.release(job.name)
    return done


def run(source: Reader, job: Job) -> TensorResult:
    """Packs the tensor of a job."""
    assert job.packed is not None
    assert job.packed.pattern is not None
    w = source.array(job.entry)
    with source.error_context(job.name):
        array = pack(w, job.packed.pattern, job.packed.exact)
    if array.nnz != job.kept:
        raise FastSparseError(f"{source.path}: tensor {job.name!r} changed while it was read")
    done = TensorResult(parts_of(job.packed, array), source.digest(job.name), kept_energy(array.values, w))
    source.release(job.name)
    return done


def pack(w: NDArray[Any], chosen: Pattern, exact: bool) -> BitmaskArray:
    """What the pattern keeps, without zeros; `exact` says that it keeps none."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w)
    if exact:
        return ops.compress(w, chosen)
    return ops.pack(w, mask_of(w, chosen, exact))


def mask_of(w: NDArray[Any], chosen: Pattern, exact: bool) -> Bitmask:
    """The mask of what `pack` gives."""
    if isinstance(chosen, Nonzero):
        return ops.pack(w).mask  # `select` refuses NaN, which is not zero
    mask = ops.select(w, chosen)
    return mask if exact else mask & ops.select(w, Nonzero())


def parts_of(packed: Packed, array: BitmaskArray) -> dict[str, NDArray[np.uint8]]:
    """The bytes of a packed tensor's keys."""
    parts = {
        "shape": np.array(packed.shape, np.int64),
        "compressed": array.values,
        "bitmask": array.bitmask,
        "row_offsets": array.row_offsets[:-1],
        "stub": array.values[:0],
    }
    return {entry.key: flat_bytes(parts[part]) for part, entry in packed.entries(array.nnz).items()}


def flat_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def kept_energy(kept: NDArray[Any], w: NDArray[Any]) -> float | None:
    """Sum of squares of the kept elements over that of all."""
    sum_of_squares = native().sum_of_squares
    total = sum_of_squares(w)
    share = sum_of_squares(kept) / total if total else 1.0
    return share if math.isfinite(share) else None
