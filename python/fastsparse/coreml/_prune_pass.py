"""coremltools' pass for pruning, with its selection replaced. Importing it imports coremltools."""

from dataclasses import replace
from typing import Any

import numpy as np
from coremltools.optimize._utils import SparseParamsIos16
from coremltools.optimize.coreml import OpMagnitudePrunerConfig, OpThresholdPrunerConfig, OptimizationConfig
from coremltools.optimize.coreml._quantization_passes import prune_weights
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError
from fastsparse.coreml import _coremltools_select as exactly
from fastsparse.coreml._params import to_flat
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, Nonzero, Pattern, Threshold, TopK, Unstructured

__all__ = ["PatternConfig", "Pruner", "config_for"]


class PatternConfig(OpMagnitudePrunerConfig):  # type: ignore[misc]  # coremltools is not typed
    """A pattern of ours in the place of a config: which weights coremltools looks at is left to the base class."""

    def __init__(self, pattern: Pattern) -> None:
        anywhere = isinstance(pattern, Threshold | Nonzero) or (
            isinstance(pattern, Unstructured) and pattern.per == "tensor"
        )
        structure = {} if anywhere else {"block_size": 2, "dim": 0}  # then only convolutions and linear layers
        super().__init__(target_sparsity=0.0, **structure)
        self.pattern = pattern

    @classmethod
    def of(cls, pattern: Pattern) -> OptimizationConfig:
        """The config that prunes every weight by the pattern."""
        return OptimizationConfig(cls(pattern))

    def _check_const_op_is_valid(self, op: Any) -> bool:
        """As the base class, which knows weights that are quantised or palettised only without a structure."""
        if not self._is_structural_pruning():
            return True
        weight = op.outputs[0]
        kinds = self._SUPPORTED_OPS_FOR_STRUCTURAL_PRUNING
        return all(
            name in kinds.get(child.op_type, ())
            for child in weight.child_ops
            for name, var in child.inputs.items()
            if var is weight
        )

    def __str__(self) -> str:
        return str(self.pattern)


def config_for(pattern: Pattern) -> OptimizationConfig:
    """What coremltools calls a pattern.

    Raises
    ------
    FastSparseError
        If it has no such thing.
    """
    dim = getattr(pattern, "axis", 0) % 2 if getattr(pattern, "axis", 0) in (-1, 0, 1) else None
    if isinstance(pattern, Unstructured) and pattern.per == "tensor":
        return OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=float(pattern.sparsity)))
    if isinstance(pattern, Threshold):
        return OptimizationConfig(OpThresholdPrunerConfig(threshold=float(pattern.value)))
    if isinstance(pattern, NM) and dim is not None:
        return OptimizationConfig(OpMagnitudePrunerConfig(n_m_ratio=(pattern.zeros, pattern.of), dim=dim))
    if isinstance(pattern, Block) and pattern.norm == "l2":
        size, dim = (pattern.shape, dim) if isinstance(pattern.shape, int) else (pattern.shape[0], 0)
        along = isinstance(pattern.shape, int) or pattern.shape[1:] == (1,)
        if along and dim is not None and size > 1:
            sparsity = float(pattern.sparsity)
            return OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=sparsity, block_size=size, dim=dim))
    raise FastSparseError(f'config: {pattern!r} is nothing that coremltools has; leave out compat="coremltools"')


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
        self._pattern: Pattern | None = None
        self._bits = 0

    def transform_op(self, op: Any) -> None:
        """Prunes a weight. An error names it, and the layer that it belongs to."""
        config = self.config._get_const_op_config(op)
        self._pattern = config.pattern if isinstance(config, PatternConfig) else None
        self._bits = _stored_bits(op)
        try:
            structured = isinstance(config, OpMagnitudePrunerConfig) and config._is_structural_pruning()
            if structured and self._pattern is None and op.op_type != "const":
                hint = "give the pattern, such as '2:4' or '75%/4x1'"
                raise FastSparseError(f"config: coremltools has no structure for weights that are compressed; {hint}")
            super().transform_op(op)
        except FastSparseError as error:
            layers = ", ".join(f"{child.op_type} {child.name!r}" for child in op.outputs[0].child_ops)
            raise FastSparseError(f"{layers or 'no layer'}, weight {op.name!r}: {error}") from None

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
        """Prunes weights or blocks; None where blocks would be longer than half of the channels.

        By a pattern, if there is one; None where what it makes is no smaller.
        """
        if self._pattern is not None:
            kept = _compress(val, _along_channels(self._pattern))
            return _params(kept) if kept.nnz * self._bits + val.size < val.size * self._bits else None
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


def _stored_bits(op: Any) -> int:
    """Of an element of a weight, as it is stored: dense, quantised or palettised."""
    inputs = {"constexpr_blockwise_shift_scale": "data", "constexpr_lut_to_dense": "indices"}
    stored = op.inputs[inputs[op.op_type]] if op.op_type in inputs else op.outputs[0]
    return int(stored.dtype.get_bitwidth())


def _along_channels(chosen: Pattern) -> Pattern:
    """The pattern with the input channels in the place of the last axis, which for a convolution is a kernel's."""
    if isinstance(chosen, NM | TopK) or (isinstance(chosen, Block) and isinstance(chosen.shape, int)):
        return replace(chosen, axis=1) if chosen.axis == -1 else chosen
    return chosen


def _compress(val: NDArray[Any], chosen: Pattern) -> BitmaskArray:
    """What the pattern keeps, without zeros."""
    return exactly.without_zeros(val, ops.compress(val, chosen))


def _checked(val: NDArray[Any]) -> NDArray[Any]:
    if val.dtype not in (np.float32, np.float16):
        raise FastSparseError(f'compat="coremltools" is for float32 and float16, got {val.dtype}')
    return val


def _params(kept: BitmaskArray) -> Any:
    return SparseParamsIos16(*to_flat(kept))
