"""Ctrl-C at points where it does no harm.

An exception that a signal raises can come between any two bytecodes, so also between taking a lock of `threading` and
the block that gives it back. A thread that needs the lock then waits for ever, and whoever joins that thread with it.
So while there are threads the signal is only noted, and raised where no lock is held.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["defer_sigint", "deliver"]


class _Noted:
    """The handler that notes the signal for the one that was there before."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self._previous = previous
        self._signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    @property
    def pending(self) -> bool:
        """Whether there is a signal to deliver."""
        return self._signal is not None

    def deliver(self) -> None:
        """Hands the signal on, if there is one."""
        number, self._signal = self._signal, None
        if number is not None:
            self._previous(number, None)


_innermost: _Noted | None = None
"""The handler in use; to ask `signal` for it takes as long as to write a small tensor."""


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Within, an interrupt waits for `deliver`, or for the end. Other threads than the main one never see any."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    global _innermost
    noted, outer = _Noted(previous), _innermost
    signal.signal(signal.SIGINT, noted)
    _innermost = noted
    try:
        yield
    finally:
        _innermost = outer
        signal.signal(signal.SIGINT, previous)
        noted.deliver()


def deliver() -> None:
    """Hands a noted interrupt on, which as a rule raises `KeyboardInterrupt`."""
    noted = _innermost
    if noted is not None and noted.pending and threading.current_thread() is threading.main_thread():
        noted.deliver()
