"""Pruning a whole model with calibration data: one block after the other, each on the outputs of those before it."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

import fastsparse as fs
from fastsparse import calibration
from fastsparse._errors import FastSparseError
from fastsparse.calibration import Factor, Gram, Statistics, _products, allocation
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._sections import Allocation, Calibration, Method
from fastsparse.patterns import Pattern, Unstructured
from fastsparse.torch._blocks import Place, run
from fastsparse.torch._layers import Expert, Layer, layers_of
from fastsparse.torch._places import error_context
from fastsparse.torch._products import TorchProducts
from fastsparse.torch._report import LayerReport, ModelReport
from fastsparse.torch._walk import Ticks, walk

__all__ = ["LayerReport", "ModelReport", "prune_at", "prune_model"]

_GRID = np.linspace(0, 1, 21)
"""Sparsities at which the allocation by loss measures each layer."""


def prune_model(
    model: nn.Module,
    pattern: str | Pattern | Recipe,
    batches: Iterable[Any] | Statistics,
    *,
    method: str = "sparsegpt",
    refine: int = 10,
    sequential: bool = True,
    clip: float | None = None,
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
    `nn.Linear`, transformers' `Conv1D`, `nn.Conv1d` and `nn.Conv2d` of one group, whose Gram matrix is that of their
    patches, and experts that are slices of one parameter, each on the tokens that it is multiplied with.

    Parameters
    ----------
    model : nn.Module
        On the CPU, float32, float16 or bfloat16. Blocks are the modules of a `nn.ModuleList` of one class. What is in
        none is pruned on the inputs of the whole model. A model without blocks is one block.
    pattern : Pattern, str or Recipe
        Unstructured, n:m, top-k or blocks along the rows of each weight, as the method takes it. A recipe has one for
        each layer, and may have another method for some; its sections stand for the arguments that they describe.
    batches : iterable
        What the model's forward takes: a tensor, a tuple of arguments, or a dict of keywords. Where one holds an
        `attention_mask` of two dimensions, tokens that it masks are left out; of a decoder after an encoder those that
        `decoder_attention_mask` masks. Tokens that a router has picked out for an expert are counted as they come.
    method : {"sparsegpt", "wanda", "alps", "magnitude"}
        See `fastsparse.calibration`.
    refine : int
        Steps of `calibration.refine` afterwards; 0 for none. Magnitude is never refined.
    sequential : bool
        Whether each block sees what pruning the blocks before it makes of its input. Otherwise all Gram matrices are
        collected in one forward of the dense model, and are held at once.
    clip : float, optional
        Tokens whose input of a layer has more than so many times the median norm count as if it had that many, as in
        `calibration.Gram`. 2 is a good value for language models, whose first tokens can outweigh all others.
    damping, block_size
        As in `calibration.sparsegpt`.
    allocation : {"uniform", "owl", "loss"}
        How an unstructured sparsity is spread over the layers; the total is exact, up to the rounding in each row where
        the method or the pattern counts by rows. The others than "uniform" take a forward of the dense model more.
    exclude : sequence of str
        Expressions; weights of such a name stay dense.
    progress : callable, optional
        Called with layers done, layers in all, and the name of the layer at hand.

    Returns
    -------
    ModelReport
        A row for each parameter; for each expert one, ``name[3]``, where a parameter holds several.

    Raises
    ------
    FastSparseError
        If an argument is none of these, no weight is to be pruned, there are no batches, a layer's inputs hold NaN or
        infinity, two layers are given the same tensor in some calls and not in others, the pattern does not fit, or
        blocks cannot be run one by one. Layers before the one that is named have been pruned by then.

    Warns
    -----
    RuntimeWarning
        Once, if there are fewer tokens than four times the columns of a layer, about the one that is worst off; with
        the same tokens for all, the widest.

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
    if isinstance(batches, Tensor | Mapping) and not isinstance(batches, Statistics):
        raise FastSparseError(f"batches: one {type(batches).__name__} is a single batch; put it in a list")
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise FastSparseError(f"batches: expected what the model's forward takes, in a list, got {batches!r}")
    if isinstance(exclude, str):
        raise FastSparseError(f"exclude: expected a list of expressions, got {exclude!r}")
    given = batches if isinstance(batches, Statistics) else list(batches)
    at = next((at for at, batch in enumerate(given) if isinstance(batch, np.ndarray)), None)
    if at is not None:
        raise FastSparseError(f"batches: number {at} is a NumPy array; expected tensors (torch.from_numpy)")
    recipe = pattern if isinstance(pattern, Recipe) else Recipe.of(pattern)
    recipe = replace(
        recipe,
        exclude=(*recipe.exclude, *exclude),
        calibration=recipe.calibration or Calibration(sequential=sequential, clip=clip),
        method=recipe.method or Method(method, refine, damping, block_size),
        allocation=recipe.allocation or Allocation(allocation),
    )
    return prune_at(model, recipe, given, lambda label: nullcontext(Place()), Ticks(progress, lambda layer: 1))


Places = Callable[[str], AbstractContextManager[Place]]
"""Where the weights are while something is done with all of them: "allocate" or "prune"."""


def prune_at(
    model: nn.Module,
    recipe: Recipe,
    batches: Sequence[Any] | Statistics,
    places: Places,
    ticks: Ticks,
) -> ModelReport:
    """What `prune_model` does, wherever the weights are. The recipe has all its sections."""
    started = time.perf_counter()
    assert recipe.calibration is not None, "it has all its sections"
    check(recipe, batches)
    layers, rows = layers_of(model, recipe)
    patterns = {name: layer.pattern for name, layer in layers.items()}
    with run(model), _products.using(TorchProducts()):
        if recipe.allocation is not None and recipe.allocation.kind != "uniform":
            with places("allocate") as place:
                patterns.update(_allocate(model, layers, recipe, batches, place))
        with places("prune") as place:
            work = _Work(recipe, layers, patterns, rows, place, ticks)
            given = recipe.calibration
            empty = partial(Gram, clip=given.clip)
            walk(model, batches, layers, work.prune, place, dense=not given.sequential, empty=empty)
    _warn_of_few_tokens(layers, rows)
    return ModelReport(tuple(rows.values()), time.perf_counter() - started)


def check(recipe: Recipe, batches: Sequence[Any] | Statistics) -> None:
    """Refuses what cannot be done, whatever the model."""
    check_recipe(recipe)
    if not batches:
        raise FastSparseError("batches: there are none; at least one is needed for the inputs of the layers")
    clip = None if recipe.calibration is None else recipe.calibration.clip
    if isinstance(batches, Statistics) and clip not in (None, batches.clip):
        theirs = "without" if batches.clip is None else f"with {batches.clip:g}"
        raise FastSparseError(
            f"clip: {clip:g} with statistics that were collected {theirs}; collect them with the same"
        )


def check_recipe(recipe: Recipe) -> None:
    """Refuses recipes that pruning with calibration data does not take."""
    allocation = recipe.allocation
    if allocation is not None and allocation.kind != "uniform":
        if not isinstance(recipe.default, Unstructured):
            raise FastSparseError(
                f'allocation: "{allocation.kind}" spreads an unstructured sparsity, not "{recipe.default}"'
            )
        sparsity = recipe.default.sparsity
        for name, bound, room in (
            ("min", allocation.least, allocation.least <= sparsity),
            ("max", allocation.most, sparsity <= allocation.most),
        ):
            if not room:
                raise FastSparseError(f"[allocation] {name}: with {bound:g} for each layer {sparsity:g} is not reached")
    for chosen in (recipe.default, *(rule.pattern for rule in recipe.rules)):
        if isinstance(chosen, fs.Threshold | fs.Nonzero):
            raise FastSparseError(f'pattern: "{chosen}" does not rank weights; expected a share, n:m, top-k or blocks')
    if recipe.scope != "tensor":
        raise FastSparseError(f"scope: {recipe.scope!r} ranks by magnitude; an [allocation] spreads zeros over layers")


def _warn_of_few_tokens(layers: Mapping[str, Layer], rows: Mapping[str, LayerReport]) -> None:
    """One warning, about the layer that saw the fewest tokens for its columns."""
    used = [row for row in rows.values() if row.method not in (None, "magnitude") and row.reason is None]
    worst = min(used, key=lambda row: row.tokens / layers[row.name].cols, default=None)
    if worst is not None and worst.tokens < 4 * layers[worst.name].cols:
        cols = layers[worst.name].cols
        warnings.warn(
            f"layer {worst.name!r}: {worst.tokens} tokens are few for {cols} columns; at least {4 * cols} are advised",
            RuntimeWarning,
            stacklevel=4,
        )


def _allocate(
    model: nn.Module, layers: Mapping[str, Layer], recipe: Recipe, batches: Sequence[Any] | Statistics, place: Place
) -> dict[str, Pattern]:
    """The pattern of each layer that no rule decides about, by what a forward of the dense model tells."""
    pattern, chosen = recipe.default, recipe.allocation
    assert isinstance(pattern, Unstructured), "checked"
    assert chosen is not None, "it has all its sections"
    free = {name: layer for name, layer in layers.items() if recipe.is_default(layer.parameter)}

    def measure(some: Mapping[str, Layer], grams: Mapping[str, Gram]) -> None:
        for name, layer in some.items():
            if layer.is_unknown:
                continue
            if name not in grams:
                raise FastSparseError(f"allocation: layer {name!r} saw no token; exclude it, or use uniform ratios")
            norms = grams[name].norms
            owl = chosen.kind == "owl"
            place.notes[name] = (
                allocation.outliers(layer.matrix(), norms, m=chosen.m) if owl else _losses(layer.matrix(), norms)
            )

    assert recipe.calibration is not None, "it has all its sections"
    empty = partial(Gram, diagonal=True, clip=recipe.calibration.clip)
    walk(model, batches, free, measure, place, dense=True, empty=empty)
    free = {name: layer for name, layer in free.items() if not layer.is_unknown}
    sizes = [layer.rows * layer.cols for layer in free.values()]
    found = [place.notes[name] for name in free]
    bounds = {"least": chosen.least, "most": chosen.most}
    if chosen.kind == "owl":
        ratios = allocation.owl(found, sizes, pattern.sparsity, spread=chosen.spread, **bounds)
    else:
        ratios = allocation.loss(found, _GRID, sizes, pattern.sparsity, **bounds)
    return {name: Unstructured(ratio, per=pattern.per) for name, ratio in zip(free, ratios, strict=True)}


def _losses(matrix: NDArray[Any], norms: NDArray[np.float64]) -> list[float]:
    """The share of the layer's energy, by `(|w|·‖x‖)²`, that each sparsity of the grid takes."""
    energies = np.sort(np.square(matrix * norms.astype(np.float32)), axis=None)
    sums = np.concatenate(([0.0], np.cumsum(energies, dtype=np.float64)))
    losses: list[float] = (sums[np.rint(_GRID * len(energies)).astype(np.int64)] / max(sums[-1], 1e-300)).tolist()
    return losses


