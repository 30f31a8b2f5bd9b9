"""What many patterns would keep of a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._table import finite
from fastsparse.masks import matrix_view
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Nonzero, Pattern, TopK, Unstructured
from fastsparse.patterns import pattern as _pattern

__all__ = ["DEFAULT", "Sweep", "SweepRow", "energies", "kept_share", "sweep"]

DEFAULT = ("10%", "20%", "30%", "40%", "50%", "60%", "70%", "80%", "90%", "2:4")
"""What is swept where nothing is named."""

_LARGEST_GROUP = 64


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What a pattern would keep.

    Attributes
    ----------
    pattern : Pattern
        The pattern.
    sparsity : float
        Share of elements that go; 0 for a tensor without elements.
    kept_energy : float or None
        Sum of squares of what is kept over that of all; 1 where all are zero, None where it is not a number. It says
        nothing of what a model computes with the rest.
    packed_bytes : int
        Size of the packed tensor: values, mask and row offsets, as `BitmaskArray.nbytes`.
    ratio : float
        That over the size of the dense tensor; infinite for a tensor without elements.
    """

    pattern: Pattern
    sparsity: float
    kept_energy: float | None
    packed_bytes: int
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; None for a ratio that is infinite."""
        return {**asdict(self), "pattern": str(self.pattern), "ratio": finite(self.ratio)}


@dataclass(frozen=True, slots=True, repr=False)
class Sweep:
    """What each of some patterns would keep of a tensor: a sequence of `SweepRow`. `fs.sweep` makes one.

    Attributes
    ----------
    shape : tuple of int
        Shape of the tensor.
    dtype : str
        Its dtype.
    rows : tuple of SweepRow
        One a pattern, in the order in which they were given.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> found = fs.sweep(np.float32([[0.1, -3, 2, 0.2]]), ["25%", "2:4"])
    >>> len(found), found["2:4"].sparsity, [str(row.pattern) for row in found]
    (2, 0.5, ['25%', '2:4'])
    """

    shape: tuple[int, ...]
    dtype: str
    rows: tuple[SweepRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.rows)

    def __getitem__(self, which: int | str | Pattern) -> SweepRow:
        """The row of a pattern or its short form, or by its number.

        Raises
        ------
        KeyError
            If the pattern was not swept.
        """
        if isinstance(which, int):
            return self.rows[which]
        wanted = _pattern(which)
        for row in self.rows:
            if row.pattern == wanted:
                return row
        raise KeyError(str(wanted))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dumps`."""
        return {"shape": self.shape, "dtype": self.dtype, "rows": [row.to_dict() for row in self.rows]}

    def _repr_html_(self) -> str:
        from fastsparse.analysis import _html as html  # notebooks only

        rows: list[list[html.Cell]] = [
            [
                str(row.pattern),
                (html.percent(row.sparsity, 1), row.sparsity),
                (html.percent(row.kept_energy, 2), row.kept_energy),
                (f"{row.ratio:.3f}", row.ratio),
            ]
            for row in self.rows
        ]
        text = f"{'×'.join(map(str, self.shape)) or 'scalar'} {self.dtype}"
        return html.fragment(html.table(text, ("pattern", "zeros", "energy kept", "of dense"), rows))

    def __repr__(self) -> str:
        size = "×".join(map(str, self.shape)) or "scalar"
        lines = [f"<Sweep {size} {self.dtype}>", f"{'pattern':<14} {'sparsity':>8} {'kept energy':>11} {'ratio':>6}"]
        for row in self.rows:
            energy = "–" if row.kept_energy is None else f"{row.kept_energy:.3%}"
            lines.append(f"{row.pattern!s:<14} {row.sparsity:>8.1%} {energy:>11} {row.ratio:>6.3f}")
        return "\n".join(lines)


