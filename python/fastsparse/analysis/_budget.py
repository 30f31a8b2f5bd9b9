"""Spreading zeros over tensors where they cost least."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Choice", "cheapest"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the ways to prune a tensor: how many zeros it makes, and what it costs; `number` names it."""

    zeros: int
    loss: float
    number: int


def cheapest(choices: Sequence[Sequence[Choice]], wanted: int) -> list[tuple[Choice | None, int]]:
    """For each tensor a choice, such that all of them together make at least the wanted number of zeros and cost least.

    Greedy: from no zeros on, the step that costs least for each zero it makes, along the lower convex hull of each
    tensor's choices. No other choice on the hulls costs less for the zeros that it makes.

    Returns
    -------
    list of (Choice or None, int)
        None leaves a tensor as it is. The number is how many of the choice's zeros are needed to make exactly the
        wanted ones: all of them, but for the last step that was taken.
    """
    steps = sorted(
        ((to.loss - before.loss) / (to.zeros - before.zeros), tensor, at, before.zeros)
        for tensor, own in enumerate(choices)
        for at, (before, to) in enumerate(_edges(own))
    )
    hulls = [[to for _, to in _edges(own)] for own in choices]
    taken: list[tuple[Choice | None, int]] = [(None, 0)] * len(choices)
    rest = wanted
    for _, tensor, at, before in steps:
        if rest <= 0:
            break
        to = hulls[tensor][at]
        needed = min(to.zeros - before, rest)
        taken[tensor] = to, before + needed
        rest -= to.zeros - before
    return taken


def _edges(choices: Sequence[Choice]) -> list[tuple[Choice, Choice]]:
    """The lower convex hull, from no zeros on."""
    hull = [Choice(0, 0.0, -1)]
    for choice in sorted(choices, key=lambda one: (one.zeros, one.loss)):
        if choice.zeros <= hull[-1].zeros:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return list(pairwise(hull))


def _slope(a: Choice, b: Choice) -> float:
    return (b.loss - a.loss) / (b.zeros - a.zeros)