class _Work:
    """The layers to prune, and how."""

    def __init__(
        self,
        recipe: Recipe,
        layers: Mapping[str, Layer],
        patterns: Mapping[str, Pattern],
        rows: dict[str, LayerReport],
        place: Place,
        ticks: Ticks,
    ) -> None:
        assert recipe.method is not None, "it has all its sections"
        self._method, self._layers, self._patterns = recipe.method, layers, patterns
        self._rows, self._place, self._ticks = rows, place, ticks
        rows.update(
            (name, LayerReport(**{**note, "shape": tuple(note["shape"])})) for name, note in place.notes.items()
        )
        ticks.begin("pruning", layers, place.notes)
        self._most = max((rows[name].tokens for name in place.notes), default=0)
        self._factor: tuple[Gram, Factor] | None = None

    def prune(self, layers: Mapping[str, Layer], grams: dict[str, Gram]) -> None:
        """Prunes these layers, by magnitude those that no batch has reached. A Gram is freed after its last layer."""
        self._most = max([self._most, *(gram.tokens for gram in grams.values())])
        for name, layer in layers.items():
            if isinstance(layer, Expert) and layer.is_unknown:
                # Nothing says that they are experts at all: one row for the parameter.
                del self._rows[name]
                whole = layer.stacked
                self._rows[whole.name] = LayerReport(whole.name, tuple(whole.weight.shape), reason=layer.unseen)
                self._ticks.tick(layer)
            else:
                gram = grams.pop(name, None)
                shared = gram is not None and any(other is gram for other in grams.values())
                self._prune(layer, gram, shared=shared)
                if not shared:
                    self._factor = None

    def _prune(self, layer: Layer, gram: Gram | None, *, shared: bool) -> None:
        w, pattern = layer.matrix(), self._patterns[layer.name]
        wanted = layer.method or self._method.name
        method, reason, unseen = wanted, None, layer.unseen
        if gram is not None and not gram.norms.any():
            gram, unseen = None, "its inputs were all zero"
        if gram is None:
            method, reason = "magnitude", unseen if wanted != "magnitude" else None
        elif method in ("sparsegpt", "alps") and gram.tokens < min(self._most, 2 * layer.cols):
            method, reason = "wanda", f"it saw {gram.tokens} tokens, too few for {wanted}"
        with error_context(layer.name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tokens are too few for")
            new, mask = self._compute(w, gram, pattern, method, shared=shared)
            error = None if gram is None or gram.diagonal else calibration.layer_error(w, new, gram)
        layer.write(new)
        self._place.store(layer, pattern)
        sparsity = 1 - mask.count / max(w.size, 1)
        row = self._rows[layer.name] = LayerReport(
            layer.name,
            tuple(layer.weight.shape),
            method,
            str(pattern),
            sparsity,
            0 if gram is None else gram.tokens,
            error,
            reason,
        )
        self._place.notes[layer.name] = asdict(row)
        self._ticks.tick(layer)

    def _compute(
        self, w: NDArray[Any], gram: Gram | None, pattern: Pattern, method: str, *, shared: bool
    ) -> tuple[NDArray[Any], fs.Bitmask]:
        """The new weights and what is kept; `shared` if another layer will be pruned by the same Gram."""
        if method == "magnitude" or gram is None:
            mask = fs.select(w, pattern)
            return fs.apply_mask(w, mask), mask
        steps, damping = self._method.refine, self._method.damping
        if gram.diagonal and (steps or method != "wanda"):
            raise FastSparseError(
                f"statistics: they are norms only, and {method if method != 'wanda' else 'refinement'} takes Gram "
                "matrices (fastsparse calibrate --grams); wanda without refinement takes norms"
            )
        if method == "wanda":
            mask = calibration.wanda(w, gram.norms, pattern)
            new = fs.apply_mask(w, mask)
        elif method == "alps":
            return calibration.alps(w, gram, pattern, damping=damping, steps=steps)
        else:
            block_size = self._method.block_size
            # Of a factor that is not shared nothing is left for the refinement, which needs the memory.
            new, mask = calibration.sparsegpt(w, self._factor_of(gram, shared=shared), pattern, block_size=block_size)
        if steps:
            new = calibration.refine(w, gram, mask, start=new, steps=steps, damping=damping)
        return new, mask

    def _factor_of(self, gram: Gram, *, shared: bool) -> Factor:
        """The factor of a Gram, held where it is shared."""
        if self._factor is not None and self._factor[0] is gram:
            return self._factor[1]
        self._factor = None  # its memory is needed
        factor = calibration.factorize(gram, damping=self._method.damping)
        if shared:
            self._factor = (gram, factor)
        return factor
