"""The blocks of a model, and what goes into them: found and run without knowing the model.

A stack is a `nn.ModuleList` of modules of one class, as transformers and most other models have one; an encoder with a
decoder has two. The blocks of a stack are run one by one, each on the outputs of the one before it, with whatever other
arguments the model gave to it when it ran as a whole. To learn these the other blocks need not run: a stand-in that
hands its input on is enough, where a first batch has shown that the model does not mind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastsparse._errors import FastSparseError
from fastsparse.patterns import Pattern
from fastsparse.torch._layers import Layer, is_series
from fastsparse.torch._places import is_conv1d

__all__ = [
    "Call",
    "NotOneByOneError",
    "Place",
    "Stack",
    "Tensors",
    "capture",
    "forward",
    "forward_after",
    "forward_until",
    "run",
    "stacks_of",
]


class NotOneByOneError(FastSparseError):
    """The blocks of a model cannot be run one by one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"model: {what}, so blocks cannot be run one by one; pass sequential=False")


class Tensors(Protocol):
    """The inputs of a block, a tensor for each batch: a list, or a file."""

    def append(self, tensor: Tensor, /) -> None:
        """Adds that of another batch."""

    def __getitem__(self, index: int, /) -> Tensor: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class Place:
    """Where the weights of a model are, and the inputs of its blocks: all in memory.

    Another place has the weights there only within `rest` and `block`, and keeps what is finished.

    Attributes
    ----------
    whole : bool
        Whether all weights are there throughout.
    notes : dict
        What is known of each layer, by its name; of those of finished stages from the beginning.
    """

    def __init__(self) -> None:
        self.whole = True
        self.notes: dict[str, Any] = {}

    def rest(self) -> AbstractContextManager[None]:
        """Within, the weights outside of all blocks are there."""
        return nullcontext()

    def block(self, path: str) -> AbstractContextManager[None]:
        """Within, the weights of the block of this name are there."""
        return nullcontext()

    def tensors(self, name: str) -> Tensors:
        """What takes the outputs of a block of this name, or the inputs of a stack."""
        return []

    def finished(self, stage: str) -> bool:
        """Whether an earlier run finished this block, or what comes before or after all blocks."""
        return False

    def outputs(self, stage: str) -> Tensors:
        """The outputs of a block that an earlier run finished."""
        raise NotImplementedError

    def finish(self, stage: str, outputs: Tensors | None) -> None:
        """All is done with this block; `outputs` are those of it."""

    def store(self, layer: Layer, pattern: Pattern) -> None:
        """A layer has a new weight, pruned by a pattern."""


@dataclass
class Call:
    """One call of a block: its arguments, in which `place` marks the one that is the output of the block before it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str | None = None

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output on these inputs; the first of several outputs."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.place, int):
            args[self.place] = hidden
        elif self.place is not None:
            kwargs[self.place] = hidden
        return _first(block(*args, **kwargs))


@dataclass
class Stack:
    """Blocks that follow each other.

    `calls` holds for each block the calls of it, a call for each batch; `output` what a block returns, as an example;
    `outputs` the outputs of the last block once all are done.
    """

    name: str
    blocks: dict[str, nn.Module]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    output: Any = None
    outputs: Tensors | None = None


def stacks_of(model: nn.Module) -> list[Stack]:
    """The stacks of a model, none within another: the longest list, and the others of at least two modules."""
    found: list[Stack] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not is_series(module):
            continue
        inside = any(name.startswith(f"{stack.name}.") for stack in found)
        if not inside and any(isinstance(part, nn.Linear) or is_conv1d(part) for part in module.modules()):
            found.append(Stack(name, {f"{name}.{i}": block for i, block in enumerate(module)}))
    longest = max((len(stack.blocks) for stack in found), default=0)
    return [stack for stack in found if 2 * len(stack.blocks) >= longest]


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: a dict of keywords, a tuple of arguments, or one argument."""
    if hasattr(batch, "keys"):
        return model(**{key: batch[key] for key in batch})
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


