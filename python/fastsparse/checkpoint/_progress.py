"""Telling the caller how far the work is."""

from collections.abc import Callable

__all__ = ["Progress", "Ticker"]

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the tensor at hand."""


class Ticker:
    """Counts bytes for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def tick(self, size: int, name: str) -> None:
        """`size` more bytes are done, those of this tensor."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total, name)
