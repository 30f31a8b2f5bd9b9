"""Pruning while a model trains: masks that grow from step to step."""

import math
import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

import fastsparse as fs
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._recipe import Recipe, Rule
from fastsparse.checkpoint._report import Report
from fastsparse.torch._places import error_context, uses_of
from fastsparse.torch._pruning import at_level, level_of
from fastsparse.torch._sparsify import chosen_of, sparsify
from fastsparse.torch._tensors import apply_mask, as_array, as_tensor, select

__all__ = ["Pruner"]

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cubic": lambda t: 1 - (1 - t) ** 3,
    "linear": lambda t: t,
    "constant": lambda t: 1.0,
}


class Pruner:
    """Prunes a model while it trains, with a sparsity that grows along a schedule.

    Call `step` after each step of the optimizer. Every so often it chooses the masks anew, for the sparsity that the
    schedule has reached, and always it applies them, so that no momentum brings a pruned weight back. Masks are nested:
    what is pruned stays pruned, unless `revive` lets weights that have grown back within one step compete. Counts are
    exact at each of the steps. Which weights are pruned is decided as by `sparsify`.

    The polynomial schedule is that of Zhu and Gupta, "To prune, or not to prune" (2017): of the sparsity of the pattern
    ``1 − (1 − t)³`` is reached at the time t between `begin`, 0, and `end`, 1.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    pattern : Recipe, Pattern or str
        What it is pruned to: patterns with a share of zeros. Those of n:m are rounded in each group on the way.
    begin, end : int
        The numbers of the steps, which are counted from 1, at which the sparsity is 0 and that of the pattern; `end` is
        at least 1.
    every : int
        Steps from one choice of masks to the next; at `end` there is always one.
    schedule : {"cubic", "linear", "constant"} or callable
        The share of the sparsity that is reached at a time from 0 to 1; a callable takes and returns a float and does
        not decrease.
    revive : bool
        Whether weights compete as the optimizer's step has left them, so that pruned ones can return.

    Raises
    ------
    FastSparseError
        If an argument is not as described, or no weight is pruned; in `step`, if a weight holds NaN.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> pruner = Pruner(model, "80%", end=4)
    >>> for _ in range(4):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 64)).square().mean().backward()
    ...     optimizer.step()
    ...     pruner.step()
    ...     print(f"{pruner.sparsity:.3f}")
    0.463
    0.700
    0.787
    0.800
    >>> report = pruner.finish()
    >>> model[0]
    SparseLinear(in_features=64, out_features=256, bias=True, float32, 79.9 % sparse)
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: Recipe | fs.Pattern | str,
        *,
        begin: int = 0,
        end: int,
        every: int = 1,
        schedule: str | Callable[[float], float] = "cubic",
        revive: bool = False,
    ) -> None:
        steps = (("begin", begin, 0), ("end", end, 1), ("end", end, begin), ("every", every, 1))
        for name, value, least in steps:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise FastSparseError(f"{name}: expected a number of steps ≥ {least}, got {value!r}")
        if not callable(schedule) and not (isinstance(schedule, str) and schedule in SCHEDULES):
            raise FastSparseError(f"schedule: expected {', '.join(SCHEDULES)} or a callable, got {schedule!r}")
        recipe = Recipe.of(pattern)
        if recipe.scope != "tensor":
            raise FastSparseError("scope: a schedule prunes each tensor by itself, not 'global'")
        self._model, self._begin, self._end, self._every, self._revive = model, begin, end, every, revive
        self._schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self._bits = recipe.bits
        self._uses = {names[0].name: names for names in uses_of(model)}
        choices = chosen_of(model, recipe)
        self._patterns = {name: chosen for name, chosen in choices.items() if isinstance(chosen, fs.Pattern)}
        if not self._patterns:
            raise FastSparseError(f"model: {type(model).__name__} has no weight that the recipe prunes")
        for name, chosen in self._patterns.items():
            if level_of(chosen) is None:
                raise FastSparseError(f"pattern: {chosen}, of {name!r}, has no sparsity that a schedule could reach")
        self._masks: dict[str, fs.Bitmask] = {}
        self._step = 0
        self._finished = False

    @property
    def masks(self) -> Mapping[str, fs.Bitmask]:
        """The mask of each weight that is pruned, by its name; there are none before the first choice."""
        return dict(self._masks)

    @property
    def sparsity(self) -> float:
        """The share of zeros that the masks have now, over the weights that are pruned."""
        total = sum(self._weight(name).numel() for name in self._patterns)
        return 1 - sum(mask.count for mask in self._masks.values()) / total if self._masks else 0.0

    def share_at(self, step: int) -> float:
        """The share of the pattern's sparsity that the schedule has reached at a step."""
        if step < self._begin or (step == self._begin and self._end > self._begin):
            return 0.0
        t = min(1.0, (step - self._begin) / max(self._end - self._begin, 1))
        share = 1.0 if self._end == self._begin else self._schedule(t)
        if not isinstance(share, Real) or math.isnan(share):
            raise FastSparseError(f"schedule: expected a share of the sparsity at {t:g}, got {share!r}")
        return min(1.0, max(0.0, float(share)))

    def step(self) -> None:
        """Chooses the masks anew if it is time to, and applies them."""
        self._check_not_finished()
        self._step += 1
        passed = self._step - self._begin
        if self._step == self._end or (passed >= 0 and self._step < self._end and passed % self._every == 0):
            self._choose(self.share_at(self._step))
        self._apply()

    def finish(self) -> Report:
        """Prunes to the pattern, where the schedule has not got there, and packs the weights as `sparsify` does.

        Returns
        -------
        Report
            That of `sparsify`.
        """
        self._check_not_finished()
        if self._step < self._end or self.share_at(self._step) < 1:
            self._choose(1.0)
            self._apply()
        rules = tuple(
            Rule(f"^{re.escape(use.name)}$", chosen)
            for name, chosen in self._patterns.items()
            for use in self._uses[name]
        )
        report = sparsify(self._model, Recipe(rules, bits=self._bits))
        self._finished = True
        return report

    def state_dict(self) -> dict[str, Any]:
        """The step and the masks, as tensors, for `torch.save`."""
        masks = {name: torch.from_numpy(mask.bits.copy()) for name, mask in self._masks.items()}
        return {"step": self._step, "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another pruner of the same model was.

        Raises
        ------
        FastSparseError
            If masks are of other weights or shapes.
        """
        if not isinstance(state, Mapping) or not {"step", "masks"} <= state.keys():
            raise FastSparseError("state: expected what state_dict of a Pruner gives, with step and masks")
        masks = {}
        for name, bits in state["masks"].items():
            if name not in self._patterns:
                raise FastSparseError(f"masks: {name!r} is no weight that is pruned here")
            shape = tuple(self._weight(name).shape)
            with error_context(name):
                masks[name] = fs.Bitmask.from_bits(as_array(bits, "bits"), shape)
        if masks and masks.keys() != self._patterns.keys():
            missing = next(name for name in self._patterns if name not in masks)
            raise FastSparseError(f"masks: there is none of {missing!r}")
        self._step, self._masks = int(state["step"]), masks
        self._apply()

    def _check_not_finished(self) -> None:
        if self._finished:
            raise FastSparseError("pruner: it is finished, and its weights are packed; make another one")

    def _weight(self, name: str) -> Tensor:
        return self._uses[name][0].tensor(self._model).detach()

    def _choose(self, share: float) -> None:
        for name, chosen in self._patterns.items():
            level = level_of(chosen)
            assert level is not None, "checked"
            pattern = chosen if share == 1 else at_level(chosen, share * level)
            weight, mask = self._weight(name), None if self._revive else self._masks.get(name)
            with error_context(name):
                self._masks[name] = select(weight, pattern) if mask is None else _grown(weight, mask, pattern)

    def _apply(self) -> None:
        for name, mask in self._masks.items():
            weight = self._weight(name)
            with error_context(name):
                weight.copy_(apply_mask(weight, mask))


def _grown(weight: Tensor, mask: fs.Bitmask, pattern: fs.Pattern) -> fs.Bitmask:
    """A mask for the pattern in which all that `mask` prunes is pruned."""
    kept = as_tensor(mask)
    if isinstance(pattern, fs.Block) and pattern.norm == "max":
        return select(torch.where(kept, weight, 0), pattern)
    power = 2 if isinstance(pattern, fs.Block) and pattern.norm == "l2" else 1
    scores = torch.where(kept, weight.double().abs() ** power, -1.0)
    return select(weight, pattern, scores=scores)
