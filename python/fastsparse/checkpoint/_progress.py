"""Telling the caller how far the work is."""

from collections.abc import Callable, Sequence

__all__ = ["Phases", "Progress", "Ticker"]

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the tensor at hand.

The bytes are those of all phases of the work: a tensor that is read twice counts twice. An object that has a method
`begin` as well is told the phases before the first call.
"""

Phases = Sequence[tuple[str, int]]
"""The names of the phases of the work, in their order, and the bytes of each."""


class Ticker:
    """Counts bytes for a progress callback, over all phases of the work."""

    def __init__(self, progress: Progress | None, phases: Phases) -> None:
        self._progress, self._total, self._done = progress, sum(size for _, size in phases), 0
        begin = getattr(progress, "begin", None)
        if begin is not None:
            begin(phases)

    def tick(self, size: int, name: str) -> None:
        """`size` more bytes are done, those of this tensor."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total, name)
