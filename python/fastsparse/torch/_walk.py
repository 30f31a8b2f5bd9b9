"""Going through a model, block by block, with what goes into each of its layers."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastsparse._errors import FastSparseError
from fastsparse.calibration import Gram, Statistics
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.torch._blocks import (
    Call,
    NotOneByOneError,
    Place,
    Stack,
    Tensors,
    capture,
    forward,
    forward_after,
    forward_until,
    stacks_of,
)
from fastsparse.torch._experts import ProductsWithExperts
from fastsparse.torch._layers import Expert, Layer
from fastsparse.torch._places import error_context
from fastsparse.torch._tensors import as_array

__all__ = ["Ticks", "grams_of", "module_of", "walk"]


def grams_of(
    layers: Mapping[str, Layer],
    calls: Iterable[Callable[[], Any]],
    batches: Sequence[Any],
    stacks: Sequence[Stack],
    *,
    empty: Callable[[int], Gram] = Gram,
) -> dict[str, Gram]:
    """The Gram matrix of the inputs of each layer, over all calls; layers that are given the same tensors share one.

    Layers that saw no token have none.
    """
    grams: dict[str, Gram] = {}
    shared = _Shared()
    masks = _Masks(stacks)

    def note(layer: Layer, x: Tensor) -> None:
        if shared.leads(layer, x):
            gram = grams.setdefault(layer.name, empty(layer.cols))
            with error_context(layer.name):
                gram.update(as_array(layer.tokens(x, masks.of(layer, x)).float()))

    experts = [layer for layer in layers.values() if isinstance(layer, Expert)]
    modules = [layer for layer in layers.values() if not isinstance(layer, Expert)]
    handles = [_hook(layer, note) for layer in modules]
    handles += masks.hooks()
    try:
        for call, batch in zip(calls, batches, strict=True):
            masks.batch = batch
            with ProductsWithExperts(experts, note) if experts else nullcontext():
                call()
            shared.end()
    finally:
        for handle in handles:
            handle.remove()
    return {name: grams[leader] for name, leader in shared.leaders.items() if grams[leader].tokens}


def _hook(layer: Layer, note: Callable[[Layer, Tensor], None]) -> Any:
    """Has a layer's only argument noted before each call of its module."""
    return layer.module.register_forward_pre_hook(
        lambda module, args, kwargs: note(layer, (*args, *kwargs.values())[0]), with_kwargs=True
    )


@dataclass
class _Input:
    """A tensor at one point of a forward, and the layers that were given it; the first of them leads."""

    tensor: Tensor
    version: int
    layers: list[str]


class _Shared:
    """Which layers are given the same tensors, so that one Gram matrix is that of all of them.

    A layer follows another one from its first call on, or never. Each call of the one then has to go with a call of the
    other on the same tensor, unchanged in between; `end` checks that nothing is left over.
    """

    def __init__(self) -> None:
        self.leaders: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._inputs: list[_Input] = []

    def leads(self, layer: Layer, x: Tensor) -> bool:
        """Whether this input of a layer is to be counted: it is not that of the layer which this one follows."""
        name = layer.name
        # Convolutions see patches. The tensors of inference mode have no version, so that changes do not show.
        shares = not isinstance(layer.module, nn.Conv1d | nn.Conv2d) and not x.is_inference()
        given = [seen for seen in self._inputs if shares and seen.tensor is x and seen.version == x._version]
        found = next((seen for seen in given if name not in seen.layers and self._may_follow(name, seen)), None)
        leader = self.leaders.setdefault(name, name if found is None else found.layers[0])
        self._calls[name] += 1
        if found is not None:
            found.layers.append(name)
        elif leader != name:
            self._refuse(name)
        elif shares:
            self._inputs.append(_Input(x, x._version, [name]))
        return leader == name

    def _may_follow(self, name: str, seen: _Input) -> bool:
        leader = seen.layers[0]
        return self.leaders[name] == leader if name in self.leaders else self._calls[leader] == 1

    def end(self) -> None:
        """Ends a batch."""
        self._inputs.clear()
        for name, leader in self.leaders.items():
            if self._calls[name] != self._calls[leader]:
                self._refuse(name)

    def _refuse(self, name: str) -> None:
        raise FastSparseError(
            f"layer {name!r}: its input is that of {self.leaders[name]!r} in some calls and not in others; "
            "exclude one of them"
        )


