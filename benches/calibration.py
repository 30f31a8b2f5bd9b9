"""Calibrated pruning against torch and coremltools.

`python benches/calibration.py [--shape ROWS COLS]… [--rounds N]` prints one JSON object a line: milliseconds, and how
many times as fast as each side ours is, the median of the ratios within the rounds.

`sweep` is SparseGPT without the factorisation: ours against the loop over columns as the paper and all who follow it
write it, in torch. `whole` is all of it from the Gram matrix, against coremltools' `LayerwiseCompressor`. `refine` is
ten steps, native against the NumPy backend, which shares the products. Masks are compared with the peers' first.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from measure import ROUNDS, Side, interleave, ratio
from numpy.typing import NDArray
from peers import torch

import fastsparse as fs
from fastsparse import _backend, _numpy, calibration

SHAPES = [(576, 1536), (1536, 576), (2048, 2048)]
BLOCK = 128
LEAST_AGREEMENT = 0.999

Array = NDArray[Any]


def layer(rows: int, cols: int) -> tuple[Array, Array]:
    """Weights, and inputs whose columns depend on each other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * cols, cols // 2), np.float32) @ rng.standard_normal((cols // 2, cols), np.float32)
    return rng.standard_normal((rows, cols), np.float32), x + rng.standard_normal(x.shape, np.float32)


def factor_of_inverse(gram: Any) -> Any:
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def torch_loop(w: Any, upper: Any, sparsity: float, groups: tuple[int, int] | None) -> Any:
    """Algorithm 1 of the paper, a column at a time."""
    w = w.clone()
    for first in range(0, w.shape[1], BLOCK):
        end = min(first + BLOCK, w.shape[1])
        block, errors = w[:, first:end], torch.zeros(len(w), end - first)
        triangle = upper[first:end, first:end]
        scores = (block / triangle.diagonal()) ** 2
        pruned = torch.zeros_like(block, dtype=torch.bool)
        if groups is None:
            flat = scores.flatten()
            pruned = scores <= flat.sort()[0][int(flat.numel() * sparsity)]
        for j in range(end - first):
            if groups is not None and j % groups[1] == 0:
                ranked = (block[:, j : j + groups[1]] / triangle.diagonal()[j : j + groups[1]]) ** 2
                pruned.scatter_(1, j + ranked.topk(groups[0], dim=1, largest=False)[1], True)
            error = block[:, j] * pruned[:, j] / triangle[j, j]
            block[:, j:] -= error[:, None] @ triangle[j : j + 1, j:]
            errors[:, j] = error
        block[pruned] = 0
        w[:, end:] -= errors @ upper[first:end, end:]
    return w


def coremltools(w: Any, gram: Any, options: dict[str, Any]) -> Any:
    from coremltools.optimize.torch.layerwise_compression.algorithms import ModuleSparseGPTConfig, SparseGPT

    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w.clone()
    algorithm = SparseGPT(linear, ModuleSparseGPTConfig(weight_dtype="float32", **options))
    algorithm._hessian = gram.clone()
    # It compares outputs at the end; one token costs next to nothing.
    algorithm._inp1, algorithm._out1 = torch.zeros(1, w.shape[1]), torch.zeros(1, w.shape[0])
    algorithm._compress_impl()
    return linear.weight.data


def on_numpy(run: Callable[[], Array]) -> Array:
    native, _backend.active = _backend.active, _numpy
    try:
        return run()
    finally:
        _backend.active = native


def agreement(mask: fs.Bitmask, peer: Any) -> float:
    return float(np.mean(mask.to_bool() == (peer.numpy() != 0)))


def cases(rows: int, cols: int, rounds: int) -> Iterator[tuple[dict[str, str], list[Side]]]:
    w, x = layer(rows, cols)
    gram = calibration.Gram(cols)
    gram.update(x)
    factor = calibration.factorize(gram)
    theirs, theirs_gram = torch.from_numpy(w), torch.from_numpy(gram.matrix.copy())
    upper = factor_of_inverse(theirs_gram)
    for pattern, sparsity, groups in (("50%", 0.5, None), ("2:4", 0.0, (2, 4))):
        options = {"n_m_ratio": groups} if groups else {"target_sparsity": sparsity}
        _, mask = calibration.sparsegpt(w, factor, pattern, rounding="peer")
        for peer in (torch_loop(theirs, upper, sparsity, groups), coremltools(theirs, theirs_gram, options)):
            assert agreement(mask, peer) >= LEAST_AGREEMENT, agreement(mask, peer)
        yield (
            {"kernel": "sweep", "pattern": pattern},
            [
                Side("ours", partial(calibration.sparsegpt, w, factor, pattern), rounds),
                Side("torch loop", partial(torch_loop, theirs, upper, sparsity, groups), rounds),
            ],
        )
        yield (
            {"kernel": "whole", "pattern": pattern},
            [
                Side("ours", partial(calibration.sparsegpt, w, gram, pattern), rounds),
                Side("coremltools", partial(coremltools, theirs, theirs_gram, options), rounds),
            ],
        )
    mask = calibration.wanda(w, gram.norms, "50%")
    refine = partial(calibration.refine, w, gram, mask)
    plain = partial(on_numpy, refine)
    assert np.allclose(refine(), plain(), rtol=1e-3, atol=1e-4)
    yield {"kernel": "refine", "pattern": "50%"}, [Side("ours", refine, rounds), Side("numpy", plain, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    for rows, cols in options.shape or SHAPES:
        for about, sides in cases(rows, cols, options.rounds):
            times = interleave(sides)
            ms = {side: 1e3 * median(spent) for side, spent in times.items()}
            over = {side: ratio(times, side, "ours") for side in times if side != "ours"}
            print(json.dumps({"rows": rows, "cols": cols, **about, "ms": ms, "over_ours": over}), flush=True)


if __name__ == "__main__":
    main()
