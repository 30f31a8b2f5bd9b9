"""Times coremltools' selection beside that of `fastsparse.coreml`, on the same weights and by turns; compares results.

    python benches/coreml_pruning.py [ROWS]

Both make the `SparseParamsIos16` of a matrix of 11008 columns. Prints the table of docs/interop.md.
"""

import logging
import statistics
import sys
import time
import warnings

import numpy as np
from coremltools.optimize.coreml import OpMagnitudePrunerConfig, OptimizationConfig
from coremltools.optimize.coreml._quantization_passes import prune_weights

from fastsparse.coreml._prune_pass import Pruner

ROUNDS = 5
CASES = {
    "`target_sparsity` 50 %": ("compress_by_magnitude", (0.5,)),
    "`target_sparsity` 75 %": ("compress_by_magnitude", (0.75,)),
    "`block_size` 4, `dim` 0": ("compress_by_magnitude", (0.5, 4, 0)),
    "`block_size` 4, `dim` 1": ("compress_by_magnitude", (0.5, 4, 1)),
    "`n_m_ratio` 2:4": ("compress_by_nm_sparsity", ((2, 4), 1)),
    "`threshold`": ("compress_by_threshold", (0.7, 0.5)),
}


def main(rows: int = 2048) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    config = OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=0.5))
    owners = [prune_weights, Pruner(config, "coremltools", False), Pruner(config, None, False)]
    print("| weights | config | coremltools | `compat` | | exact counts | |\n|---|---|---:|---:|---:|---:|---:|")
    for kind in (np.float32, np.float16):
        w = np.random.default_rng(0).standard_normal((rows, 11008), np.float32).astype(kind)
        for name, (method, arguments) in CASES.items():
            times: list[list[float]] = [[], [], []]
            for _ in range(ROUNDS):
                results = []
                for owner, spent in zip(owners, times, strict=True):
                    started = time.perf_counter()
                    results.append(getattr(owner, method)(w, *arguments))
                    spent.append(1e3 * (time.perf_counter() - started))
            theirs, same, _ = results
            assert np.array_equal(theirs.mask, same.mask), name
            assert theirs.nonzero_data.tobytes() == same.nonzero_data.tobytes(), name
            a, b, c = map(statistics.median, times)
            print(
                f"| {kind.__name__} | {name} | {a:.0f} ms | {b:.1f} ms | {a / b:.0f} × | {c:.1f} ms | {a / c:.0f} × |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
