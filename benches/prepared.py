"""Prepared, structured and int8 layers against dense ones and against the packed form as it is.

`python benches/prepared.py [--shape ROWS COLS] [--only WORD] [--rounds N]` prints one JSON object a line: milliseconds
of a layer, and how many times as fast as each side ours is, the median of the ratios within the rounds.

As in a real model, layers take turns: a gigabyte of dense ones, so that no cache holds any. Before each measurement the
side runs for a while untimed: the threads of the one before it, which look for work on the same cores, go to sleep
meanwhile, and cores that have slept are slow. Every result is checked.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any

import numpy as np
from cases import DTYPES
from measure import Side, interleave, pause, ratio
from numpy.typing import NDArray
from peers import sparse, tensor, torch

import fastsparse as fs

DENSE_BYTES = 1 << 30
# They have indices beside the values: a few are larger than any cache.
BSR_LAYERS = 3
# Best dense over ours.
TARGETS = {("bf16", 90): 4.0, ("bf16", 95): 6.5, ("f32", 90): 4.0, ("f32", 95): 6.0}
INT8_TARGETS = {"dense": 1.4, "packed bf16": 1.3}
# Unstructured over ours, by rows of activations, and any block-sparse product over ours.
STRUCTURE_TARGETS = {
    "75%/16x16": {1: 1.3, 16: 2.0, 64: 2.0},
    "75%/1x16": {1: 1.2, 16: 1.5, 64: 1.5},
    "75%/4x1": {},
    "12:16": {1: 1.1, 16: 1.1, 64: 1.1},
}

Array = NDArray[Any]
Layer = Callable[[Any], object]
Case = tuple[dict[str, Any], list[Side]]


def in_turn(run: Layer, layers: list[Any], rounds: int, name: str) -> Side:
    numbers = count()

    def call() -> None:
        run(layers[next(numbers) % len(layers)])

    return Side(name, call, rounds, lambda: pause(call))


def copies(s: Any, dense_bytes: int) -> list[Any]:
    return [s, *(s.copy() for _ in range(DENSE_BYTES // dense_bytes))]


def ours(x: Array, **options: Any) -> Layer:
    return lambda layer: fs.linear(x, layer, **options)


def numpy_dense(x: Array) -> Layer:
    return lambda layer: x @ layer.T


def torch_dense(x: Any) -> Layer:
    return lambda layer: torch.nn.functional.linear(x, layer)


def torch_dynamic(x: Any) -> Layer:
    return lambda layer: layer(x)


def torch_integers(x: Any) -> Layer:
    return lambda layer: torch._int_mm(x, layer.t())


def floats(shape: tuple[int, int], rounds: int) -> Iterator[Case]:
    """One row of activations, dense, packed and prepared."""
    rng = np.random.default_rng(0)
    for name in ("bf16", "f32"):
        w = rng.standard_normal(shape, np.float32).astype(DTYPES[name])
        x = rng.standard_normal((1, shape[1]), np.float32).astype(DTYPES[name])
        layers = copies(w, w.nbytes)
        peers = []
        if name == "f32":
            peers.append(in_turn(numpy_dense(x), layers, rounds, "numpy"))
        if torch is not None:
            tensors = [tensor(layer) for layer in layers]
            peers.append(in_turn(torch_dense(tensor(x)), tensors, rounds, "torch"))
        for percent in (75, 80, 90, 95):
            s = fs.compress(w, f"{percent}%")
            packed = copies(s, w.nbytes)
            prepared = [layer.prepare() for layer in packed]
            exact = x.astype(np.float64) @ s.to_dense().astype(np.float64).T
            assert np.allclose(fs.linear(x, prepared[0]).astype(np.float64), exact, rtol=0.02, atol=0.5)
            sides = [in_turn(ours(x), prepared, rounds, "ours"), in_turn(ours(x), packed, rounds, "packed")]
            about = {"kernel": "prepared", "dtype": name, "sparsity": percent, "batch": 1, "form": prepared[0].form}
            yield {**about, "target": TARGETS.get((name, percent))}, [*sides, *peers]


def block_sparse(x: Array, s: fs.BitmaskArray, block: Any, rounds: int) -> Iterator[Side]:
    """The products of others with blocks, in the types that they know."""
    if sparse is not None and s.dtype == np.float32:
        columns = np.ascontiguousarray(x.T)
        layers = [s.to_scipy("bsr") for _ in range(BSR_LAYERS)]
        yield in_turn(lambda layer: (layer @ columns).T, layers, rounds, "scipy BSR")
    if torch is not None:
        columns = tensor(x).t().contiguous()
        dense = tensor(s.to_dense())
        layers = [dense.to_sparse_bsr(block) for _ in range(BSR_LAYERS)]
        try:
            layers[0] @ columns
        except RuntimeError as error:  # MKL, which it has on Intel, knows square blocks only
            print(f"torch BSR is left out with blocks of {block}: {error}", file=sys.stderr)
        else:
            yield in_turn(lambda layer: (layer @ columns).t(), layers, rounds, "torch BSR")


def structures(shape: tuple[int, int], rounds: int) -> Iterator[Case]:
    """Weights with a structure, as they are prepared for so many rows of activations, against unstructured ones."""
    rng = np.random.default_rng(2)
    for name in ("f32", "bf16"):
        w = (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(DTYPES[name])
        layers = copies(w, w.nbytes)
        dense = [tensor(layer) for layer in layers] if torch is not None else []
        unstructured = copies(fs.compress(w, "75%"), w.nbytes)
        for pattern, targets in STRUCTURE_TARGETS.items():
            s = fs.compress(w, pattern)
            packed = copies(s, w.nbytes)
            for batch in (1, 4, 16, 64):
                x = rng.standard_normal((batch, shape[1]), np.float32).astype(DTYPES[name])
                prepared = [layer.prepare(batch=batch) for layer in packed]
                exact = x.astype(np.float64) @ s.to_dense().astype(np.float64).T
                assert np.allclose(fs.linear(x, prepared[0]).astype(np.float64), exact, rtol=0.02, atol=0.02)
                sides = [
                    in_turn(ours(x), prepared, rounds, "ours"),
                    in_turn(ours(x), packed, rounds, "packed"),
                    in_turn(ours(x), unstructured, rounds, "unstructured"),
                    in_turn(ours(x), [u.prepare(batch=batch) for u in unstructured], rounds, "unstructured, prepared"),
                ]
                if torch is not None:
                    sides.append(in_turn(torch_dense(tensor(x)), dense, rounds, "torch"))
                if isinstance(s.pattern, fs.Block):
                    sides += block_sparse(x, s, s.pattern.shape, rounds)
                about = {"kernel": "structure", "dtype": name, "pattern": pattern, "batch": batch}
                yield {**about, "form": prepared[0].form, "target": targets.get(batch)}, sides


def integers(shape: tuple[int, int], rounds: int) -> Iterator[Case]:
    """int8 weights with a scale for each row, against dense int8 layers and packed bfloat16 ones."""
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, shape, dtype=np.int8)
    scale = rng.uniform(0.001, 0.01, shape[0]).astype(np.float32)
    s = fs.compress(w, "50%")
    packed = copies(s, w.nbytes)
    wide = copies(fs.compress(w.astype(DTYPES["bf16"]), "50%"), 2 * w.nbytes)
    dense, layers = [], []
    if torch is not None:
        dense = [torch.from_numpy(layer) for layer in copies(w, w.nbytes)]
        scales = torch.from_numpy(scale.astype(np.float64))
        for layer in dense:
            linear = torch.ao.nn.quantized.dynamic.Linear(shape[1], shape[0], bias_=False)
            zeros = torch.zeros(shape[0], dtype=torch.int64)
            quantized = torch._make_per_channel_quantized_tensor(layer, scales, zeros, 0)
            linear.set_weight_bias(quantized, None)
            layers.append(linear)
    for batch in (1, 16):
        x = rng.standard_normal((batch, shape[1]), np.float32)
        q = np.rint(x * 30).clip(-127, 127).astype(np.int8)
        narrow = x.astype(DTYPES["bf16"])
        exact = (q.astype(np.float64) @ s.to_dense().astype(np.float64).T) * scale
        assert np.allclose(fs.linear(q, s, weight_scale=scale), exact, rtol=1e-5)
        sides = [
            in_turn(ours(x, weight_scale=scale), packed, rounds, "ours"),
            in_turn(ours(q, weight_scale=scale), packed, rounds, "ours, int8 given"),
            in_turn(ours(narrow), wide, rounds, "packed bf16"),
        ]
        if torch is not None:
            sides.append(in_turn(torch_dynamic(torch.from_numpy(x)), layers, rounds, "torch dynamic"))
            sides.append(in_turn(torch_integers(torch.from_numpy(q)), dense, rounds, "torch _int_mm"))
        about = {"kernel": "int8", "dtype": "int8", "sparsity": 50, "batch": batch, "form": "mask"}
        yield {**about, "target": INT8_TARGETS}, sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 11008))
    parser.add_argument("--only", choices=["prepared", "structure", "int8"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for name, cases in (("int8", integers), ("prepared", floats), ("structure", structures)):
        if options.only in (None, name):
            for about, sides in cases(tuple(options.shape), options.rounds):
                times = interleave(sides)
                ms = {side: 1e3 * median(spent) for side, spent in times.items()}
                over = {side: ratio(times, side, "ours") for side in times if side != "ours"}
                print(json.dumps({**about, "ms": ms, "over_ours": over}), flush=True)


if __name__ == "__main__":
    main()
