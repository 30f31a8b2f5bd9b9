"""Linear layers against the dense ones of NumPy and torch and the sparse ones of scipy and torch.

`python benches/linear.py [--shape ROWS COLS] [--dtype NAME] [--batch N] [--seconds S]` prints one JSON line for
each shape, type and batch; `--write FILE PAGE` puts such lines into a page of docs/performance, with a picture.

As in a real model, layers take turns: 2 GB of dense ones, so that no cache holds any; with the same weights, each in
memory of its own, which every side reads once before anything is timed. Every round takes the next layer and calls each
side once. A ratio is the median of those within the rounds. Every result is checked.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import render
from cases import DTYPES
from measure import pause
from peers import Array, sparse, tensor, torch

import fastsparse as fs

SHAPES = [(4096, 11008), (11008, 4096), (4096, 4096)]
BATCHES = [1, 2, 4, 8, 16, 64, 256]
SPARSITIES = [50, 75, 90]
DENSE_BYTES = 2 << 30
# Two bytes of index more a weight: a few of these are larger than any cache, too.
CSR_LAYERS = 3
# A CSR product of many columns takes seconds.
CSR_BATCH = 4
# Of a shape, type and batch.
SECONDS = 4.0
LEAST_ROUNDS = 3
MOST_ROUNDS = 48

# Best dense over ours at 50, 75 and 90 %, by type and batch.
SMALL_BATCH = dict.fromkeys([4, 8, 16], (2.5, 2.5, 2.5))
TARGETS: dict[str, dict[int, tuple[float, ...]]] = {
    "f32": {1: (1.6, 2.3, 3.0), 2: (1.5, 1.5, 1.5), **SMALL_BATCH, 64: (1.3, 1.3, 1.3), 256: (1.0, 1.0, 1.0)},
    "bf16": {
        1: (2.2, 3.0, 4.0),
        **dict.fromkeys([2, 4, 8, 16], (1.8, 2.0, 2.0)),
        64: (1.0, 1.0, 1.0),
        256: (0.9, 0.9, 0.9),
    },
    "f16": {1: (1.8, 2.5, 3.2), 2: (2.5, 2.5, 2.5), **SMALL_BATCH, 64: (1.3, 1.3, 1.3), 256: (1.0, 1.0, 1.0)},
}
BEGIN, END = "<!-- measured by benches/linear.py -->", "<!-- end of what benches/linear.py writes -->"

# Calls the product with a layer.
Side = Callable[[int], Any]


def byte_limit(dtype: str, sparsity: float) -> float:
    """The bytes of dense weights over those of packed ones."""
    width = int(DTYPES[dtype].itemsize)
    return width / (width * (1 - sparsity) + 1 / 8)


def copies(s: fs.BitmaskArray, layers: int) -> list[fs.BitmaskArray]:
    parts = ((s.values.copy(), s.bitmask.copy()) for _ in range(layers))
    return [fs.BitmaskArray.from_parts(values, bitmask, s.shape) for values, bitmask in parts]


def packed_side(x: Array, layers: list[fs.BitmaskArray], out: Array) -> Side:
    return lambda i: fs.linear(x, layers[i], out=out)


def csr_side(layers: list[Any], columns: Any) -> Side:
    return lambda i: (layers[i % CSR_LAYERS] @ columns).T


class Layers:
    """The layers of a shape and type, dense and packed."""

    def __init__(self, shape: tuple[int, int], dtype: str) -> None:
        weights = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
        first = weights.astype(DTYPES[dtype])
        self.cols = shape[1]
        self.dtype = DTYPES[dtype]
        self.number = min(MOST_ROUNDS, -(-DENSE_BYTES // first.nbytes))
        self.dense = [first.copy() for _ in range(self.number)]
        self.tensors = [tensor(w) for w in self.dense] if torch else []
        self.pruned = {s: fs.prune(first, f"{s}%") for s in SPARSITIES}
        self.packed = {s: copies(fs.pack(w), self.number) for s, w in self.pruned.items()}
        self.csr: dict[int, list[Any]] = {}
        self.torch_csr: dict[int, list[Any]] = {}
        if dtype == "f32" and sparse:
            self.csr = {s: [sparse.csr_array(w) for _ in range(CSR_LAYERS)] for s, w in self.pruned.items()}
        if dtype == "f32" and torch:
            self.torch_csr = {
                s: [torch.from_numpy(w).to_sparse_csr() for _ in range(CSR_LAYERS)] for s, w in self.pruned.items()
            }
        # Memory that was only written may be slow at first: 15 to 30 ms a layer, then 4 to 8, on a
        # virtual machine.
        for (_, run, _), i in product(self.sides(1), range(self.number)):
            run(i)

    def sides(self, batch: int) -> Iterator[tuple[str, Side, Array]]:
        """Name, what to call with the number of a layer, and the weights whose product it is."""
        x = np.random.default_rng(1).standard_normal((batch, self.cols), np.float32).astype(self.dtype)
        for s, layers in self.packed.items():
            out = np.empty((batch, layers[0].shape[0]), self.dtype)
            yield f"ours {s}", packed_side(x, layers, out), self.pruned[s]
        if torch:
            t = tensor(x)
            yield "torch", lambda i: torch.nn.functional.linear(t, self.tensors[i]), self.dense[0]
        if batch <= CSR_BATCH:
            columns = np.ascontiguousarray(x.T)
            for s, csr in self.torch_csr.items():
                yield f"torch CSR {s}", csr_side(csr, torch.from_numpy(columns)), self.pruned[s]
            for s, csr in self.csr.items():
                yield f"scipy CSR {s}", csr_side(csr, columns), self.pruned[s]
        # The last of a round: its threads disturb others for longest.
        if self.dtype == np.float32:
            yield "NumPy", lambda i: x @ self.dense[i].T, self.dense[0]

    def expected(self, batch: int, weights: Array) -> tuple[Array, Array]:
        """A few rows in float64, and the size of their terms."""
        x = np.random.default_rng(1).standard_normal((batch, self.cols), np.float32).astype(self.dtype)
        wide, rows = x.astype(np.float64), weights[:8].astype(np.float64)
        return wide @ rows.T, np.abs(wide) @ np.abs(rows.T)


def measured(layers: Layers, batch: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of every side, by round."""
    sides = list(layers.sides(batch))
    for name, run, weights in sides:
        result = run(0)
        if not isinstance(result, np.ndarray):
            result = result.float().numpy()
        exact, size = layers.expected(batch, weights)
        rounding = 2.0**-8 if layers.dtype.itemsize == 2 else 2.0**-20
        assert (np.abs(result[:, :8].astype(np.float64) - exact) <= rounding * size).all(), name
    times: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    begin, turn = time.perf_counter(), 0
    while turn < LEAST_ROUNDS or (turn < MOST_ROUNDS and time.perf_counter() - begin < seconds):
        pause(partial(sides[0][1], turn % layers.number - 1))
        for name, run, _ in sides:
            start = time.perf_counter()
            run(turn % layers.number)
            times[name].append(time.perf_counter() - start)
        turn += 1
    return times


