"""Small inputs, growth with the size, inputs that are hard on a selection, patterns that zeros obey, the import: one
JSON object a line."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import peers
from cases import DTYPES, STANDARD, assert_same_but_ties, weights
from measure import ROUNDS, Side, interleave, probes, ratio

import fastsparse as fs

SMALL = (1, 1000)
SMALL_TARGETS = {"select 50%": 10, "select 2:4": 5, "pack": 5, "unpack": 5, "compress 50%": 5}
DETECT_TARGET = 1.6
IMPORT = "import time, numpy, ml_dtypes; t = time.perf_counter(); import fastsparse; print(time.perf_counter() - t)"


def emit(group: str, name: str, sides: list[Side], **more: Any) -> None:
    times = interleave(sides)
    medians = {side: 1e3 * median(spent) for side, spent in times.items()}
    over = {side: ratio(times, side, "ours") for side in times}
    print(json.dumps({"group": group, "name": name, "ms": medians, "over_ours": over, **more}), flush=True)


Call: TypeAlias = Callable[[], object]


def small_calls(w: peers.Array) -> dict[str, tuple[Call, Call]]:
    """Ours and NumPy's, whose results were compared."""
    mask = fs.select(w, "50%")
    keep, s, out = mask.to_bool(), fs.pack(w, mask), np.zeros_like(w)
    bits, values, other = np.array(s.bitmask), peers.raw(np.array(s.values)), np.zeros_like(peers.raw(w))
    assert_same_but_ties(w, 500, 1000, keep, peers.np_mask(w, 500))
    assert_same_but_ties(w, 2, 4, fs.select(w, "2:4").to_bool(), peers.np_sort_mask(w, 2, 4))
    assert np.array_equal(peers.raw(s.to_dense()), peers.np_unpack(values, bits, other))
    return {
        "select 50%": (lambda: fs.select(w, "50%"), lambda: peers.packbits(peers.np_mask(w, 500))),
        "select 2:4": (lambda: fs.select(w, "2:4"), lambda: peers.packbits(peers.np_sort_mask(w, 2, 4))),
        "pack": (lambda: fs.pack(w, mask), lambda: peers.np_pack(w, keep)),
        "unpack": (lambda: s.to_dense(out=out), lambda: peers.np_unpack(values, bits, other)),
        "compress 50%": (lambda: fs.compress(w, "50%"), lambda: peers.np_pack(w, peers.np_mask(w, 500))),
    }


def small() -> None:
    """Microseconds from Python to Python, beside NumPy."""
    for dtype in ("f32", "bf16"):
        for name, (ours, theirs) in small_calls(weights(SMALL, dtype)).items():
            sides = [Side("ours", ours), Side("NumPy", theirs)]
            emit("small", name, sides, dtype=dtype, target_us=SMALL_TARGETS[name])


def growth_calls(w: peers.Array) -> dict[str, Call]:
    mask = fs.select(w, "50%")
    assert mask.count == w.size // 2
    s, out = fs.pack(w, mask), np.zeros_like(w)
    assert np.array_equal(s.to_dense(out=out), fs.apply_mask(w, mask))
    return {
        "select 50%": lambda: fs.select(w, "50%"),
        "pack": lambda: fs.pack(w, mask),
        "unpack": lambda: s.to_dense(out=out),
    }


def growth(largest: int) -> None:
    """Nanoseconds a weight from 2^10 to 2^28 of them."""
    for power in range(10, largest + 1, 2):
        w = weights((1, 1 << power), "f32")
        few = ROUNDS if power < 26 else 3
        for name, run in growth_calls(w).items():
            sides = [replace(side, rounds=few) for side in probes(w)] + [Side("ours", run, few)]
            emit("growth", name, sides, power=power)


def adversarial(shape: tuple[int, int]) -> None:
    """Selection of half of what leaves a sampled bracket little to hold on to."""
    normal = weights(shape, "f32")
    rng = np.random.default_rng(1)
    few_zeros = np.where(rng.random(shape, dtype=np.float32) < 0.95, np.float32(0), normal)
    grid = np.clip(np.rint(normal / np.float32(0.008)), -8, 7) * np.float32(0.008)
    inputs = {
        "normal": normal,
        "all equal": np.full(shape, 0.5, np.float32),
        "two values": np.where(normal > 0, np.float32(1), np.float32(0.5)),
        "95 % zeros": few_zeros,
        "sorted": np.sort(normal, axis=None).reshape(shape),
        "int4 grid": grid,
    }
    for name, w in inputs.items():
        for dtype in ("f32", "bf16"):
            x = w if dtype == "f32" else w.astype(DTYPES["bf16"])
            zeros, a, keep = x.size // 2, peers.magnitude(x), fs.select(x, "50%").to_bool()
            assert np.count_nonzero(keep) == x.size - zeros
            assert a[keep].min() >= a[~keep].max()
            theirs = partial(peers.np_mask, x, zeros)
            sides = [*probes(x), Side("ours", partial(fs.select, x, "50%")), Side("NumPy partition", theirs, 1)]
            emit("adversarial", name, sides, dtype=dtype)


def detections(shape: tuple[int, int]) -> None:
    """What is found in zeros of many kinds; each search but that of the pattern which is there ends soon."""
    normal = weights(shape, "f32")
    for name in ("dense", "25%", "50%", "90%", "2:4", "3:4@axis=0", "50%/row", "75%/4x1", "75%/16x16"):
        w = normal if name == "dense" else fs.prune(normal, name)
        found = [str(pattern) for pattern in fs.detect(w)]
        assert found[:1] == ([] if name == "dense" else [name]), found
        emit("detect", name, [*probes(w), Side("ours", partial(fs.detect, w))], factor=DETECT_TARGET)


def imports() -> None:
    """What `import fastsparse` adds in a process that has NumPy and ml_dtypes."""
    spent = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(12)]
    print(json.dumps({"group": "import", "name": "import", "ms": {"ours": 1e3 * median(spent[1:])}}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=2, default=STANDARD)
    parser.add_argument("--largest", type=int, default=28, help="power of two that the growth ends with")
    parser.add_argument("--only", choices=["small", "import", "growth", "adversarial", "detect"])
    options = parser.parse_args()
    groups: dict[str, Call] = {
        "small": small,
        "import": imports,
        "growth": partial(growth, options.largest),
        "adversarial": partial(adversarial, tuple(options.shape)),
        "detect": partial(detections, tuple(options.shape)),
    }
    for run in groups.values() if options.only is None else [groups[options.only]]:
        run()


if __name__ == "__main__":
    main()
