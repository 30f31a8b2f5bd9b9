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
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Prunes columns from left to right; each makes those after it take over what it loses."""
    w = w.copy()
    keep = np.ones(w.shape, np.bool_) if bits is None else to_bool(w.shape, bits)
    for j in range(w.shape[1]):
        if groups is not None and j % groups[1] == 0:
            zeros, of, zeros_at_end = groups
            group = slice(j, j + of)
            keep[:, group] = _largest(np.abs(w[:, group]) * scale[group], of, zeros, zeros_at_end)
        error = np.where(keep[:, j], np.float32(0), w[:, j] * scale[j])
        w[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
    w[~keep] = 0
    return w, mask_parts(w.shape, keep)[1]


def _largest(scores: NDArray[np.float32], of: int, zeros: int, zeros_at_end: int) -> Keep:
    """In each row, drops the smallest; of equal ones those with the higher index."""
    drop = zeros if scores.shape[1] == of else zeros_at_end
    order = np.argsort(-scores, axis=1, kind="stable")
    keep = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(keep, order[:, : scores.shape[1] - drop], True, axis=1)
    return keep


def refine_step(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    direction: NDArray[np.float32],
    product: NDArray[np.float32] | None,
    scale: NDArray[np.float32],
    bits: NDArray[np.uint8],
    energy: NDArray[np.float64],
) -> None:
    """One step of conjugate gradients for each row on its own; without a product, the first direction."""
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
