"""Pruning a whole model with calibration data: one block after the other, each on the outputs of those before it."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import fastsparse as fs
from fastsparse import calibration
from fastsparse._errors import FastSparseError
from fastsparse.calibration import Gram, allocation
from fastsparse.patterns import Pattern, Unstructured
from fastsparse.torch._blocks import Place, run
from fastsparse.torch._layers import Layer, layers_of
from fastsparse.torch._places import error_context
from fastsparse.torch._report import LayerReport, ModelReport
from fastsparse.torch._walk import forwards, grams_of, walk

__all__ = ["LayerReport", "ModelReport", "prune_model"]

METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
ALLOCATIONS = ("uniform", "owl", "loss")
_GRID = np.linspace(0, 1, 21)
"""Sparsities at which the allocation by loss measures each layer."""


def prune_model(
    model: nn.Module,
    pattern: str | Pattern,
    batches: Iterable[Any],
    *,
    method: str = "sparsegpt",
    refine: int = 10,
    sequential: bool = True,
    damping: float = 0.01,
    block_size: int = 128,
    allocation: str = "uniform",
    exclude: Sequence[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> ModelReport:
    """Prune the layers of a model in place, so that their outputs on these batches change least.

    For each block of the model one forward collects the Gram matrices of its layers (those that share an input share
    one), all of them are pruned, and a second forward makes the input of the next block. Masks are exact:
    ``sparsify(model, "nonzero")`` packs the model afterwards. What is a weight is decided as by `sparsify`; pruned are
    `nn.Linear`, transformers' `Conv1D`, and `nn.Conv1d` and `nn.Conv2d` of one group, whose Gram matrix is that of
    their patches.

    Parameters
    ----------
    model : nn.Module
        On the CPU, float32, float16 or bfloat16. Blocks are the modules of a `nn.ModuleList` of one class. What is in
        none is pruned on the inputs of the whole model. A model without blocks is one block.
    pattern : Pattern or str
        Unstructured, n:m, top-k or blocks along the rows of each weight, as the method takes it.
    batches : iterable
        What the model's forward takes: a tensor, a tuple of arguments, or a dict of keywords. Where one holds an
        `attention_mask` of two dimensions, tokens that it masks are left out; not with an encoder and a decoder, whose
        masks differ: give those no padding.
    method : {"sparsegpt", "wanda", "alps", "magnitude"}
        See `fastsparse.calibration`.
    refine : int
        Steps of `calibration.refine` afterwards; 0 for none. Magnitude is never refined.
    sequential : bool
        Whether each block sees what pruning the blocks before it makes of its input. Otherwise all Gram matrices are
        collected in one forward of the dense model, and are held at once.
    damping, block_size
        As in `calibration.sparsegpt`.
    allocation : {"uniform", "owl", "loss"}
        How an unstructured sparsity is spread over the layers; the total is exact. The others than "uniform" take a
        forward of the dense model more.
    exclude : sequence of str
        Expressions; weights of such a name stay dense.
    progress : callable, optional
        Called with layers done, layers in all, and the name of the layer at hand.

    Returns
    -------
    ModelReport
        A row for each parameter.

    Raises
    ------
    FastSparseError
        If an argument is none of these, no weight is to be pruned, there are no batches, a layer's inputs hold NaN or
        infinity, the pattern does not fit, or blocks cannot be run one by one. Layers before the one that is named have
        been pruned by then.

    Warns
    -----
    RuntimeWarning
        If there are fewer tokens than four times the columns of the widest layer.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    >>> report = prune_model(model, "50%", [torch.randn(512, 64)])
    >>> report.sparsity, [layer.method for layer in report.pruned]
    (0.5, ['sparsegpt', 'sparsegpt'])
    """
    started = time.perf_counter()
    chosen = fs.pattern(pattern) if isinstance(pattern, str) else pattern
    given = list(batches)
    _check_arguments(chosen, method, allocation, refine, given)
    layers, rows = layers_of(model, chosen, exclude)
    work = _Work(method, refine, damping, block_size, layers, rows, progress)
    with run(model):
        if allocation != "uniform":
            work.patterns = _allocate(model, layers, chosen, given, allocation)
        if sequential:
            walk(model, given, layers, work.prune, Place())
        else:
            work.prune(layers, grams_of(layers, forwards(model, given), given))
    return ModelReport(tuple(rows.values()), time.perf_counter() - started)


def _check_arguments(pattern: Pattern, method: str, allocation: str, refine: int, batches: list[Any]) -> None:
    for name, value, known in (("method", method, METHODS), ("allocation", allocation, ALLOCATIONS)):
        if value not in known:
            raise FastSparseError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
        raise FastSparseError(f"refine: expected a number of steps ≥ 0, got {refine!r}")
    if allocation != "uniform" and not isinstance(pattern, Unstructured):
        raise FastSparseError(f'allocation: "{allocation}" spreads an unstructured sparsity, not "{pattern}"')
    if isinstance(pattern, fs.Threshold | fs.Nonzero):
        raise FastSparseError(f'pattern: "{pattern}" does not rank weights; expected a share, n:m, top-k or blocks')
    if not batches:
        raise FastSparseError("batches: there are none; at least one is needed for the inputs of the layers")


def _allocate(
    model: nn.Module, layers: Mapping[str, Layer], pattern: Pattern, batches: list[Any], kind: str
) -> dict[str, Pattern]:
    """The pattern of each layer, by what a forward of the dense model tells."""
    assert isinstance(pattern, Unstructured), "checked"
    grams = grams_of(layers, forwards(model, batches), batches, diagonal=True)
    missing = [name for name in layers if name not in grams]
    if missing:
        raise FastSparseError(f"allocation: layer {missing[0]!r} saw no token; exclude it, or use uniform ratios")
    sizes = [layer.rows * layer.cols for layer in layers.values()]
    if kind == "owl":
        shares = [allocation.outliers(layer.matrix(), grams[name].norms) for name, layer in layers.items()]
        ratios = allocation.owl(shares, sizes, pattern.sparsity)
    else:
        losses = [_losses(layer.matrix(), grams[name].norms) for name, layer in layers.items()]
        ratios = allocation.loss(losses, _GRID, sizes, pattern.sparsity)
    return {name: Unstructured(ratio, per=pattern.per) for name, ratio in zip(layers, ratios, strict=True)}


def _losses(matrix: NDArray[Any], norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the layer's energy, by `(|w|·‖x‖)²`, that each sparsity of the grid takes."""
    energies = np.sort(np.square(matrix * norms.astype(np.float32)), axis=None)
    sums = np.concatenate(([0.0], np.cumsum(energies, dtype=np.float64)))
    losses: NDArray[np.float64] = sums[np.rint(_GRID * len(energies)).astype(np.int64)] / max(sums[-1], 1e-300)
    return losses


