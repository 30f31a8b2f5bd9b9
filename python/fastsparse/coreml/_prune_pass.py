"""coremltools' pass for pruning, with its selection replaced. Importing it imports coremltools."""

from typing import Any

import numpy as np
from coremltools.optimize._utils import SparseParamsIos16
from coremltools.optimize.coreml._quantization_passes import prune_weights
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError
from fastsparse.coreml import _coremltools_select as exactly
from fastsparse.coreml._params import to_flat
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, Pattern, Threshold, Unstructured

__all__ = ["Pruner"]


class Pruner(prune_weights):  # type: ignore[misc]  # coremltools is not typed
    """Which weights are pruned, and what becomes of the program, is the base class's business.

    Parameters
    ----------
    config : coremltools.optimize.coreml.OptimizationConfig
        What to prune and how.
    compat : {None, "coremltools"}
        Whether its selection is followed to the bit.
    joint_compression : bool
        As in `coremltools.optimize.coreml.prune_weights`.
    """

    def __init__(self, config: Any, compat: str | None, joint_compression: bool) -> None:
        super().__init__(config)
        self.joint_compression = joint_compression
        self._exactly = compat is not None

    def compress_by_threshold(self, val: NDArray[Any], threshold: float, minimum_sparsity_percentile: float) -> Any:
        """Prunes what is not above a threshold; None where that leaves too much."""
        if self._exactly:
            kept = exactly.by_threshold(_checked(val), threshold)
        else:
            kept = ops.compress(val, Threshold(threshold))
        return None if kept.sparsity < minimum_sparsity_percentile else _params(kept)

    def compress_by_magnitude(
        self, val: NDArray[Any], target_sparsity: float, block_size: int | None = None, dim: int | None = None
    ) -> Any:
        """Prunes weights or blocks; None where blocks would be longer than half of the channels."""
        if block_size is not None and dim is not None and block_size > val.shape[dim] / 2:
            return None
        if block_size is None or dim is None:
            if self._exactly:
                return _params(exactly.by_magnitude(_checked(val), target_sparsity))
            return _params(_compress(val, Unstructured(target_sparsity)))
        if self._exactly:
            return _params(exactly.by_block(_checked(val), target_sparsity, block_size, dim))
        return _params(_compress(val, Block(block_size, target_sparsity, axis=dim)))

    def compress_by_nm_sparsity(self, val: NDArray[Any], n_m_ratio: tuple[int, int], dim: int) -> Any:
        """Prunes n in every m; None where m is longer than half of the channels."""
        zeros, of = n_m_ratio
        if of > val.shape[dim] / 2:
            return None
        if self._exactly:
            return _params(exactly.by_n_m(_checked(val), zeros, of, dim))
        return _params(_compress(val, NM(zeros=zeros, of=of, axis=dim)))


def _compress(val: NDArray[Any], chosen: Pattern) -> BitmaskArray:
    """What the pattern keeps, without zeros."""
    return exactly.without_zeros(val, ops.compress(val, chosen))


def _checked(val: NDArray[Any]) -> NDArray[Any]:
    if val.dtype not in (np.float32, np.float16):
        raise FastSparseError(f'compat="coremltools" is for float32 and float16, got {val.dtype}')
    return val


def _params(kept: BitmaskArray) -> Any:
    return SparseParamsIos16(*to_flat(kept))
