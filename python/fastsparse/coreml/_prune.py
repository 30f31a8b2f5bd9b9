"""Pruning an ML program as coremltools does."""

from __future__ import annotations

import os
from typing import Any

from fastsparse._errors import FastSparseError
from fastsparse.patterns import Pattern, pattern

__all__ = ["prune_weights"]


def prune_weights(mlmodel: Any, config: Any, *, compat: str | None = None, joint_compression: bool = False) -> Any:
    """What `coremltools.optimize.coreml.prune_weights` does, with the kernels of fastsparse.

    Parameters
    ----------
    mlmodel : coremltools.models.MLModel or path-like
        An ML program, or the path of its package.
    config : coremltools.optimize.coreml.OptimizationConfig, Pattern or str
        Holding `OpMagnitudePrunerConfig` and `OpThresholdPrunerConfig`; which weights they apply to, and which are
        skipped with a warning, coremltools decides. Or a pattern or its short form such as ``"50%"``, ``"2:4"`` and
        ``"75%/4x1"``, for every weight of more than 2048 elements that becomes smaller by it, those of convolutions and
        linear layers where it has a structure. What runs along the last axis by default runs along dimension 1 here,
        the input channels, as in coremltools.
    compat : {None, "coremltools"}
        By default counts are exact, ties keep the lower index and blocks rank by float64 norms. ``"coremltools"`` keeps
        what coremltools keeps, bit for bit, where that is defined: its order among ties of n:m is not for float32 or
        more than 16. Of patterns it has those that a config of coremltools can say.
    joint_compression : bool
        Whether the weights that are pruned are those that coremltools has quantised or palettised, for iOS 18. They are
        ranked by what they stand for, and become `constexpr_sparse_blockwise_shift_scale` or `constexpr_lut_to_sparse`
        before `constexpr_sparse_to_dense`. The other way round, coremltools' own functions take what is pruned here,
        with their `joint_compression=True`. Patterns with a structure need to be given as such.

    Returns
    -------
    coremltools.models.MLModel
        A new model, whose weights are `constexpr_sparse_to_dense`.

    Raises
    ------
    FastSparseError
        If `compat` is something else, `mlmodel` is no ML program, the pattern is not one, does not fit a weight or with
        ``compat="coremltools"`` cannot be said; if a weight holds NaN, or with ``compat="coremltools"`` is not float32
        or float16. The message names the layer.
    FileNotFoundError
        If there is nothing at the path.
    """
    from coremltools.models.utils import _apply_graph_pass  # optional, and seconds to import

    from fastsparse.coreml._prune_pass import PatternConfig, Pruner, config_for

    if compat not in (None, "coremltools"):
        raise FastSparseError(f'compat: expected None or "coremltools", got {compat!r}')
    if isinstance(config, str | Pattern):
        chosen = pattern(config)
        config = PatternConfig.of(chosen) if compat is None else config_for(chosen)
    model = _opened(mlmodel)
    kind = model.get_spec().WhichOneof("Type")
    if kind != "mlProgram":
        raise FastSparseError(f'mlmodel: a {kind}, no ML program; convert it with convert_to="mlprogram"')
    if model._is_multifunction():
        raise FastSparseError("mlmodel: coremltools prunes no models of several functions")
    return _apply_graph_pass(model, Pruner(config, compat, joint_compression))


def _opened(mlmodel: Any) -> Any:
    """The model, read from its path where that is given; it is not compiled, which only macOS could."""
    if not isinstance(mlmodel, str | os.PathLike):
        return mlmodel
    from coremltools.models import MLModel

    path = os.fspath(mlmodel)
    os.stat(path)
    if path.rstrip(os.sep).endswith(".mlmodelc"):
        raise FastSparseError(f"mlmodel: {path} is compiled; name the .mlpackage that it was made from")
    return MLModel(path, skip_model_load=True)
