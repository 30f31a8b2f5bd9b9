"""Dense layers against packed and prepared ones, on the machine at hand.

Several layers take turns, as in a real model, so that no cache holds them. All sides of a row take turns as well, and a
figure is the median of their times: what else happens on the machine happens to all of them.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.ops import compress, linear
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Unstructured
from fastsparse.prepared import PreparedWeights

__all__ = ["Bench", "cpu_fields", "cpu_name", "measure"]

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}

_DENSE_BYTES = 512 << 20
"""Of the dense layers that take turns: far more than a cache holds, also at 95 %."""

_LAYERS = 2, 16
"""At least and at most."""

_ROUNDS = 3
"""At least, however little time there is."""

_PAUSE = 0.2
"""Seconds before a round, while its first side is computed untimed: the threads of dense layers keep cores busy while
they wait for work (those of NumPy's OpenBLAS for 0.12 s), and cores that have slept are slow."""

_BAR = 48
"""Characters of the longest bar."""

Layer = Callable[[int], Any]
"""Computes with the layer of that number."""

Peer = Callable[[NDArray[Any]], Layer]
"""Dense layers, for given activations."""


@dataclass(frozen=True)
class Row:
    """One batch size at one sparsity, in milliseconds a layer."""

    batch: int
    sparsity: float
    dense: dict[str, float]
    packed: float
    prepared: float | None
    """By column indices, where those are what `prepare` gives."""

    @property
    def speed_up(self) -> float:
        """Of the better form over the best dense layer."""
        return min(self.dense.values()) / min(self.packed, self.packed if self.prepared is None else self.prepared)


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    shape: tuple[int, int]
    dtype: str
    layers: int
    rows: list[Row]

    def wins_from(self, batch: int) -> float | None:
        """The lowest sparsity from which on the packed layer is faster than the dense ones."""
        lowest = None
        for row in sorted((row for row in self.rows if row.batch == batch), key=lambda row: -row.sparsity):
            if row.speed_up <= 1:
                break
            lowest = row.sparsity
        return lowest

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        batches = dict.fromkeys(row.batch for row in self.rows)
        rows = [{**vars(row), "speed_up": row.speed_up} for row in self.rows]
        wins = [{"batch": batch, "sparsity": self.wins_from(batch)} for batch in batches]
        about = {"cpu": cpu_name(), "shape": self.shape, "dtype": self.dtype, "layers": self.layers}
        return {**about, "isa": _backend.active.get_isa(), "rows": rows, "wins_from": wins}

    def __str__(self) -> str:
        threads = _backend.active.get_num_threads()
        title = f"{self.shape[0]}×{self.shape[1]} {self.dtype}, {self.layers} layers in turn, ms a layer"
        lines = [cpu_name(), f"{title} ({_backend.active.get_isa()}, {threads} threads)", ""]
        peers = list(self.rows[0].dense)
        lines.append(f"{'batch':>5} {'sparse':>7}" + "".join(f"{name:>15}" for name in [*peers, "packed", "prepared"]))
        for row in self.rows:
            times = [*row.dense.values(), row.packed]
            cells = [*(f"{ms:15.2f}" for ms in times), f"{row.prepared:15.2f}" if row.prepared else f"{'=':>15}"]
            lines.append(f"{row.batch:5} {row.sparsity:7.0%}" + "".join(cells))
        if any(row.prepared is None for row in self.rows):
            lines.append("=: the packed form is what is prepared too")
        lines += ["", "times as fast as the best dense layer"]
        longest = max(row.speed_up for row in self.rows)
        for row in self.rows:
            bar = "█" * max(round(_BAR * row.speed_up / longest), 1)
            lines.append(f"{row.batch:5} {row.sparsity:7.0%} {bar} {row.speed_up:.2f}")
        lines.append("")
        for batch in dict.fromkeys(row.batch for row in self.rows):
            lowest = self.wins_from(batch)
            verdict = "dense wins at the highest sparsity" if lowest is None else f"packed wins from {lowest:.0%} on"
            lines.append(f"batch {batch}: {verdict}")
        return "\n".join(lines)


def cpu_fields() -> dict[str, str]:
    """What the system says of the processor; nothing where it does not say it in this way."""
    if not Path("/proc/cpuinfo").exists():
        return {}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}


def cpu_name() -> str:
    """The processor by its name, family and model."""
    fields = cpu_fields()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']}, family {fields.get('cpu family')} model {fields.get('model')}"


