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

    def deliver(self) -> None:
        number, self._signal = self._signal, None
        if number is not None:
            self._previous(number, None)


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Within, an interrupt waits for `deliver`, or for the end. Other threads than the main one never see any."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    noted = _Noted(previous)
    signal.signal(signal.SIGINT, noted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        noted.deliver()


def deliver() -> None:
    """Hands a noted interrupt on, which as a rule raises `KeyboardInterrupt`."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Noted) and threading.current_thread() is threading.main_thread():
        handler.deliver()
