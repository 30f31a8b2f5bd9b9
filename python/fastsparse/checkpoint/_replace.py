"""A folder like another one, in which some tensors have new, packed values, which calibration made."""

import time
from collections.abc import Mapping
from dataclasses import replace

from fastsparse.checkpoint._executor import workers
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._plan import Choice, copied_rows
from fastsparse.checkpoint._progress import Ticker
from fastsparse.checkpoint._reader import Checkpoint, Reader, StrPath, native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._transform import transform
from fastsparse.checkpoint._work import TensorResult, flat_bytes, parts_of
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero, Pattern

__all__ = ["Replacing", "replace_tensors"]


class Replacing(Reader):
    """A model folder, and the files that have new values of some of its tensors, under names of their own."""

    def __init__(self, path: StrPath, new: Mapping[str, tuple[Checkpoint, str]]) -> None:
        super().__init__(path)
        self.new = new

    def new_value(self, name: str) -> BitmaskArray | None:
        """The new value of a tensor, if it has one."""
        if name not in self.new:
            return None
        file, key = self.new[name]
        found = file[key]
        assert isinstance(found, BitmaskArray), "new values are packed"
        return found

    def digest(self, name: str) -> str:
        """The digest of what a tensor of the target is made from: its new value, where it has one."""
        found = self.new_value(name)
        if found is None:
            return super().digest(name)
        parts = (found.values, found.bitmask, found.row_offsets)
        return "".join(native().digest(flat_bytes(part)) for part in parts)


def replace_tensors(
    src: StrPath,
    dst: StrPath,
    new: Mapping[str, tuple[Checkpoint, str]],
    reasons: Mapping[str, str],
    *,
    bits: int | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a folder as `compress` does, with new values in the place of some tensors, recorded as calibrated.

    Parameters
    ----------
    src, dst : path-like
        A model folder, and the one to write.
    new : mapping
        From tensors of `src` to files of packed tensors and their names in them.
    reasons : mapping
        Why each of the others stays dense.
    bits : {None, 8}
        As in a `Recipe`.
    overwrite : bool
        As for `compress`.

    Raises
    ------
    FastSparseError
        As `compress`.
    """
    started = time.perf_counter()
    source = Replacing(src, new)
    choice = Choice(source, Recipe(bits=bits), {}, {}, stubs=True, calibrated=True)
    jobs: list[Job] = []
    taken = set(source.entries)
    for name in source.tensors:
        pattern, count = _chosen(source, name, reasons)
        job = choice.job(name, pattern, taken, count, True)
        taken.update(job.packed.keys if job.packed is not None else ())
        jobs.append(job)
    with workers() as pool:
        report = transform(source, dst, jobs, _result, pool=pool, ticker=Ticker(None, []), overwrite=overwrite)
    return replace(report, tensors=(*report.tensors, *copied_rows(source)), seconds=time.perf_counter() - started)


def _chosen(source: Replacing, name: str, reasons: Mapping[str, str]) -> tuple[Pattern | str, tuple[int, bool] | None]:
    found = source.new_value(name)
    if found is None:
        return reasons.get(name, "not in the model"), None
    return found.pattern or Nonzero(), (found.nnz, True)


def _result(source: Reader, job: Job) -> TensorResult:
    assert isinstance(source, Replacing)
    array = source.new_value(job.name)
    if array is None:
        return TensorResult({job.entry.key: source.raw(job.entry)}, source.digest(job.name))
    packed = job.packed
    if packed is None:
        return TensorResult({job.entry.key: flat_bytes(array.to_dense())}, source.digest(job.name))
    stored = array if packed.bits is None else array.quantize(packed.bits)
    return TensorResult(parts_of(packed, stored), source.digest(job.name))
