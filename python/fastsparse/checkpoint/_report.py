"""Reports: what happened to each tensor of a checkpoint, and what it cost."""

import math
import sys
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from fastsparse._table import Column, line_width, natural, table, wrap
from fastsparse.packed import byte_count

__all__ = ["FILE", "Report", "TensorInfo", "TensorReport"]

_MOST_SHOWN = 500
"""Tensors that a notebook shows."""

FILE = "file"
"""The dtype in the row of a whole file."""

_COLUMNS = (
    Column("tensor"),
    Column("shape", spare=3),
    Column("dtype", spare=2),
    Column("bits", right=True),
    Column("pattern"),
    Column("found"),
    Column("zeros", right=True),
    Column("energy", right=True),
    Column("before", right=True, spare=1),
    Column("after", right=True),
)


@dataclass(frozen=True)
class TensorInfo:
    """What reports say of a tensor of a checkpoint, whatever was done with it.

    Attributes
    ----------
    name : str
        Its name in the dense checkpoint.
    shape : tuple of int
        Its dense shape.
    dtype : str
        Its dtype, by the name that safetensors gives it.
    zeros : float or None
        Share of zeros, where its elements or its mask were read for it.
    found : tuple of str
        Short forms of the patterns that those obey, the strictest first, see `fastsparse.detect`.
    reason : str or None
        Why it was not packed or not swept, or that it was packed already; None where it was.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    _: KW_ONLY
    zeros: float | None = None
    found: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def elements(self) -> int:
        """Number of elements, zeros included."""
        return math.prod(self.shape)

    @property
    def structure(self) -> str | None:
        """The strictest pattern found that says more than the share of zeros."""
        return next((form for form in self.found if not form.endswith("%")), None)


@dataclass(frozen=True)
class TensorReport(TensorInfo):
    """One tensor of a checkpoint; or a file of weights that `compress` copies as it is, with the dtype ``"file"``.

    Attributes
    ----------
    pattern : str or None
        Short form of the pattern by which it was pruned; None where it was not, or no pattern is recorded.
    sparsity : float or None
        Share of zeros; None where it is dense. Global pruning makes zeros in some that stay dense: theirs counts.
    bytes_before, bytes_after : int
        Size of the dense data, and as stored.
    kept_energy : float or None
        Sum of squares of the kept elements over that of all; None where that was not asked for or is not a number.
    bits : int or None
        Bits of a kept element, where they are fewer than those of the dtype: 8 for int8 with a scale for each row.
    calibrated : bool
        Whether calibration chose the mask and the values; `pattern` is then what the mask obeys.

    See Also
    --------
    TensorInfo : The other attributes.
    """

    pattern: str | None
    sparsity: float | None
    bytes_before: int
    bytes_after: int
    kept_energy: float | None = None
    bits: int | None = None
    calibrated: bool = False


@dataclass(frozen=True, repr=False)
class Report:
    """What happened to a checkpoint. Printed it is a table, as wide as the terminal, with tensors in natural order.

    Attributes
    ----------
    source : str
        The file or folder that was read.
    target : str or None
        The file or folder that was written; None where none was.
    tensors : tuple of TensorReport
        Every tensor, in the order of the source.
    seconds : float
        Wall time.
    resumed : tuple of str
        Shards that were taken over from a run that was killed.
    """

    source: str
    target: str | None
    tensors: tuple[TensorReport, ...]
    seconds: float
    resumed: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Size of all tensors, dense."""
        return sum(tensor.bytes_before for tensor in self.tensors)

    @property
    def bytes_after(self) -> int:
        """Size of all tensors, as stored."""
        return sum(tensor.bytes_after for tensor in self.tensors)

    @property
    def packed(self) -> int:
        """Number of packed tensors."""
        return sum(tensor.reason is None for tensor in self.tensors)

    @property
    def calibrated(self) -> int:
        """Number of tensors with values from calibration."""
        return sum(tensor.calibrated for tensor in self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of zeros over the tensors that were pruned; 0 where there are none."""
        pruned = [(tensor.elements, tensor.sparsity) for tensor in self.tensors if tensor.sparsity is not None]
        elements = sum(size for size, _ in pruned)
        return sum(size * sparsity for size, sparsity in pruned) / elements if elements else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dumps`."""
        totals = {name: getattr(self, name) for name in ("bytes_before", "bytes_after", "packed", "sparsity")}
        return {**asdict(self), "tensors": [asdict(tensor) for tensor in self.tensors], "totals": totals}

    def _repr_html_(self) -> str:
        from fastsparse.analysis import _html as html  # notebooks only

        tensors = sorted(self.tensors, key=lambda tensor: natural(tensor.name))
        cells = [_row(tensor) for tensor in tensors]
        used = [at for at in range(len(_COLUMNS)) if at == 0 or any(row[at] for row in cells)]
        headings = [*(_COLUMNS[at].heading for at in used), "why"]
        shown = list(zip(cells, tensors, strict=True))[:_MOST_SHOWN]
        rows = [[*(row[at] or "–" for at in used), tensor.reason or ""] for row, tensor in shown]
        more = f"the first {len(rows)} of {len(self.tensors)} tensors" if len(rows) < len(self.tensors) else "tensors"
        summary = "".join(f"<p>{html.escape(line)}</p>" for line in self._summary(None))
        return html.fragment(summary, html.table(f"{more} of {self.source}", headings, rows))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        width = line_width(sys.stdout)
        tensors = sorted(self.tensors, key=lambda tensor: natural(tensor.name))
        rows = [_row(tensor) for tensor in tensors]
        return "\n".join([*table(_COLUMNS, rows, [tensor.reason for tensor in tensors], width), *self._summary(width)])

    def _summary(self, width: int | None) -> list[str]:
        """What the lines after the table say of all tensors."""
        energies = [tensor.kept_energy for tensor in self.tensors if tensor.kept_energy is not None]
        ratio = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        read = [(tensor.elements, tensor.zeros) for tensor in self.tensors if tensor.zeros is not None]
        zeros = sum(size * share for size, share in read) / max(sum(size for size, _ in read), 1)
        parts = [
            f"{len(self.tensors)} tensors, {self.packed} packed",
            *([f"{self.calibrated} calibrated"] if self.calibrated else []),
            *([f"{zeros:.1%} zeros where dense"] if read else []),
            *([f"{self.sparsity:.1%} zeros where pruned"] if self.sparsity else []),
            *([f"kept energy {min(energies):.2%} to {max(energies):.2%}"] if energies else []),
        ]
        sizes = (
            f"{byte_count(self.bytes_before)} → {byte_count(self.bytes_after)} ({ratio:.1%}) in {self.seconds:.2f} s"
        )
        lines = [*wrap(", ".join(parts), width), *wrap(sizes, width)]
        if self.resumed:
            lines += wrap(f"{len(self.resumed)} finished shards of a killed run taken over", width)
        return lines


def _row(tensor: TensorReport) -> tuple[str | None, ...]:
    """The cells of a tensor's line."""
    return (
        tensor.name,
        "×".join(map(str, tensor.shape)) or (None if tensor.dtype == FILE else "scalar"),
        tensor.dtype,
        None if tensor.bits is None else str(tensor.bits),
        tensor.pattern,
        tensor.structure,
        None if (share := tensor.zeros if tensor.sparsity is None else tensor.sparsity) is None else f"{share:.1%}",
        None if tensor.kept_energy is None else f"{tensor.kept_energy:.2%}",
        byte_count(tensor.bytes_before),
        byte_count(tensor.bytes_after),
    )
