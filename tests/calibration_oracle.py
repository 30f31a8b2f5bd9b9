"""Calibrated pruning as the papers write it, in float64 and without a thought for speed."""

import numpy as np


def layer(rows, cols, seed=0, tokens=None, rank=None, outliers=False):
    """Weights and inputs whose columns depend on each other, some of them far larger than the others."""
    rng = np.random.default_rng([seed, rows, cols])
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    factors = rng.standard_normal((rank or max(cols // 3, 1), cols))
    if outliers:
        factors[:, rng.integers(0, cols, max(cols // 50, 1))] *= 30
    x = rng.standard_normal((tokens or 4 * cols, len(factors))) @ factors
    x += 0.3 * rng.standard_normal(x.shape)
    return w, x.astype(np.float32)


def sparsegpt(w, gram, damping=0.01, block=128, sparsity=None, groups=None, per_row=False, peer=False):
    """Algorithm 1 of the SparseGPT paper, with U the upper Cholesky factor of the inverse.

    Unstructured masks are chosen for each block of columns, n:m (`groups`: zeros, length) at the start of each group.
    """
    w, gram = w.astype(np.float64), gram.astype(np.float64)
    dead = gram.diagonal() == 0
    gram[dead, dead] = 1
    w[:, dead] = 0
    gram += damping * gram.diagonal().mean() * np.eye(len(gram))
    u = np.linalg.cholesky(np.linalg.inv(gram)).T

    def scores(a, b):
        return (w[:, a:b] / u.diagonal()[a:b]) ** 2

    cols = w.shape[1]
    pruned = np.zeros(w.shape, bool)
    for first in range(0, cols, block):
        end = min(first + block, cols)
        if groups is None:
            ranked = scores(first, end)
            if peer:
                pruned[:, first:end] = ranked <= np.sort(ranked, axis=None)[int(ranked.size * sparsity)]
            else:
                rows = 1 if per_row else len(w)
                zeros = round(sparsity * rows * end) - round(sparsity * rows * first)
                lines = ranked.reshape(-1 if per_row else 1, rows * (end - first))
                order = np.argsort(lines, axis=1, kind="stable")[:, :zeros]
                chosen = np.zeros(lines.shape, bool)
                np.put_along_axis(chosen, order, True, axis=1)
                pruned[:, first:end] = chosen.reshape(ranked.shape)
        for j in range(first, end):
            if groups is not None and j % groups[1] == 0:
                zeros, of = groups
                last = min(j + of, cols)
                if last - j < of:
                    zeros = round(zeros * (last - j) / of)
                order = np.argsort(scores(j, last), axis=1)[:, :zeros]
                np.put_along_axis(pruned[:, j:last], order, True, axis=1)
            error = w[:, j] * pruned[:, j] / u[j, j]
            w[:, j:] -= error[:, None] * u[j, j:]
            w[pruned[:, j], j] = 0
    return w, ~pruned


def best_kept_weights(w, gram, mask, damping=0.01):
    """The minimum of the layer error over the kept weights, row by row by its normal equations."""
    gram = gram.astype(np.float64)
    gram = gram + damping * gram.diagonal().mean() * np.eye(len(gram))
    best = np.zeros(w.shape)
    for row, keep in enumerate(mask):
        best[row, keep] = np.linalg.solve(gram[np.ix_(keep, keep)], gram[keep] @ w[row])
    return best


def layer_error(w, w_new, x):
    """By the outputs themselves."""
    w, w_new, x = (a.astype(np.float64) for a in (w, w_new, x))
    return np.square(x @ (w - w_new).T).sum() / np.square(x @ w.T).sum()
