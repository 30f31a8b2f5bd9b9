"""Calibrated pruning: the sweep over a block of columns, a step of conjugate gradients."""

import numpy as np
from numpy.typing import NDArray

from fastsparse._numpy._arguments import Keep
from fastsparse._numpy._masks import mask_parts, to_bool


def prune_columns(
    w: NDArray[np.float32],
    inverse: NDArray[np.float32],
    scale: NDArray[np.float32],
    bits: NDArray[np.uint8] | None,
    groups: tuple[int, int, int] | None,
) -> NDArray[np.uint8]:
    """Prunes columns from left to right; each makes those after it take over what it loses."""
    keep = np.ones(w.shape, np.bool_) if bits is None else to_bool(w.shape, bits)
    for j in range(w.shape[1]):
        if groups is not None and j % groups[1] == 0:
            zeros, of, zeros_at_end = groups
            group = slice(j, j + of)
            keep[:, group] = _largest(np.abs(w[:, group]) * scale[group], of, zeros, zeros_at_end)
        pruned = (~keep[:, j]).astype(np.float32)
        error = w[:, j] * pruned * scale[j]
        w[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
    w[~keep] = 0
    return mask_parts(w.shape, keep)[1]


def _largest(scores: NDArray[np.float32], of: int, zeros: int, zeros_at_end: int) -> Keep:
    """In each row, drops the smallest; of equal ones those with the higher index."""
    drop = zeros if scores.shape[1] == of else zeros_at_end
    order = np.argsort(-scores, axis=1, kind="stable")
    keep = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(keep, order[:, : scores.shape[1] - drop], True, axis=1)
    return keep


def conjugate_step(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    direction: NDArray[np.float32],
    product: NDArray[np.float32] | None,
    scale: NDArray[np.float32],
    bits: NDArray[np.uint8],
    energy: NDArray[np.float64],
) -> None:
    """One step for each row on its own, from the product of its direction and the matrix; without one, the first."""
    keep = to_bool(x.shape, bits)
    if product is None:
        residual *= keep
        previous = np.zeros_like(energy)
    else:
        previous = energy.copy()
        curvature = np.einsum("rc,rc->r", direction.astype(np.float64), product)
        step = np.divide(previous, curvature, out=np.zeros_like(energy), where=curvature > 0).astype(np.float32)
        x += step[:, None] * direction
        residual -= step[:, None] * (product * keep)
    conditioned = residual * scale
    energy[:] = np.einsum("rc,rc->r", residual.astype(np.float64), conditioned)
    ratio = np.divide(energy, previous, out=np.zeros_like(energy), where=previous > 0).astype(np.float32)
    direction *= ratio[:, None]
    direction += conditioned