def sweep(
    w: ArrayLike | BitmaskArray,
    patterns: Iterable[str | Pattern] | str | Pattern = DEFAULT,
    *,
    column_scale: ArrayLike | None = None,
    threads: int | None = None,
) -> Sweep:
    """What each of many patterns would keep, in as few passes as there are kinds of pattern.

    Parameters
    ----------
    w : array_like or BitmaskArray
        Weights of a supported dtype; a packed tensor is unpacked.
    patterns : iterable of Pattern or str
        Patterns or their short forms; by default 10 % to 90 %, and 2:4.
    column_scale : array_like, optional
        A factor for each column, as in `select`. Elements are ranked by |w|·scale, and the energy is that of |w|·scale
        too: with the norms of a layer's inputs it estimates the energy of the layer's output.
    threads : int, optional
        Upper bound for this call.

    Raises
    ------
    FastSparseError
        As `select` does: for NaN, unsupported dtypes, patterns that do not fit the shape.

    Notes
    -----
    All unstructured shares of the tensor come from one histogram of magnitudes and the elements of the bins that the
    cuts fall into, so each is exact; n:m and top-k of one group size up to 64 from sorting each group once; blocks,
    rows, thresholds and longer groups from a selection each. The energies are those of ``fs.prune(w, pattern)``,
    summed in float64; equal magnitudes have equal energy, so ties change nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> found = fs.sweep(np.float32([[0.1, -3, 2, 0.2, 0.3, 1, -1, 4]]), ["25%", "50%", "2:4"])
    >>> found
    <Sweep 1×8 float32>
    pattern        sparsity kept energy  ratio
    25%               25.0%     99.839%  1.281
    50%               50.0%     96.339%  1.031
    2:4               50.0%     96.339%  1.031
    >>> found["50%"].kept_energy == found[1].kept_energy
    True
    """
    given = [patterns] if isinstance(patterns, str | Pattern) else patterns
    chosen = [_pattern(one) for one in given]
    dense = _dense(w)
    total, kept = energies(dense, chosen, column_scale, threads)
    rows = (_row(dense, one, total, *found) for one, found in zip(chosen, kept, strict=True))
    return Sweep(dense.shape, dense.dtype.name, tuple(rows))


def _dense(w: ArrayLike | BitmaskArray) -> NDArray[Any]:
    """The weights as an array that no backend has to copy."""
    if isinstance(w, BitmaskArray):
        return w.to_dense()
    return w if isinstance(w, np.ndarray) and w.flags.c_contiguous else np.asarray(w, order="C")


def _row(w: NDArray[Any], pattern: Pattern, total: float, kept: int, energy: float) -> SweepRow:
    rows, cols = matrix_view(w.shape)
    packed = kept * w.itemsize + rows * -(-cols // 8) + 8 * (rows + 1)
    sparsity = (w.size - kept) / w.size if w.size else 0.0
    return SweepRow(pattern, sparsity, kept_share(energy, total), packed, packed / w.nbytes if w.size else math.inf)


def kept_share(kept: float, total: float) -> float | None:
    """The share of an energy; 1 of nothing, None where it is not a number."""
    share = kept / total if total else 1.0
    # The two are sums in different orders: what keeps all may exceed it by a rounding.
    return min(share, 1.0) if math.isfinite(share) else None


def energies(
    w: NDArray[Any], patterns: list[Pattern], column_scale: ArrayLike | None, threads: int | None
) -> tuple[float, list[tuple[int, float]]]:
    """The energy of the whole tensor; and how many elements each pattern keeps, and their energy."""
    active = _backend.active
    over_tensor = (one for one in patterns if isinstance(one, Unstructured) and one.per == "tensor")
    cuts = {one: w.size - one.kept_count(w.shape) for one in over_tensor}
    found: dict[Pattern, tuple[int, float]] = {}
    total = None
    if cuts:
        total, *kept = active.energies_of_largest(w, [0, *cuts.values()], column_scale, threads)
        found.update((one, (w.size - zeros, e)) for (one, zeros), e in zip(cuts.items(), kept, strict=True))
    ranks: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
    for one in patterns:
        count = one.kept_count(w.shape)
        if not isinstance(one, NM | TopK) or one.of > _LARGEST_GROUP or count is None:
            continue
        group = one.of, one.axis % w.ndim
        if group not in ranks:
            ranks[group] = active.energies_by_rank(w, *group, column_scale, threads)
        found[one] = count, _above_zeros(one, *ranks[group])
    for one in patterns:
        if one not in found:
            # What is not zero is not ranked.
            scale = None if isinstance(one, Nonzero) else column_scale
            shape, bits, count = active.select(w, one._spec, None, scale, threads)
            found[one] = count, active.energy_of_mask(w, shape, bits, column_scale, threads)
    if total is None:
        full, rest = next(iter(ranks.values()), None) or active.energies_by_rank(w, 1, -1, column_scale, threads)
        total = math.fsum(full) + math.fsum(rest)
    return total, [found[one] for one in patterns]


def _above_zeros(pattern: NM | TopK, full: list[float], rest: list[float]) -> float:
    """The energy of what each group keeps: all ranks but the lowest."""
    zeros = pattern.zeros if isinstance(pattern, NM) else pattern.of - pattern.keep
    in_rest = round(zeros * float(len(rest)) / pattern.of) if pattern.tail == "proportional" else 0
    return sum(full[zeros:]) + sum(rest[in_rest:])