class _Masks:
    """Which tokens are padding: `attention_mask` of a batch says it, and of a decoder `decoder_attention_mask`.

    A decoder is the second stack where a batch has arguments for one. What its blocks are given besides their own input
    comes from the encoder.
    """

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self.batch: Any = None
        self._stacks = stacks
        self._second = stacks[1] if len(stacks) > 1 else None
        self._from_first: list[Tensor] = []

    def hooks(self) -> list[Any]:
        """Hooks that note what the blocks of the second stack are given."""
        blocks = self._second.blocks.values() if self._second is not None else ()
        return [block.register_forward_pre_hook(self._note, with_kwargs=True) for block in blocks]

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        self._from_first = given[1:]

    def of(self, layer: Layer, x: Tensor) -> Tensor | None:
        """The mask of the input of a layer, if it has one."""
        if not hasattr(self.batch, "keys"):
            return None
        batch, name = {**self.batch}, "attention_mask"
        if self._second is not None and any(str(key).startswith("decoder_") for key in batch):
            if not any(_is_in(layer.name, stack.name) for stack in self._stacks):
                return None  # nothing says which of the two masks it is
            if _is_in(layer.name, self._second.name) and all(x is not other for other in self._from_first):
                name = "decoder_attention_mask"
        mask = batch.get(name)
        return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _forwards(model: nn.Module, batches: Iterable[Any]) -> list[Callable[[], Any]]:
    """A call for each batch that runs the whole model on it."""
    return [partial(forward, model, batch) for batch in batches]


class Ticks:
    """Tells a caller how far the work on some layers is.

    Parameters
    ----------
    progress : callable, optional
        Called with what is done, what there is in all, and the layer at hand.
    weigh : callable
        What a layer counts.
    """

    def __init__(self, progress: Progress | None, weigh: Callable[[Layer], int]) -> None:
        self._progress, self._weigh = progress, weigh
        self._ticker = Ticker(None, [])

    def begin(self, phase: str, layers: Mapping[str, Layer], done: Container[str]) -> None:
        """These are all layers, and some of them are done."""
        self._ticker = Ticker(self._progress, [(phase, sum(map(self._weigh, layers.values())))])
        for name, layer in layers.items():
            if name in done:
                self.tick(layer)

    def tick(self, layer: Layer) -> None:
        """Another one is done."""
        self._ticker.tick(self._weigh(layer), layer.name)


Visit = Callable[[Mapping[str, Layer], dict[str, Gram]], None]
"""Called with some layers and the Gram matrices of those that saw a token; it may take them out of the dict."""


def walk(
    model: nn.Module,
    batches: Sequence[Any] | Statistics,
    layers: Mapping[str, Layer],
    visit: Visit,
    place: Place,
    *,
    dense: bool = False,
    empty: Callable[[int], Gram] = Gram,
) -> list[Stack]:
    """Visits all layers: those before the blocks, stack by stack and block by block, those after.

    Where the whole model is in memory and every layer is to see what the dense model gives, all are visited at once.
    With stored statistics in the place of batches nothing is run.

    Parameters
    ----------
    visit : callable
        Called for each block with the Gram matrices of its layers, while its weights are there; it may change them.
    place : Place
        Where the weights are.
    dense : bool
        Whether a block sees what the blocks before it gave before they were visited; by default, what they give after.
    empty : callable
        Makes the Gram of so many columns, before its first update.

    Returns
    -------
    list of Stack
        The stacks with the outputs of their last blocks.

    Raises
    ------
    NotOneByOneError
        If the blocks of the model cannot be run one by one.
    """
    stacks = stacks_of(model)
    if isinstance(batches, Statistics):
        _stored(model, batches, layers, visit, place)
        return []
    if dense and place.whole:
        with place.rest():
            if not place.finished(WHOLE):
                visit(layers, grams_of(layers, _forwards(model, batches), batches, stacks, empty=empty))
                place.finish(WHOLE, None)
        return []
    if len(stacks) > 1 and not place.whole:
        raise NotOneByOneError(f"it has the blocks {stacks[0].name!r} and {stacks[1].name!r}")
    outside = {name: layer for name, layer in layers.items() if not any(_is_in(name, stack.name) for stack in stacks)}
    with place.rest():
        early = _early(model, outside, stacks, batches[0])
        if early and not place.finished(BEFORE):
            calls = (partial(forward_until, model, stacks, batch) for batch in batches)
            visit(early, grams_of(early, calls, batches, stacks, empty=empty))
            place.finish(BEFORE, None)
    for at, stack in enumerate(stacks):
        hidden = place.tensors(stack.name)
        with place.rest():
            capture(model, stack, batches, hidden, place, stacks[:at])
        for path in stack.blocks:
            if place.finished(path):
                hidden = place.outputs(path)
            else:
                own = {name: layer for name, layer in layers.items() if _is_in(name, path)}
                with place.block(path):
                    hidden = _block(stacks, stack, path, own, hidden, batches, visit, place, dense=dense, empty=empty)
            stack.calls[path] = []
        stack.outputs = hidden
    late = {name: layer for name, layer in outside.items() if name not in early}
    if late and not place.finished(AFTER):
        with place.rest():
            calls = (partial(forward_after, model, stacks, batch, at) for at, batch in enumerate(batches))
            visit(late, grams_of(late, calls, batches, stacks, empty=empty))
            place.finish(AFTER, None)
    return stacks