def row(shape: tuple[int, int], dtype: str, batch: int, times: dict[str, list[float]]) -> dict[str, Any]:
    def over(above: str, below: str) -> float:
        return median(a / b for a, b in zip(times[above], times[below], strict=True))

    dense = [name for name in ("NumPy", "torch") if name in times]
    return {
        "shape": shape,
        "dtype": dtype,
        "batch": batch,
        "rounds": len(times["ours 50"]),
        "ms": {name: 1e3 * median(seconds) for name, seconds in times.items()},
        "dense": {s: min(over(name, f"ours {s}") for name in dense) for s in SPARSITIES} if dense else {},
        "csr": {name: over(name, f"ours {name.split()[-1]}") for name in times if "CSR" in name},
    }


def section(rows: list[dict[str, Any]]) -> str:
    heads = ["shape", "type", "batch", "best dense, ms", "ours, ms", "dense / ours", "reach", "CSR / ours, least"]
    lines = []
    for row in rows:
        ms, leads = row["ms"], [row["dense"][str(s)] for s in SPARSITIES]
        reach = TARGETS[row["dtype"]].get(row["batch"], ())
        marked = [f"**{x:.2f}**" if x < least else f"{x:.2f}" for x, least in zip(leads, reach, strict=True)]
        dense = min(("NumPy", "torch"), key=lambda name: ms.get(name, float("inf")))
        csr = min(row["csr"], key=row["csr"].__getitem__, default=None)
        lines.append(
            [
                "{} × {}".format(*row["shape"]),
                row["dtype"],
                str(row["batch"]),
                f"{dense}, {ms[dense]:.1f}",
                " / ".join(f"{ms[f'ours {s}']:.1f}" for s in SPARSITIES),
                " / ".join(marked),
                " / ".join(f"{x:g}" for x in dict.fromkeys(reach)),
                f"{csr} %, {row['csr'][csr]:.1f}" if csr else "–",
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines])


def picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Of the first shape: the lead over the best dense layer against sparsity, a line a batch."""
    figure, panels = plt.subplots(1, len(DTYPES), figsize=(11, 4), sharey=True)
    limits = np.linspace(0.5, 0.9, 41)
    for axes, dtype in zip(panels, DTYPES, strict=True):
        axes.plot(100 * limits, [byte_limit(dtype, s) for s in limits], "k--", label="limit of the bytes")
        for row in rows:
            if row["dtype"] == dtype and row["shape"] == rows[0]["shape"]:
                leads = [row["dense"][str(s)] for s in SPARSITIES]
                axes.plot(SPARSITIES, leads, marker="o", label=f"batch {row['batch']}")
        axes.set(title=dtype, xlabel="% sparse", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("time of the best dense layer over ours")
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle("linear, {} × {}, 2 threads".format(*rows[0]["shape"]), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write(page: Path, rows: list[dict[str, Any]]) -> None:
    drawing = page.with_name(f"{page.stem}-linear.svg")
    picture(drawing, rows)
    part = f"![Against dense layers]({drawing.name})\n\n{section(rows)}\n"
    render.replace_part(page, "Linear layers", BEGIN, END, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, metavar=("ROWS", "COLS"))
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a shape, type and batch")
    parser.add_argument(
        "--write",
        type=Path,
        nargs=2,
        metavar=("FILE", "PAGE"),
        help="write what FILE holds, measure nothing",
    )
    options = parser.parse_args()
    if options.write:
        file, page = options.write
        write(page, [json.loads(line) for line in file.open()])
        return
    shapes = [tuple(options.shape)] if options.shape else SHAPES
    for shape, dtype in product(shapes, options.dtype or DTYPES):
        layers = Layers(shape, dtype)
        for batch in options.batch or BATCHES:
            times = measured(layers, batch, options.seconds)
            print(json.dumps(row(shape, dtype, batch, times)), flush=True)
        del layers


if __name__ == "__main__":
    main()
