"""What many patterns would keep of each tensor of a checkpoint, and which tensor had better bear how many zeros."""

import math
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse._errors import FastSparseError
from fastsparse._table import Column, line_width, table, wrap
from fastsparse.analysis._budget import Choice, cheapest
from fastsparse.analysis._html import percent
from fastsparse.analysis._sweep import DEFAULT, SweepRow, energies, kept_share
from fastsparse.checkpoint._executor import Task, map_bounded, workers
from fastsparse.checkpoint._format import PACKABLE, Packed
from fastsparse.checkpoint._inspect import with_zeros
from fastsparse.checkpoint._page import ENERGY_IS_NOT_QUALITY, page_of, summary_of
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath, native
from fastsparse.checkpoint._recipe import Recipe, Rule
from fastsparse.checkpoint._report import TensorInfo
from fastsparse.checkpoint._selection import quantisation_method
from fastsparse.packed import byte_count
from fastsparse.patterns import Pattern, Unstructured, pattern

__all__ = ["CheckpointSweep", "TensorSweep", "sweep"]


_QUARTER = 50
"""Lower bits of a float64 that its quarter of an octave does not have."""


class LayerInputs(Protocol):
    """What is known of the inputs of a layer; `fastsparse.calibration.LayerStatistics` is one."""

    @property
    def norms(self) -> NDArray[np.float32]: ...
    @property
    def transposed(self) -> bool: ...


@dataclass(frozen=True)
class TensorSweep(TensorInfo):
    """What patterns would keep of one tensor of a checkpoint.

    Attributes
    ----------
    bytes_before, bytes_stored : int
        Size of the dense data, and as it lies in the checkpoint.
    energy : float or None
        Sum of squares of the elements, times the squares of the norms of their inputs where those are given; None
        where it was not swept.
    rows : tuple of SweepRow
        One a pattern; empty where it was not swept. `packed_bytes` is the size in a checkpoint, which stores no zeros
        and keeps a tensor dense if packed it is larger; at most that where a tensor has zeros already and the pattern
        is one of groups or blocks.
    weighted : bool
        Whether the norms of its inputs were given.
    magnitudes : tuple of (int, int)
        How many elements each quarter of an octave holds, where that was asked for: number q are the magnitudes whose
        float64 has the upper 14 bits q, 0 those of zero.

    See Also
    --------
    TensorInfo : The other attributes.
    """

    bytes_before: int
    bytes_stored: int
    energy: float | None = None
    rows: tuple[SweepRow, ...] = ()
    weighted: bool = False
    magnitudes: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "rows": [row.to_dict() for row in self.rows]}


_COLUMNS = (
    Column("pattern"),
    Column("zeros", right=True),
    Column("energy kept", right=True),
    Column("size", right=True),
    Column("of dense", right=True),
)


