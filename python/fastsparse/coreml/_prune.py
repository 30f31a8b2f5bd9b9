"""Pruning an ML program as coremltools does."""

from typing import Any

from fastsparse._errors import FastSparseError

__all__ = ["prune_weights"]


def prune_weights(mlmodel: Any, config: Any, *, compat: str | None = None, joint_compression: bool = False) -> Any:
    """What `coremltools.optimize.coreml.prune_weights` does, with the kernels of fastsparse.

    Parameters
    ----------
    mlmodel : coremltools.models.MLModel
        An ML program.
    config : coremltools.optimize.coreml.OptimizationConfig
        Holding `OpMagnitudePrunerConfig` and `OpThresholdPrunerConfig`; which weights they apply to, and which are
        skipped with a warning, coremltools decides.
    compat : {None, "coremltools"}
        By default counts are exact, ties keep the lower index and blocks rank by float64 norms. ``"coremltools"`` keeps
        what coremltools keeps, bit for bit, where that is defined: its order among ties of n:m is not for float32 or
        more than 16.
    joint_compression : bool
        As there.

    Returns
    -------
    coremltools.models.MLModel
        A new model, whose weights are `constexpr_sparse_to_dense`.

    Raises
    ------
    FastSparseError
        If `compat` is something else, a weight holds NaN, or with ``compat="coremltools"`` is not float32 or float16.
    """
    from coremltools.models.utils import _apply_graph_pass  # optional, and seconds to import

    from fastsparse.coreml._prune_pass import Pruner

    if compat not in (None, "coremltools"):
        raise FastSparseError(f'compat: expected None or "coremltools", got {compat!r}')
    if mlmodel._is_multifunction():
        raise FastSparseError("mlmodel: coremltools prunes no models of several functions")
    return _apply_graph_pass(mlmodel, Pruner(config, compat, joint_compression))