def measure(
    shape: tuple[int, int],
    dtype: str,
    batches: list[int],
    sparsities: list[float],
    seconds: float,
    dense_bytes: int = _DENSE_BYTES,
) -> Bench:
    """Measures for about that long; making the layers, of so many bytes together, comes on top.

    Raises
    ------
    FastSparseError
        For a dtype that `linear` does not take, an empty shape or list, and numbers out of range.
    """
    _check(shape, dtype, batches, sparsities)
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)).astype(DTYPES[dtype])
    layers = max(_LAYERS[0], min(_LAYERS[1], -(-dense_bytes // weights.nbytes)))
    packed = {sparsity: _copies(compress(weights, Unstructured(sparsity)), layers) for sparsity in sparsities}
    prepared = {sparsity: _prepared(copies, min(batches)) for sparsity, copies in packed.items()}
    peers = _dense(weights, layers)

    def sides(x: NDArray[Any]) -> dict[str, Layer]:
        ours = {}
        for sparsity, copies in packed.items():
            ours[f"packed {sparsity}"] = _computed(x, copies)
            if _by_indices(copies[0], len(x)):
                ours[f"prepared {sparsity}"] = _computed(x, prepared[sparsity])
        return ours | {name: dense(x) for name, dense in peers.items()}

    # Memory that has only been written may be slow when it is first read.
    for run in sides(np.ones((min(batches), shape[1]), DTYPES[dtype])).values():
        for layer in range(layers):
            run(layer)
    rows = []
    for batch in batches:
        x = rng.standard_normal((batch, shape[1]), dtype=np.float32).astype(DTYPES[dtype])
        for copies in packed.values():
            _check_result(x, copies[0])
        times = _interleaved(sides(x), layers, seconds / len(batches))
        dense = {name: times[name] for name in peers}
        for sparsity in packed:
            rows.append(Row(batch, sparsity, dense, times[f"packed {sparsity}"], times.get(f"prepared {sparsity}")))
    return Bench(shape, dtype, layers, rows)


def _check(shape: tuple[int, int], dtype: str, batches: list[int], sparsities: list[float]) -> None:
    if dtype not in DTYPES:
        raise FastSparseError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if min(shape) < 1:
        raise FastSparseError(f"shape: expected rows and columns ≥ 1, got {shape}")
    if not batches or min(batches) < 1:
        raise FastSparseError(f"batch: expected integers ≥ 1, got {batches}")
    if not sparsities:
        raise FastSparseError("sparsity: expected at least one")


def _copies(s: BitmaskArray, layers: int) -> list[BitmaskArray]:
    return [s, *(s.copy() for _ in range(layers - 1))]


def _by_indices(s: BitmaskArray, batch: int) -> bool:
    return _backend.active.prefers_indices(s.values, s.shape, batch)


def _prepared(copies: list[BitmaskArray], batch: int) -> list[PreparedWeights]:
    return [s.prepare(batch=batch) for s in copies] if _by_indices(copies[0], batch) else []


def _computed(x: NDArray[Any], weights: list[Any]) -> Layer:
    return lambda i: linear(x, weights[i])


def _dense(weights: NDArray[Any], layers: int) -> dict[str, Peer]:
    """Torch where there is one, and NumPy, which multiplies nothing narrower than float32 at speed.

    NumPy is the last: its threads disturb others for longest.
    """
    wide = [weights.astype(np.float32) for _ in range(layers)]

    def numpy(x: NDArray[Any]) -> Layer:
        wide_x = x.astype(np.float32)
        return lambda i: wide_x @ wide[i].T

    peers: dict[str, Peer] = {"numpy" if weights.dtype == np.float32 else "numpy float32": numpy}
    try:
        import torch
    except ImportError:
        return peers
    kind = getattr(torch, weights.dtype.name)
    tensors = [torch.from_numpy(layer).to(kind) for layer in wide]

    def dense(x: NDArray[Any]) -> Layer:
        tensor = torch.from_numpy(x.astype(np.float32)).to(kind)

        def run(i: int) -> Any:
            with torch.inference_mode():
                return torch.nn.functional.linear(tensor, tensors[i])

        return run

    return {"torch": dense, **peers}


def _check_result(x: NDArray[Any], s: BitmaskArray) -> None:
    """The first result against float64."""
    row = s.rows(0, 1).to_dense()[0].astype(np.float64)
    exact = x[:1].astype(np.float64) @ row
    terms = np.abs(x[:1].astype(np.float64)) @ np.abs(row)
    got = linear(x[:1], s).astype(np.float64)[:, 0]
    if not np.all(np.abs(got - exact) <= 2.0**-7 * np.abs(exact) + 2.0**-16 * terms):
        raise FastSparseError(f"the packed layer gave {got}, expected {exact}")


def _interleaved(sides: dict[str, Layer], layers: int, seconds: float) -> dict[str, float]:
    """The median of each side's times, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    first = next(iter(sides.values()))
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < end:
        layer = rounds % layers
        quiet = time.perf_counter() + _PAUSE
        while time.perf_counter() < quiet:
            first(layer - 1)
        for name, run in sides.items():
            start = time.perf_counter()
            run(layer)
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {name: median(spent) for name, spent in times.items()}