BEFORE, AFTER, WHOLE = "before all blocks", "after all blocks", "the whole model"
"""The stages of the layers that are in no block, and of all layers at once."""


def _stored(model: nn.Module, statistics: Statistics, layers: Mapping[str, Layer], visit: Visit, place: Place) -> None:
    """Visits all layers with what a file says of their inputs."""
    rest = dict(layers)
    for path in (path for stack in stacks_of(model) for path in stack.blocks):
        own = {name: rest.pop(name) for name in layers if _is_in(name, path)}
        if own and not place.finished(path):
            with place.block(path):
                visit(own, _grams_in(statistics, own))
                place.finish(path, None)
                _release(statistics, own)
    if rest and not place.finished(BEFORE):
        with place.rest():
            visit(rest, _grams_in(statistics, rest))
            place.finish(BEFORE, None)
            _release(statistics, rest)


def _grams_in(statistics: Statistics, layers: Mapping[str, Layer]) -> dict[str, Gram]:
    grams: dict[str, Gram] = {}
    shared: dict[str, Gram] = {}
    for name, layer in layers.items():
        found = statistics.get(module_of(name))
        if found is None:
            raise FastSparseError(f"statistics: {statistics.path} has nothing of layer {name!r}; exclude it")
        if len(found.norms) != layer.cols:
            raise FastSparseError(
                f"statistics: {statistics.path} has {len(found.norms)} inputs of layer {name!r}, the model {layer.cols}"
            )
        if found.tokens:
            grams[name] = shared.setdefault(found.owner or name, found.as_gram())
    return grams


def _release(statistics: Statistics, layers: Iterable[str]) -> None:
    """Gives the memory of what was read of these layers back."""
    for name in layers:
        statistics.release(module_of(name))


def module_of(name: str) -> str:
    """The layer that a weight belongs to, as statistics call it."""
    return name.removesuffix(".weight")


def _is_in(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _block(
    stacks: Sequence[Stack],
    stack: Stack,
    path: str,
    own: Mapping[str, Layer],
    hidden: Tensors,
    batches: Sequence[Any],
    visit: Visit,
    place: Place,
    *,
    dense: bool,
    empty: Callable[[int], Gram],
) -> Tensors:
    """Visits the layers of a block; returns its outputs."""
    outputs = place.tensors(path)

    def calls(taken: Tensors | None) -> Iterable[Callable[[], None]]:
        pairs = zip(stack.calls[path], hidden, strict=True)
        return (partial(_advance, stack.blocks[path], call, x, taken) for call, x in pairs)

    if own:
        visit(own, grams_of(own, calls(outputs if dense else None), batches, stacks, empty=empty))
    if not own or not dense:
        for call in calls(outputs):
            call()
    place.finish(path, outputs)
    return outputs


def _advance(block: nn.Module, call: Call, hidden: Tensor, outputs: Tensors | None) -> None:
    output = call.run(block, hidden.clone())  # the block may change it in place
    if outputs is not None:
        outputs.append(output)


def _early(model: nn.Module, outside: Mapping[str, Layer], stacks: Sequence[Stack], batch: Any) -> dict[str, Layer]:
    """The layers outside of all blocks that run before the first of them; all where there are no blocks."""
    if not stacks or not outside:
        return dict(outside)
    early: dict[str, Layer] = {}

    def note(layer: Layer, x: Tensor) -> None:
        early[layer.name] = layer

    handles = [_hook(layer, note) for layer in outside.values()]
    try:
        forward_until(model, stacks, batch)
    finally:
        for handle in handles:
            handle.remove()
    return early