@dataclass(frozen=True, repr=False)
class CheckpointSweep:
    """What patterns would keep of the tensors of a checkpoint. `checkpoint.sweep` makes one.

    Printed it is a table of what each pattern would keep of all tensors together.

    Attributes
    ----------
    source : str
        The file or folder.
    patterns : tuple of Pattern
        What was swept.
    tensors : tuple of TensorSweep
        Every tensor, in the order of the source.
    seconds : float
        Wall time.
    """

    source: str
    patterns: tuple[Pattern, ...]
    tensors: tuple[TensorSweep, ...]
    seconds: float

    @property
    def swept(self) -> tuple[TensorSweep, ...]:
        """The tensors that were swept."""
        return tuple(tensor for tensor in self.tensors if tensor.rows)

    @property
    def totals(self) -> tuple[SweepRow, ...]:
        """What each pattern would keep of all swept tensors together; sizes are those of the whole checkpoint."""
        swept = self.swept
        elements = sum(tensor.elements for tensor in swept)
        dense = sum(tensor.bytes_before for tensor in self.tensors)
        others = dense - sum(tensor.bytes_before for tensor in swept)
        rows = []
        for number, one in enumerate(self.patterns):
            own = [tensor.rows[number] for tensor in swept]
            zeros = sum(row.sparsity * tensor.elements for row, tensor in zip(own, swept, strict=True))
            size = others + sum(row.packed_bytes for row in own)
            share = self._kept(dict(zip((tensor.name for tensor in swept), own, strict=True)))
            rows.append(SweepRow(one, zeros / max(elements, 1), share, size, size / dense if dense else math.inf))
        return tuple(rows)

    def _kept(self, rows: Mapping[str, SweepRow]) -> float | None:
        """The share of the energy that is kept over the swept tensors; those without a row keep all."""
        total = kept = 0.0
        for tensor in self.swept:
            row = rows.get(tensor.name)
            share = 1.0 if row is None else row.kept_energy
            if tensor.energy is None or share is None:
                return None
            total += tensor.energy
            kept += tensor.energy * share
        return kept_share(kept, total)

    def recipe(self, sparsity: float, *, loss: str = "share") -> Recipe:
        """The recipe that makes this share of zeros over the swept tensors with the least loss.

        Parameters
        ----------
        sparsity : float
            Share of zeros over all swept tensors, 0 to 1. It is reached exactly with shares of tensors such as ``50%``
            among the patterns, else at least; the share of the last tensor that is needed lies between two patterns,
            unless packed the tensor would then be larger than dense.
        loss : {"share", "energy"}
            What is summed over tensors: the share of its energy that each loses, times its elements, so that no tensor
            counts for more because its weights are large; or the energy itself, as pruning at one threshold does.

        Returns
        -------
        Recipe
            A rule for each tensor that gets zeros. `Recipe.to_toml` writes it.

        Raises
        ------
        FastSparseError
            If an argument is not as described, or the patterns do not make as many zeros.

        Notes
        -----
        Greedy on the lower convex hulls of the tensors' losses: no other choice on them loses less.
        """
        if not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
            raise FastSparseError(f"sparsity: expected a number from 0 to 1, got {sparsity!r}")
        if loss not in ("share", "energy"):
            raise FastSparseError(f"loss: expected share or energy, got {loss!r}")
        swept = self.swept
        elements = sum(tensor.elements for tensor in swept)
        wanted = round(sparsity * elements)
        found = cheapest([_choices(tensor, loss) for tensor in swept], wanted)
        reached = sum(needed for _, needed in found)
        if reached < wanted:
            most = reached / max(elements, 1)
            raise FastSparseError(
                f"sparsity: {sparsity:g} of all cannot be reached, the patterns make {most:.4g} at most"
            )
        rules = []
        for tensor, (choice, needed) in zip(swept, found, strict=True):
            if choice is not None:
                rules.append(Rule(f"^{re.escape(tensor.name)}$", self._pattern(choice, needed, tensor)))
        return Recipe(rules=tuple(rules))

    def _pattern(self, choice: Choice, needed: int, tensor: TensorSweep) -> Pattern:
        """The pattern of a choice, with fewer zeros where fewer are needed and it may."""
        chosen = self.patterns[choice.number]
        if needed == choice.zeros or not isinstance(chosen, Unstructured) or chosen.per != "tensor":
            return chosen
        if _stored(tensor, tensor.elements - needed) >= tensor.bytes_before:
            return chosen
        return replace(chosen, sparsity=needed / tensor.elements)

    def __str__(self) -> str:
        rows = [
            (
                str(row.pattern),
                percent(row.sparsity, 1),
                percent(row.kept_energy, 2),
                byte_count(row.packed_bytes),
                percent(row.ratio, 1),
            )
            for row in self.totals
        ]
        width = line_width(sys.stdout)
        left_out = len(self.tensors) - len(self.swept)
        lines = table(_COLUMNS, rows, [None] * len(rows), width)
        lines.append(f"{len(self.swept)} tensors swept, {left_out} left out, in {self.seconds:.2f} s")
        return "\n".join(lines + wrap(ENERGY_IS_NOT_QUALITY, width))

    def __repr__(self) -> str:
        return str(self)

    def to_html(self) -> str:
        """A page to look at, one file with everything in it.

        Its size is bounded: of thousands of tensors the largest are listed.
        """
        return page_of(self)

    def _repr_html_(self) -> str:
        return summary_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dumps`."""
        return {
            "source": self.source,
            "patterns": [str(one) for one in self.patterns],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "totals": [row.to_dict() for row in self.totals],
            "seconds": self.seconds,
        }


def _stored(tensor: TensorSweep, kept: int) -> int:
    """The size of a tensor that is packed, in a checkpoint."""
    packed = Packed(tensor.name, tensor.name, tensor.dtype, tensor.shape, None, True)
    return sum(entry.nbytes for entry in packed.entries(kept).values())


def _choices(tensor: TensorSweep, loss: str) -> list[Choice]:
    """What a tensor may be pruned by. It would not be where it stays dense because packed it is larger."""
    scale = float(tensor.elements) if loss == "share" else tensor.energy or 0.0
    return [
        Choice(round(row.sparsity * tensor.elements), scale * (1 - (row.kept_energy or 0.0)), number)
        for number, row in enumerate(tensor.rows)
        if row.packed_bytes < tensor.bytes_before
    ]


def sweep(
    path: StrPath,
    patterns: Iterable[str | Pattern] | str | Pattern = DEFAULT,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    min_size: int = 2048,
    statistics: Mapping[str, LayerInputs] | None = None,
    magnitudes: bool = False,
    progress: Progress | None = None,
    trust_shards: bool = False,
) -> CheckpointSweep:
    """What each of many patterns would keep of the tensors of a checkpoint; nothing is written.

    Parameters
    ----------
    path : path-like
        A checkpoint, as `open` takes it; packed tensors are swept as they are, with their zeros.
    patterns : iterable of Pattern or str
        Patterns or their short forms; by default 10 % to 90 %, and 2:4.
    include, exclude, min_size
        Which tensors are swept, as for `Recipe`: those that `compress` would prune.
    statistics : mapping, optional
        From names of layers to the norms of their inputs, as `fastsparse.calibration.load_statistics` gives it. The
        weights of those layers then rank and count by |w|·‖x‖.
    magnitudes : bool
        Whether magnitudes are counted too, for the histograms of `CheckpointSweep.to_html`.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.
    trust_shards : bool
        Whether the shards of a folder are taken as they are where the index says something else of their tensors.

    Returns
    -------
    CheckpointSweep
        Its `recipe` proposes how to spread zeros. A tensor that cannot be ranked or measured, because it holds NaN or
        its energy is infinite, is not swept and says so.

    Raises
    ------
    FastSparseError
        If there is no pattern, one is none, or an expression matches no tensor.
    FormatError
        If the source is not valid.
    OSError
        If it cannot be read.
    """
    started = time.perf_counter()
    given = [patterns] if isinstance(patterns, str | Pattern) else patterns
    chosen = tuple(pattern(one) for one in given)
    if not chosen:
        raise FastSparseError("patterns: expected at least one")
    source = Reader(path, trust_shards=trust_shards)
    recipe = Recipe(default="50%", include=tuple(include), exclude=tuple(exclude), min_size=min_size)
    config = source.folder.read_config() if source.folder is not None else None
    with source.error_context():
        choices = recipe.choose_all(
            {name: (found.dtype, found.shape) for name, found in source.tensors.items()}, quantisation_method(config)
        )
    tasks = []
    for name, choice in choices.items():
        layer = None if statistics is None else statistics.get(name.removesuffix(".weight"))
        own = chosen if isinstance(choice, Pattern) else ()
        arguments = source, name, own, layer, magnitudes, None if own else str(choice)
        tasks.append(Task(_look, arguments, 3 * source.tensors[name].nbytes, 0))
    ticker = Ticker(progress, [("sweeping", sum(found.nbytes for found in source.tensors.values()))])
    rows = []
    largest = max((found.nbytes for found in source.tensors.values()), default=0)
    with workers() as pool, closing(map_bounded(pool, tasks, largest)) as results:
        for found in results:
            rows.append(found)
            ticker.tick(found.bytes_before, found.name)
    return CheckpointSweep(source.path, chosen, tuple(rows), time.perf_counter() - started)


def _look(
    source: Reader,
    name: str,
    patterns: tuple[Pattern, ...],
    layer: LayerInputs | None,
    magnitudes: bool,
    reason: str | None,
) -> TensorSweep:
    """What there is to say of one tensor; a pure function of the source."""
    found = source.tensors[name]
    stored = sum(entry.nbytes for entry in source.keys(name))
    row = TensorSweep(name, found.shape, found.dtype, found.nbytes, stored, reason=reason)
    if found.dtype not in PACKABLE:
        return row
    row = with_zeros(row, source)
    if layer is not None and not layer.norms.any():
        layer = None  # it saw no token
    if patterns:
        w = source.packed(found).to_dense() if isinstance(found, Packed) else source.array(found)
        try:
            row = _swept(row, w, patterns, layer)
            if magnitudes:
                row = replace(row, magnitudes=_magnitudes(w))
        except FastSparseError as error:
            row = replace(row, reason=str(error))
    source.release(name)
    return row


def _magnitudes(w: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    _, bins, counts = native().count_magnitudes(w, 0, _QUARTER)
    return tuple(zip(bins.tolist(), counts.tolist(), strict=True))


def _swept(row: TensorSweep, w: NDArray[Any], patterns: tuple[Pattern, ...], layer: LayerInputs | None) -> TensorSweep:
    scale = None if layer is None else layer.norms
    if layer is not None and layer.transposed:
        # The norms belong to the rows: no vector along the columns.
        working = np.float64 if w.dtype == np.float64 else np.float32
        w, scale = np.multiply(w.astype(working), layer.norms.astype(working)[:, None]), None
    total, kept = energies(w, list(patterns), scale, None)
    if not math.isfinite(total):
        raise FastSparseError("its energy is infinite, so nothing can be said of a share")
    rows, nonzero = [], row.elements - round((row.zeros or 0.0) * row.elements)
    for one, (count, energy) in zip(patterns, kept, strict=True):
        size = min(_stored(row, min(count, nonzero)), row.bytes_before)
        sparsity = 1 - count / row.elements if row.elements else 0.0
        ratio = size / row.bytes_before if row.bytes_before else math.inf
        rows.append(SweepRow(one, sparsity, kept_share(energy, total), size, ratio))
    return replace(row, energy=total, rows=tuple(rows), weighted=layer is not None)
