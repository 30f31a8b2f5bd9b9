"""What becomes of a tensor, and of a file: plain data, known before anything is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fastsparse.checkpoint._format import METADATA_KEY, Entry, Packed, Pruned, density, write_record
from fastsparse.checkpoint._reader import Reader
from fastsparse.checkpoint._report import TensorReport
from fastsparse.patterns import Pattern

__all__ = ["Job", "Shard", "shards_of"]


@dataclass(frozen=True)
class Job:
    """What becomes of one tensor. Plain data: it pickles, and with the source it says all that there is to do.

    `shard` is the file of a model folder that the tensor is in, empty for a single file, and `stored` its size there.
    `packed` is None for tensors that are dense in the target, and `reason` says why; `pruned` is what makes zeros in
    such a tensor all the same. `calibrated` is as in `Packed`, for either.
    """

    name: str
    entry: Entry
    shard: str
    stored: int
    packed: Packed | None = None
    kept: int = 0
    reason: str | None = None
    pruned: Pattern | None = None
    calibrated: bool = False

    @property
    def pattern(self) -> Pattern | None:
        """What makes the zeros; None where none are made."""
        return self.pruned if self.packed is None else self.packed.pattern

    @property
    def density(self) -> float:
        """Share of elements that are kept."""
        return density(self.kept, self.entry.shape)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The keys that the tensor has in the target."""
        return (self.entry,) if self.packed is None else tuple(self.packed.entries(self.kept).values())

    @property
    def size(self) -> int:
        """Bytes in the target."""
        return sum(entry.nbytes for entry in self.entries)

    def report(self, kept_energy: float | None = None) -> TensorReport:
        """The row of the report."""
        return TensorReport(
            self.name,
            self.entry.shape,
            self.entry.dtype,
            None if self.pattern is None else str(self.pattern),
            None if self.pattern is None else 1 - self.density,
            self.stored,
            self.size,
            kept_energy,
            None if self.packed is None else self.packed.bits,
            self.calibrated,
            reason=self.reason,
        )


@dataclass(frozen=True)
class Shard:
    """What a file of the target will hold.

    Its name in a folder, empty for a single file; the tensors that it is made from; its keys and its metadata.
    """

    name: str
    tensors: Sequence[str]
    entries: Sequence[Entry]
    metadata: Mapping[str, str]


def shards_of(source: Reader, jobs: Iterable[Job], *, packed: bool) -> list[Shard]:
    """The files that the jobs make, of those of the source; with a record where tensors may be `packed`.

    A file without tensors is one of the target where no index says which there are.
    """
    of_shard: dict[str, list[Job]] = {shard: [] for shard in source.shards}
    for job in jobs:
        of_shard[job.shard].append(job)
    indexed = source.folder is not None and source.folder.index is not None
    return [_shard(source, shard, own, packed) for shard, own in of_shard.items() if own or not indexed]


def _shard(source: Reader, shard: str, jobs: list[Job], packed: bool) -> Shard:
    metadata = dict(source.metadata[shard])
    if packed:
        records = [(job.packed, job.density) for job in jobs if job.packed is not None]
        made = [(job, job.pruned) for job in jobs if job.pruned is not None]
        pruned = {job.name: Pruned(pattern, job.density, job.calibrated) for job, pattern in made}
        metadata[METADATA_KEY] = write_record(records, pruned)
    return Shard(shard, [job.name for job in jobs], [entry for job in jobs for entry in job.entries], metadata)
