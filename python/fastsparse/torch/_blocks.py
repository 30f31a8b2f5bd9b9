"""The blocks of a model, and what goes into them: found and run without knowing the model.

A stack is a `nn.ModuleList` of modules of one class, as transformers and most other models have one; an encoder with a
decoder has two. The blocks of a stack are run one by one, each on the outputs of the one before it, with whatever other
arguments the model gave to it when it ran as a whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastsparse._errors import FastSparseError

__all__ = ["Call", "Stack", "capture", "forward", "run", "stacks_of"]


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
    """Blocks that follow each other. `calls` holds for each block the calls of it, a call for each batch."""

    name: str
    blocks: dict[str, nn.Module]
    inputs: list[Tensor] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)


def stacks_of(model: nn.Module) -> list[Stack]:
    """The stacks of a model, none within another: the longest list, and the others of at least two modules."""
    found: list[Stack] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(block) for block in module}) > 1:
            continue
        inside = any(name.startswith(f"{stack.name}.") for stack in found)
        if not inside and any(isinstance(part, nn.Linear) or _is_conv1d(part) for part in module.modules()):
            found.append(Stack(name, {f"{name}.{i}": block for i, block in enumerate(module)}))
    longest = max((len(stack.blocks) for stack in found), default=0)
    return [stack for stack in found if 2 * len(stack.blocks) >= longest]


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: a dict of keywords, a tuple of arguments, or one argument."""
    if hasattr(batch, "keys"):
        return model(**{key: batch[key] for key in batch})
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@contextmanager
def run(model: nn.Module) -> Iterator[None]:
    """Without gradients, dropout and caches; all is as before afterwards."""
    training = {module: module.training for module in model.modules()}
    configs = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "use_cache")]
    caches = [config.use_cache for config in configs]
    model.eval()
    for config in configs:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        for config, cache in zip(configs, caches, strict=True):
            config.use_cache = cache
        for module, mode in training.items():
            module.training = mode


def capture(model: nn.Module, stack: Stack, batches: list[Any]) -> None:
    """Runs the model on each batch and notes how each block of a stack is called.

    Raises
    ------
    FastSparseError
        If a block is not called once in each forward, in the order of the list, or not on the output of the one before.
    """
    stack.inputs, stack.calls = [], {name: [] for name in stack.blocks}
    for batch in batches:
        recorder = _Recorder(stack)
        handles = []
        for name, block in stack.blocks.items():
            handles.append(block.register_forward_pre_hook(recorder.entering(name), with_kwargs=True))
            handles.append(block.register_forward_hook(recorder.leave))
        try:
            forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        if recorder.called != list(stack.blocks):
            raise FastSparseError(
                f"model: the blocks of {stack.name!r} are not called once each in their order, so they cannot be run "
                "one by one; pass sequential=False"
            )


class _Recorder:
    """Notes the calls of the blocks of a stack in one forward of the model."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before: Tensor | None = None
        self.called: list[str] = []

    def entering(self, name: str) -> Callable[..., None]:
        """The hook for a block of this name."""
        return lambda module, args, kwargs: self._enter(name, args, kwargs)

    def _enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.called.append(name)
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        if len(self.called) == 1:  # the first floating tensor among its arguments
            found = [(at, x) for at, x in places if isinstance(x, Tensor) and x.is_floating_point()]
            self._stack.inputs += [x for _, x in found[:1]]
        else:
            found = [(at, x) for at, x in places if x is self._before]
        if not found:
            raise FastSparseError(
                f"model: block {name!r} is not given the output of the block before it, so blocks cannot be run one by "
                "one; pass sequential=False"
            )
        self._stack.calls[name].append(_without(args, kwargs, found[0][0]))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook for the end of a block."""
        self._before = _first(output)


def _first(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(found, Tensor):
        raise FastSparseError(f"model: a block returns {type(output).__name__}, expected a tensor or a tuple of them")
    return found


def _without(args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str) -> Call:
    """The call without its hidden state, which would be held for every block."""
    if isinstance(place, int):
        args = (*args[:place], None, *args[place + 1 :])
    else:
        kwargs = {**kwargs, place: None}
    return Call(args, kwargs, place)