_ASIDE = ("use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
"""What a config may ask for besides the hidden states."""


@contextmanager
def run(model: nn.Module) -> Iterator[None]:
    """Without gradients, dropout, results aside and torch's fused attention; all is as before afterwards.

    The fused path of `nn.TransformerEncoder` drops padding with tensors that layers with hooks do not take.
    """
    training = {module: module.training for module in model.modules()}
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    asked = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in _ASIDE
        if getattr(config, name, None)
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for config, name, _ in asked:
        setattr(config, name, False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for config, name, value in asked:
            setattr(config, name, value)
        for module, mode in training.items():
            module.training = mode


def capture(
    model: nn.Module, stack: Stack, batches: Sequence[Any], inputs: Tensors, place: Place, done: Sequence[Stack] = ()
) -> None:
    """Runs the model on each batch and notes how each block of a stack is called, and the inputs of the first.

    Of all blocks the first one alone is run, and stand-ins in place of the others, where the first batch shows that
    the model then calls the blocks with the same arguments. The stacks that are `done` are not run either.

    Raises
    ------
    NotOneByOneError
        If a block is not called once in each forward, in the order of the list, or not on the output of the one before;
        or if blocks have to run for their arguments and are not in memory.
    """
    stack.calls = {name: [] for name in stack.blocks}
    resumed = any(place.finished(name) for name in stack.blocks)
    stand_ins = resumed or _stand_ins_do(model, stack, batches[0], place, done)
    if not stand_ins and not place.whole:
        raise NotOneByOneError(f"the arguments of the blocks of {stack.name!r} depend on what other blocks return")
    for at, batch in enumerate(batches):
        recorder = _Recorder(stack, place, stand_ins=stand_ins, stop=True)
        _record(model, batch, recorder, done, at)
        inputs.append(recorder.input)
        for name, call in recorder.calls.items():
            stack.calls[name].append(call)
        stack.output = recorder.output


def _stand_ins_do(model: nn.Module, stack: Stack, batch: Any, place: Place, done: Sequence[Stack]) -> bool:
    """Whether the blocks are called with the same arguments where all but the first are stand-ins."""
    real = _Recorder(stack, place, stand_ins=False, stop=False)
    _record(model, batch, real, done, 0)
    made = _Recorder(stack, place, stand_ins=True, stop=True)
    try:
        _record(model, batch, made, done, 0)
    except Exception:  # whatever the model's code makes of a stand-in's output
        return False
    return _same(
        [(call.args, call.kwargs) for call in real.calls.values()],
        [(call.args, call.kwargs) for call in made.calls.values()],
    )


def _record(model: nn.Module, batch: Any, recorder: "_Recorder", done: Sequence[Stack], at: int) -> None:
    with _substituted(model, {**_replay(done, at), **recorder.forwards()}), suppress(_StopError):
        forward(model, batch)
    recorder.check()


def forward_until(model: nn.Module, stacks: Sequence[Stack], batch: Any) -> None:
    """Runs what comes before the first block; the whole model where there are no blocks."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _StopError

    stopping = {block: stop for stack in stacks for block in stack.blocks.values()}
    with _substituted(model, stopping), suppress(_StopError):
        forward(model, batch)


def forward_after(model: nn.Module, stacks: Sequence[Stack], batch: Any, at: int) -> Any:
    """Runs what is outside of all blocks on their outputs for the batch at this place: the output of the model."""
    with _substituted(model, _replay(stacks, at)):
        return forward(model, batch)


class _StopError(Exception):
    """What is wanted of a forward is there."""


@contextmanager
def _substituted(model: nn.Module, forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Calls of these modules go to other functions.

    Afterwards all modules have the forward that they had: what a model puts in the place of some for the time of its
    own forward stays where that is left by an error.
    """
    before = {module: vars(module).get("forward") for module in model.modules()}
    try:
        for module, function in forwards.items():
            module.forward = function
        yield
    finally:
        for module, function in before.items():
            if function is not None:
                module.forward = function
            else:
                vars(module).pop("forward", None)


def _replay(stacks: Sequence[Stack], at: int) -> dict[nn.Module, Callable[..., Any]]:
    """Blocks that return the outputs of their stack for a batch, whatever they are given."""
    return {block: _returning(stack, at) for stack in stacks for block in stack.blocks.values()}


def _returning(stack: Stack, at: int) -> Callable[..., Any]:
    assert stack.outputs is not None, "a stack is replayed after all of its blocks are done"
    output = _with_hidden(stack.output, stack.outputs[at])
    return lambda *args, **kwargs: output


class _Recorder:
    """Notes the calls of the blocks of a stack in one forward of the model.

    With `stand_ins` all blocks but the first hand their input on instead of running; `stop` ends the forward at the
    last.
    """

    def __init__(self, stack: Stack, place: Place, *, stand_ins: bool, stop: bool) -> None:
        self._stack, self._place, self._stand_ins, self._stop = stack, place, stand_ins, stop
        self._before: Tensor | None = None
        self.calls: dict[str, Call] = {}
        self.output: Any = None
        self.input: Tensor = torch.empty(0)

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """What the blocks do instead of their forward."""
        return {block: self._forward_of(name, block.forward) for name, block in self._stack.blocks.items()}

    def check(self) -> None:
        """Refuses a model that did not call all blocks."""
        if list(self.calls) != list(self._stack.blocks):
            self._refuse_order()

    def _refuse_order(self) -> None:
        raise NotOneByOneError(f"the blocks of {self._stack.name!r} are not called once each in their order")

    def _forward_of(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._call(name, real, args, kwargs)

    def _call(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        at = len(self.calls)
        if [*self.calls, name] != list(self._stack.blocks)[: at + 1]:
            self._refuse_order()
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        if at == 0:  # the first floating tensor among its arguments
            found = [(key, x) for key, x in places if isinstance(x, Tensor) and x.is_floating_point()]
        else:
            found = [(key, x) for key, x in places if x is self._before]
        if not found:
            raise NotOneByOneError(f"block {name!r} is not given the output of the block before it")
        key, hidden = found[0]
        self.calls[name] = _without(args, kwargs, key)
        if at == 0:
            self.input = hidden.clone()  # a block may change it in place
        if at == 0 or not self._stand_ins:
            with self._place.block(name):
                output = real(*args, **kwargs)
            self.output = output if at == 0 else self.output
        else:
            output = _with_hidden(self.output, hidden.view_as(hidden))
        if self._stop and len(self.calls) == len(self._stack.blocks):
            raise _StopError
        self._before = _first(output)
        return output


def _same(one: Any, other: Any) -> bool:
    """Whether arguments are the same; of objects that are no plain values the class counts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return not isinstance(one, bool | int | float | str) or bool(one == other)


def _first(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(found, Tensor):
        raise FastSparseError(f"model: a block returns {type(output).__name__}, expected a tensor or a tuple of them")
    return found


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returns, with another hidden state."""
    if not isinstance(output, tuple | list):
        return hidden
    make = getattr(type(output), "_make", type(output))  # a named tuple takes its elements one by one
    return make((hidden, *output[1:]))


def _without(args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str) -> Call:
    """The call without its hidden state, which would be held for every block."""
    if isinstance(place, int):
        args = (*args[:place], None, *args[place + 1 :])
    else:
        kwargs = {**kwargs, place: None}
    return Call(args, kwargs, place)