class _Work:
    """The layers to prune, and how."""

    def __init__(
        self,
        method: str,
        refine: int,
        damping: float,
        block_size: int,
        layers: dict[str, Layer],
        rows: dict[str, LayerReport],
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.method, self.refine, self.damping, self.block_size = method, refine, damping, block_size
        self.layers, self.rows = layers, rows
        self.patterns: Mapping[str, Pattern] = {name: layer.pattern for name, layer in layers.items()}
        self._progress, self._done = progress, 0
        self._most = 0

    def prune(self, layers: Mapping[str, Layer], grams: Mapping[str, Gram]) -> None:
        """Prunes these layers, by magnitude those that no batch has reached."""
        self._most = max([self._most, *(gram.tokens for gram in grams.values())])
        for name, layer in layers.items():
            self._prune(layer, grams.get(name))

    def _prune(self, layer: Layer, gram: Gram | None) -> None:
        w, pattern = layer.matrix(), self.patterns[layer.name]
        method, reason = self.method, None
        if gram is None or gram.tokens == 0:
            method, reason = "magnitude", "it saw no token" if self.method != "magnitude" else None
        elif method in ("sparsegpt", "alps") and gram.tokens < min(self._most, 2 * layer.cols):
            method, reason = "wanda", f"it saw {gram.tokens} tokens, too few for {self.method}"
        if gram is not None and method != "magnitude" and gram.tokens < 4 * layer.cols and reason is None:
            warnings.warn(
                f"layer {layer.name!r}: {gram.tokens} tokens are few for {layer.cols} columns; "
                f"at least {4 * layer.cols} are advised",
                RuntimeWarning,
                stacklevel=2,
            )
        with error_context(layer.name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tokens are too few for")
            new, mask = self._compute(w, gram, pattern, method)
            error = None if gram is None or not gram.tokens else calibration.layer_error(w, new, gram)
        layer.write(new)
        sparsity = 1 - mask.count / max(w.size, 1)
        self.rows[layer.name] = LayerReport(
            layer.name,
            tuple(layer.module.weight.shape),
            method,
            str(pattern),
            sparsity,
            0 if gram is None else gram.tokens,
            error,
            reason,
        )
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, len(self.layers), layer.name)

    def _compute(
        self, w: NDArray[Any], gram: Gram | None, pattern: Pattern, method: str
    ) -> tuple[NDArray[Any], fs.Bitmask]:
        """The new weights and what is kept."""
        if method == "magnitude" or gram is None:
            mask = fs.select(w, pattern)
            return fs.apply_mask(w, mask), mask
        if method == "wanda":
            mask = calibration.wanda(w, gram.norms, pattern)
            new = fs.apply_mask(w, mask)
        elif method == "alps":
            return calibration.alps(w, gram, pattern, damping=self.damping, steps=self.refine)
        else:
            new, mask = calibration.sparsegpt(w, gram, pattern, damping=self.damping, block_size=self.block_size)
        if self.refine:
            new = calibration.refine(w, gram, mask, start=new, steps=self.refine, damping=self.damping)
        return new, mask
