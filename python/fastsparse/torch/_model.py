"""Pruning a whole model with calibration data: one block after the other, each on the outputs of those before it."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import fastsparse as fs
from fastsparse import calibration
from fastsparse._errors import FastSparseError
from fastsparse.calibration import Gram, allocation
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.patterns import Pattern, Unstructured
from fastsparse.torch._blocks import capture, forward, run, stacks_of
from fastsparse.torch._sparsify import error_context, report_row, uses_of
from fastsparse.torch._tensors import as_array, has_memory

__all__ = ["LayerReport", "ModelReport", "prune_model"]

METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
ALLOCATIONS = ("uniform", "owl", "loss")
_GRID = np.linspace(0, 1, 21)
"""Sparsities at which the allocation by loss measures each layer."""


@dataclass(frozen=True)
class LayerReport:
    """One parameter of a model after `prune_model`.

    Attributes
    ----------
    name : str
        Its name in the state dict.
    shape : tuple of int
        Its shape.
    method : str or None
        What pruned it; None where it stays dense.
    pattern : str or None
        Short form of its pattern.
    sparsity : float or None
        Share of zeros, where it was pruned.
    tokens : int
        Tokens that its Gram matrix holds.
    layer_error : float or None
        `calibration.layer_error` on those tokens.
    reason : str or None
        Why it stays dense, or why another method than the one asked for pruned it.
    """

    name: str
    shape: tuple[int, ...]
    method: str | None = None
    pattern: str | None = None
    sparsity: float | None = None
    tokens: int = 0
    layer_error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelReport:
    """What `prune_model` did to each parameter, and how long it took."""

    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def pruned(self) -> tuple[LayerReport, ...]:
        """Those that were pruned."""
        return tuple(layer for layer in self.layers if layer.method is not None)

    @property
    def sparsity(self) -> float:
        """Share of zeros over those that were pruned; 0 where there are none."""
        sizes = [(int(np.prod(layer.shape)), layer.sparsity or 0.0) for layer in self.pruned]
        total = sum(size for size, _ in sizes)
        return sum(size * sparsity for size, sparsity in sizes) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dumps`."""
        return asdict(self)


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
    layers, rows = _layers(model, chosen, exclude)
    work = _Work(method, refine, damping, block_size, layers, rows, progress)
    with run(model):
        if allocation != "uniform":
            work.patterns = _allocate(model, layers, chosen, given, allocation)
        if sequential:
            _by_blocks(model, given, work)
        else:
            work.prune(_grams(layers, _forwards(model, given), given))
        work.prune_unseen()
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


class _Layer:
    """A module with a weight, seen as a matrix of outputs and inputs."""

    def __init__(self, name: str, module: nn.Module, pattern: Pattern) -> None:
        self.name, self.module, self.pattern = name, module, pattern
        self.transposed = type(module).__name__ == "Conv1D"
        weight = self.matrix()
        self.rows, self.cols = weight.shape

    def matrix(self) -> NDArray[Any]:
        """The weight, ``[outputs, inputs]``, float32."""
        weight = self.module.weight.detach().float()
        matrix = weight.T if self.transposed else weight.reshape(len(weight), -1)
        return np.ascontiguousarray(matrix.numpy())

    def write(self, matrix: NDArray[Any]) -> None:
        """Makes this the weight."""
        weight = self.module.weight.data
        new = torch.from_numpy(np.ascontiguousarray(matrix.T if self.transposed else matrix))
        weight.copy_(new.reshape(weight.shape))

    def tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The inputs of the module as ``[tokens, inputs]``, without those that are masked."""
        module = self.module
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return _patches(module, x)
        if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
            x = x[mask.to(torch.bool)]
        return x.reshape(-1, x.shape[-1])


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, position by position."""
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(-2)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        sides = list(module._reversed_padding_repeated_twice)
        x = F.pad(x, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        padding: tuple[int, ...] = (0,) * len(module.kernel_size)
    else:
        padding = tuple(module.padding)
    lead = (1,) if isinstance(module, nn.Conv1d) else ()
    none = (0,) if isinstance(module, nn.Conv1d) else ()
    patches = F.unfold(
        x.float(),
        lead + tuple(module.kernel_size),
        dilation=lead + tuple(module.dilation),
        padding=none + padding,
        stride=lead + tuple(module.stride),
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _layers(
    model: nn.Module, pattern: Pattern, exclude: Sequence[str]
) -> tuple[dict[str, _Layer], dict[str, LayerReport]]:
    """The layers to prune, and a row for each parameter."""
    recipe = Recipe(default=pattern, exclude=tuple(exclude))
    uses = {names[0].name: names for names in uses_of(model)}
    shown = {name: report_row(model, names[0]) for name, names in uses.items()}
    choices = recipe.choose_all({name: (row.dtype, row.shape) for name, row in shown.items()})
    layers: dict[str, _Layer] = {}
    rows: dict[str, LayerReport] = {}
    for name, names in uses.items():
        choice = choices[name]
        reason = choice if isinstance(choice, str) else _obstacle(model, names)
        if reason is None:
            assert isinstance(choice, Pattern)
            layers[name] = _Layer(name, model.get_submodule(names[0].module), choice)
        rows[name] = LayerReport(name, shown[name].shape, reason=reason)
    if not layers:
        raise FastSparseError(f"model: {type(model).__name__} has no weight that is pruned by default")
    return layers, rows


def _obstacle(model: nn.Module, names: Sequence[Any]) -> str | None:
    """Why a weight is not pruned on the inputs of its layer."""
    if len(names) > 1:
        return f"tied to {names[1].name}"
    module, attribute = model.get_submodule(names[0].module), names[0].attribute
    known = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) or type(module).__name__ == "Conv1D"
    if not known or attribute != "weight":
        return f"of a {type(module).__name__}, whose inputs are not captured"
    if getattr(module, "groups", 1) != 1:
        return f"a convolution of {module.groups} groups"
    if not has_memory(module.weight):
        return f"the weight is a {type(module.weight).__name__}, not a plain tensor"
    return None


def _grams(
    layers: Mapping[str, _Layer], calls: Sequence[Callable[[], Any]], batches: Sequence[Any], *, diagonal: bool = False
) -> dict[str, Gram]:
    """The Gram matrix of the inputs of each layer, over all calls; layers that are given one tensor share one."""
    grams: dict[str, Gram] = {}
    leaders: dict[str, str] = {}
    seen: list[tuple[Tensor, str]] = []
    mask: Tensor | None = None

    def note(layer: _Layer, x: Tensor) -> None:
        kind = (type(layer.module), layer.cols) if isinstance(layer.module, nn.Conv1d | nn.Conv2d) else None
        same = (name for other, name in seen if other is x and kind is None)
        leader = next(same, layer.name)
        if leaders.setdefault(layer.name, leader) != leader:
            raise FastSparseError(
                f"layer {layer.name!r}: its input is that of {leader!r} in some batches and not in others"
            )
        if leader == layer.name:
            seen.append((x, layer.name))
            gram = grams.setdefault(layer.name, Gram(layer.cols, diagonal=diagonal))
            with error_context(layer.name):
                gram.update(as_array(layer.tokens(x, mask).float()))

    handles = [layer.module.register_forward_pre_hook(_note(layer, note)) for layer in layers.values()]
    try:
        for call, batch in zip(calls, batches, strict=True):
            mask = _mask(batch)
            call()
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: grams[leader] for name, leader in leaders.items()}


