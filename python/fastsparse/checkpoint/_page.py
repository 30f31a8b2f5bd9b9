"""A sweep of a checkpoint as a page: layers, energy, magnitudes, patterns, sizes."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastsparse._table import natural
from fastsparse.analysis import _html as html
from fastsparse.analysis._sweep import SweepRow
from fastsparse.packed import byte_count
from fastsparse.patterns import Pattern, Unstructured

if TYPE_CHECKING:
    from fastsparse.checkpoint._sweep import CheckpointSweep, TensorSweep

__all__ = ["ENERGY_IS_NOT_QUALITY", "page_of", "summary_of"]

ENERGY_IS_NOT_QUALITY = (
    "Energy kept is the share of the sum of squares of the weights that stays. It does not say whether the model still "
    "works: only an evaluation on data does."
)

_TOTALS = "pattern", "zeros", "energy kept", "size", "of dense"
_FEW = 0.01
"""Fewer zeros are no picture: they are chance."""

_MOST_ROWS, _MOST_KINDS, _MOST_LAYERS, _MOST_COLUMNS = 2000, 24, 96, 96


def page_of(sweep: "CheckpointSweep") -> str:
    """The whole page; its size is bounded, whatever the number of tensors."""
    name = os.path.basename(os.path.abspath(sweep.source))
    groups = _Groups(sweep.swept)
    return html.page(
        f"{name} – fastsparse",
        f"<h1>{html.escape(name)}</h1>",
        _numbers(sweep),
        html.section("Layers", html.pictures(*_layers(sweep, groups), wide=True)),
        _energy(sweep, groups),
        html.section("Magnitudes", html.pictures(*_magnitudes(sweep, groups))),
        _patterns(sweep.tensors),
        _tensors(sweep),
    )


def summary_of(sweep: "CheckpointSweep") -> str:
    """The numbers and the curve, for a notebook."""
    return html.fragment(_numbers(sweep), _energy(sweep, _Groups(sweep.swept)))


def _numbers(sweep: "CheckpointSweep") -> str:
    tensors = sweep.tensors
    known = [tensor for tensor in tensors if tensor.zeros is not None]
    weights = sum(tensor.elements for tensor in known)
    zeros = sum(tensor.elements * (tensor.zeros or 0.0) for tensor in known)
    dense, stored = sum(tensor.bytes_before for tensor in tensors), sum(tensor.bytes_stored for tensor in tensors)
    return html.tiles(
        [
            ("tensors", f"{len(tensors):,}"),
            ("parameters", _rounded(weights)),
            ("zeros", html.percent(zeros / weights if weights else 0.0, 1)),
            ("size dense", byte_count(dense)),
            ("size as stored", byte_count(stored)),
            ("tensors to prune", f"{len(sweep.swept):,}"),
        ]
    )


def _rounded(count: int) -> str:
    """A number of parameters that fits a tile, in the units that models are named by."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:,}"


class _Groups:
    """Tensors by layer, the first number in their names, and by kind, their names without numbers."""

    def __init__(self, tensors: Iterable["TensorSweep"]) -> None:
        self.of: dict[str, dict[int | None, list[TensorSweep]]] = defaultdict(lambda: defaultdict(list))
        for tensor in tensors:
            parts = tensor.name.removesuffix(".weight").split(".")
            numbers = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,6}", part)]
            kind = ".".join("#" if re.fullmatch("[0-9]+", part) else part for part in parts)
            self.of[kind.rpartition("#.")[2]][numbers[0] if numbers else None].append(tensor)
        layers = {layer for own in self.of.values() for layer in own if layer is not None}
        self.layers = sorted(layers)

    @property
    def largest(self) -> list[str]:
        """The kinds that hold most weights, in the order of the checkpoint."""
        size = {kind: sum(tensor.elements for tensor in self.tensors(kind)) for kind in self.of}
        kept = sorted(size, key=lambda kind: -size[kind])[:_MOST_KINDS]
        return [kind for kind in self.of if kind in kept]

    def tensors(self, kind: str) -> "list[TensorSweep]":
        """All tensors of a kind."""
        return [tensor for own in self.of[kind].values() for tensor in own]


_Measure = Callable[["TensorSweep"], float | None]


def _mean(tensors: "Sequence[TensorSweep]", measure: _Measure) -> float | None:
    """The mean of a share over tensors, by their elements; None where it is known of none."""
    known = [(tensor.elements, share) for tensor in tensors if (share := measure(tensor)) is not None]
    elements = sum(size for size, _ in known)
    return sum(size * share for size, share in known) / elements if elements else None


def _layers(sweep: "CheckpointSweep", groups: _Groups) -> list[str]:
    """Where the parameters are; zeros, and the energy that a pattern in the middle takes, by layer and kind."""
    found = [_kinds(groups)]
    if (_mean(sweep.swept, lambda tensor: tensor.zeros) or 0.0) >= _FEW:
        caption = "Share of zeros by layer, as the checkpoint is."
        found.append(_by_layer(groups, lambda tensor: tensor.zeros, "zeros", caption))
    number = _reference(sweep)
    if number is not None:
        pattern = sweep.patterns[number]

        def lost(tensor: "TensorSweep") -> float | None:
            share = tensor.rows[number].kept_energy
            return None if share is None else 1 - share

        caption = f"Share of the energy that pruning each tensor by {pattern} would take."
        found.append(_by_layer(groups, lost, "energy lost", caption))
    return found


def _kinds(groups: _Groups) -> str:
    """How many parameters each kind of tensor has."""
    total = sum(tensor.elements for kind in groups.of for tensor in groups.tensors(kind))
    rows = []
    for kind in groups.largest:
        own = groups.tensors(kind)
        elements = sum(tensor.elements for tensor in own)
        text = f"{len(own)} × {elements // len(own):,}" if len(own) > 1 else f"{elements:,}"
        rows.append((_short(kind, 17), float(elements), text))
    caption = f"Parameters of the tensors to prune by kind, {total:,} in all."
    return html.bars(caption, f"{caption} " + ", ".join(f"{name}: {text}" for name, _, text in rows), rows)


def _reference(sweep: "CheckpointSweep") -> int | None:
    """The number of the pattern in the middle: the share of tensors that is nearest to a half."""
    shares = [(abs(share - 0.5), at) for at, one in enumerate(sweep.patterns) if (share := _share(one)) is not None]
    return min(shares)[1] if shares else None


def _share(pattern: Pattern) -> float | None:
    """The share of a tensor that an unstructured pattern prunes."""
    return pattern.sparsity if isinstance(pattern, Unstructured) and pattern.per == "tensor" else None


def _by_layer(groups: _Groups, measure: _Measure, what: str, caption: str) -> str:
    """A grid of layers × kinds where there are layers, else bars of the largest tensors."""
    return (_grid if len(groups.layers) > 1 else _bars)(groups, measure, what, caption)


def _bars(groups: _Groups, measure: _Measure, what: str, caption: str) -> str:
    tensors = sorted((tensor for kind in groups.of for tensor in groups.tensors(kind)), key=lambda one: -one.elements)
    known = [(tensor.name, share) for tensor in tensors[:_MOST_KINDS] if (share := measure(tensor)) is not None]
    if not any(share for _, share in known):
        return ""
    rows = [(_short(name, 16), share, html.percent(share, 1)) for name, share in known]
    return html.bars(caption, f"{caption} {_extremes(known, what)}", rows)


def _grid(groups: _Groups, measure: _Measure, what: str, caption: str) -> str:
    columns = _binned(groups.layers)
    means = [
        (kind, [_mean([t for layer in some for t in groups.of[kind].get(layer, ())], measure) for some in columns])
        for kind in groups.largest
    ]
    known = [
        (f"{kind}, {_layers_named(some)}", share)
        for kind, row in means
        for some, share in zip(columns, row, strict=True)
        if share is not None
    ]
    if not any(share for _, share in known):
        return ""
    low, high = min(share for _, share in known), max(share for _, share in known)

    def cell(kind: str, some: list[int], share: float | None) -> tuple[str, float] | None:
        if share is None:
            return None
        text = f"{kind}, {_layers_named(some)}: {html.percent(share, 1)} {what}"
        return text, (share - low) / (high - low) if high > low else 1.0

    rows = [
        (kind, [cell(kind, some, share) for some, share in zip(columns, row, strict=True)])
        for kind, row in means
        if any(share is not None for share in row)
    ]
    caption += f" A column is a layer, {groups.layers[0]} to {groups.layers[-1]}."
    ends = html.percent(low, 1), html.percent(high, 1)
    return html.grid(caption, f"{caption} {_extremes(known, what)}", rows, ends)