def _note(layer: _Layer, note: Callable[[_Layer, Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: note(layer, args[0])


def _mask(batch: Any) -> Tensor | None:
    """What masks the tokens of a batch. An encoder and a decoder have masks of their own: then none is applied."""
    if not hasattr(batch, "keys") or any(str(key).startswith("decoder_") for key in batch.keys()):  # noqa: SIM118
        return None
    mask = {**batch}.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _by_blocks(model: nn.Module, batches: list[Any], work: "_Work") -> None:
    """Stack by stack and block by block; before and after that the layers that are in none."""
    stacks = stacks_of(model)
    inside = {name: stack.name for name in work.layers for stack in stacks if name.startswith(f"{stack.name}.")}
    whole = _forwards(model, batches)
    outside = {name: layer for name, layer in work.layers.items() if name not in inside}
    early = _early(model, outside, [block for stack in stacks for block in stack.blocks.values()], batches[0])
    if early:
        work.prune(_grams(early, whole, batches))
    for stack in stacks:
        capture(model, stack, batches)
        hidden = stack.inputs
        for path, block in stack.blocks.items():
            own = {name: layer for name, layer in work.layers.items() if name.startswith(f"{path}.")}
            calls = stack.calls[path]
            if own:
                work.prune(
                    _grams(own, [partial(call.run, block, x) for call, x in zip(calls, hidden, strict=True)], batches)
                )
            hidden = [call.run(block, x) for call, x in zip(calls, hidden, strict=True)]
            stack.calls[path] = []
    late = {name: layer for name, layer in outside.items() if name not in early}
    if late:
        work.prune(_grams(late, whole, batches))


def _forwards(model: nn.Module, batches: Iterable[Any]) -> list[Callable[[], Any]]:
    return [partial(forward, model, batch) for batch in batches]


def _early(
    model: nn.Module, outside: Mapping[str, _Layer], blocks: Sequence[nn.Module], batch: Any
) -> dict[str, _Layer]:
    """The layers outside of all blocks that run before the first of them; all where there are no blocks."""
    if not blocks or not outside:
        return dict(outside)
    early: dict[str, _Layer] = {}
    reached: list[bool] = []
    handles = [block.register_forward_pre_hook(lambda *_: reached.append(True)) for block in blocks]

    def note(layer: _Layer, x: Tensor) -> None:
        if not reached:
            early[layer.name] = layer

    handles += [layer.module.register_forward_pre_hook(_note(layer, note)) for layer in outside.values()]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return early


def _allocate(
    model: nn.Module, layers: Mapping[str, _Layer], pattern: Pattern, batches: list[Any], kind: str
) -> dict[str, Pattern]:
    """The pattern of each layer, by what a forward of the dense model tells."""
    assert isinstance(pattern, Unstructured), "checked"
    grams = _grams(layers, _forwards(model, batches), batches, diagonal=True)
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
        layers: dict[str, _Layer],
        rows: dict[str, LayerReport],
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.method, self.refine, self.damping, self.block_size = method, refine, damping, block_size
        self.layers, self.rows = layers, rows
        self.patterns: Mapping[str, Pattern] = {name: layer.pattern for name, layer in layers.items()}
        self._progress, self._done = progress, 0
        self._most = 0

    def prune(self, grams: Mapping[str, Gram]) -> None:
        """Prunes these layers; the others wait for theirs."""
        self._most = max([self._most, *(gram.tokens for gram in grams.values())])
        for name, gram in grams.items():
            self._prune(self.layers[name], gram)

    def prune_unseen(self) -> None:
        """Prunes by magnitude what no batch has reached."""
        for name, layer in self.layers.items():
            if self.rows[name].method is None:
                self._prune(layer, None)

    def _prune(self, layer: _Layer, gram: Gram | None) -> None:
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