def _layers_named(some: list[int]) -> str:
    return f"layer {some[0]}" if len(some) == 1 else f"layers {some[0]} to {some[-1]}"


def _extremes(known: list[tuple[str, float]], what: str) -> str:
    """Where there is least and most, in words."""
    (least, low), (most, high) = min(known, key=lambda one: one[1]), max(known, key=lambda one: one[1])
    return f"From {html.percent(low, 1)} {what} ({_short(least)}) to {html.percent(high, 1)} ({_short(most)})."


def _short(name: str, most: int = 40) -> str:
    name = name.removesuffix(".weight")
    return name if len(name) <= most else "…" + name[1 - most :]


def _binned(layers: list[int]) -> list[list[int]]:
    """Layers, some together where there are very many."""
    step = -(-len(layers) // _MOST_LAYERS)
    return [layers[at : at + step] for at in range(0, len(layers), step)]


def _energy(sweep: "CheckpointSweep", groups: _Groups) -> str:
    totals = sweep.totals
    if not sweep.swept:
        return html.section("What pruning would keep", "<p>No tensor is one that would be pruned.</p>")
    weighted = any(tensor.weighted for tensor in sweep.swept)
    rows: list[list[html.Cell]] = [
        [
            str(row.pattern),
            _number(row.sparsity, 1),
            _number(row.kept_energy, 2),
            (byte_count(row.packed_bytes), float(row.packed_bytes)),
            _number(row.ratio, 1),
        ]
        for row in totals
    ]
    dense = sum(tensor.bytes_before for tensor in sweep.tensors)
    sizes = [("dense", float(dense), byte_count(dense))]
    sizes += [(str(row.pattern), float(row.packed_bytes), byte_count(row.packed_bytes)) for row in totals[:24]]
    caption = "Size of the whole checkpoint, each tensor pruned by the same pattern."
    alternative = f"{caption} " + ", ".join(f"{name}: {text}" for name, _, text in sizes)
    by_inputs = "Weights of layers whose inputs are known count times the norms of those." if weighted else ""
    return html.section(
        "What pruning would keep",
        html.note(ENERGY_IS_NOT_QUALITY),
        f"<p>{by_inputs}</p>" if by_inputs else "",
        html.pictures(_curve(sweep, totals, groups), html.bars(caption, alternative, sizes), wide=True),
        html.table("All tensors to prune, by one pattern", _TOTALS, rows),
    )


def _number(share: float | None, digits: int) -> html.Cell:
    return html.percent(share, digits), share


def _curve(sweep: "CheckpointSweep", totals: Sequence[SweepRow], groups: _Groups) -> str:
    numbers = sorted(
        (at for at, row in enumerate(totals) if _share(row.pattern) is not None and row.kept_energy is not None),
        key=lambda at: totals[at].sparsity,
    )
    start = (0.0, 1.0)
    main = [start, *((totals[at].sparsity, totals[at].kept_energy or 0.0) for at in numbers)]
    faint = []
    for kind in groups.largest if numbers else ():
        own = groups.tensors(kind)
        line = [(totals[at].sparsity, _mean(own, lambda t, at=at: t.rows[at].kept_energy) or 0.0) for at in numbers]  # type: ignore[misc]
        faint.append((kind, [start, *line]))
    marks = [
        (str(row.pattern), row.sparsity, row.kept_energy)
        for row in totals
        if _share(row.pattern) is None and row.kept_energy is not None
    ][:8]
    caption = "Energy kept (upwards) over the share of zeros: all tensors together, and each kind of layer."
    words = ", ".join(f"{html.percent(y, 1)} at {html.percent(x)} zeros" for x, y in main)
    return html.curves(caption, f"{caption} All together: {words}.", main, faint, marks)


def _magnitudes(sweep: "CheckpointSweep", groups: _Groups) -> list[str]:
    everything = [_histogram("all weights", [tensor for tensor in sweep.tensors if tensor.magnitudes])]
    return everything + [_histogram(kind, groups.tensors(kind)) for kind in groups.largest if len(groups.of) > 1]


def _histogram(name: str, tensors: "Sequence[TensorSweep]") -> str:
    counts: dict[int, int] = defaultdict(int)
    for tensor in tensors:
        for number, count in tensor.magnitudes:
            counts[number] += count
    zeros = counts.pop(0, 0)
    total = sum(counts.values())
    if not total:
        return ""
    # The long tail of tiny magnitudes is left out, and said.
    numbers, below = sorted(counts), 0
    while below + counts[numbers[0]] < total / 2000:
        below += counts[numbers.pop(0)]
    step = -(-(numbers[-1] + 1 - numbers[0]) // _MOST_COLUMNS)
    columns = []
    for first in range(numbers[0], numbers[-1] + 1, step):
        count = sum(counts.get(number, 0) for number in range(first, first + step))
        low, high = _value(first), _value(first + step)
        # Quarters of an octave are equal in numbers, so on the axis their widths differ.
        columns.append((f"{low:.3g} to {high:.3g}: {html.percent(count / total, 2)}", count / math.log2(high / low)))
    ends = f"{_value(numbers[0]):.3g}", f"{_value(numbers[-1] + 1):.3g}"
    most = max(columns, key=lambda column: column[1])[0]
    caption = f"|w| of {_short(name, 80)}, on a logarithmic axis."
    if zeros or below:
        caption += f" Not shown: {zeros:,} zeros, {below:,} smaller."
    return html.columns(caption, f"{caption} Most are at {most}.", columns, ends)


def _value(number: int) -> float:
    """The magnitude at which the quarter of an octave of this number begins."""
    return float(np.array(min(number, 0x7FF << 2) << 50, np.uint64).view(np.float64))


def _patterns(tensors: "Sequence[TensorSweep]") -> str:
    """What the zeros obey, by the strictest pattern of each tensor."""
    found: dict[str, list[TensorSweep]] = defaultdict(list)
    for tensor in tensors:
        if tensor.found:
            found[tensor.structure or "scattered"].append(tensor)
    most = sorted(found, key=lambda one: -sum(tensor.elements for tensor in found[one]))[:50]
    rows = []
    for one in most:
        elements = sum(tensor.elements for tensor in found[one])
        rows.append((one, (f"{len(found[one]):,}", float(len(found[one]))), (f"{elements:,}", float(elements))))
    more = f" {len(found) - len(most):,} rarer ones are left out." if len(found) > len(most) else ""
    caption = f"The strictest pattern that the zeros of each tensor obey.{more}"
    return html.section("Patterns found", html.table(caption, ("pattern", "tensors", "parameters"), rows))


def _tensors(sweep: "CheckpointSweep") -> str:
    reference = _reference(sweep)
    shown = sorted(sweep.tensors, key=lambda tensor: natural(tensor.name))
    caption = f"All {len(shown):,} tensors"
    if len(shown) > _MOST_ROWS:
        largest = sorted(range(len(shown)), key=lambda at: -shown[at].elements)[:_MOST_ROWS]
        caption = f"The {_MOST_ROWS:,} largest of {len(shown):,} tensors; --json has all"
        shown = [shown[at] for at in sorted(largest)]
    headings = ["tensor", "shape", "dtype", "zeros", "found", "size stored"]
    if reference is not None:
        headings += [f"energy kept by {sweep.patterns[reference]}", f"size by {sweep.patterns[reference]}"]
    rows = [_tensor(tensor, reference) for tensor in shown]
    return html.section("Tensors", html.table(caption, [*headings, "why not pruned"], rows))


def _tensor(tensor: "TensorSweep", reference: int | None) -> list[html.Cell]:
    cells: list[html.Cell] = [
        tensor.name,
        "×".join(map(str, tensor.shape)) or "scalar",
        tensor.dtype,
        _number(tensor.zeros, 1),
        tensor.structure or "",
        (byte_count(tensor.bytes_stored), float(tensor.bytes_stored)),
    ]
    if reference is not None:
        row = tensor.rows[reference] if tensor.rows else None
        cells.append(_number(None if row is None else row.kept_energy, 2))
        cells.append(("–", None) if row is None else (byte_count(row.packed_bytes), float(row.packed_bytes)))
    return [*cells, tensor.reason or ""]
