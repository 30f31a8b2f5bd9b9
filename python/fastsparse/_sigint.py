"""Ctrl-C at points where it does no harm.

An exception that a signal raises can come between any two bytecodes, so also between taking a lock of `threading` and
the block that gives it back. A thread that needs the lock then waits for ever, and whoever joins that thread with it.
So while there are threads the signal is only noted, and raised where no lock is held. The same holds while libraries
load: an interrupt there is wrapped into another error, or lost in a callback that cannot raise.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Deferred", "defer_sigint", "deliver", "release"]


class Deferred:
    """The handler that notes the signal for the one that was there before.

    Attributes
    ----------
    seen : bool
        Whether the signal ever came, delivered or not.
    """

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self._previous = previous
        self._signal: int | None = None
        self._released = False
        self.seen = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self._signal = number
        if self._released:
            self.deliver()

    @property
    def pending(self) -> bool:
        """Whether there is a signal to deliver."""
        return self._signal is not None

    def deliver(self) -> None:
        """Hands the signal on, if there is one."""
        number, self._signal = self._signal, None
        if number is not None:
            self._previous(number, None)

    def release(self) -> None:
        """From now on the signal is handed on when it comes."""
        self._released = True
        self.deliver()


_innermost: Deferred | None = None
"""The handler in use; to ask `signal` for it takes as long as to write a small tensor."""


@contextmanager
def defer_sigint() -> Iterator[Deferred]:
    """Within, an interrupt waits for `deliver`, `release` or the end. Threads other than the main one never see any."""
    previous = signal.getsignal(signal.SIGINT)
    noted = Deferred(previous if callable(previous) else signal.default_int_handler)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield noted
        return
    global _innermost
    outer = _innermost
    signal.signal(signal.SIGINT, noted)
    _innermost = noted
    try:
        yield noted
    finally:
        _innermost = outer
        signal.signal(signal.SIGINT, previous)
        noted.deliver()


def deliver() -> None:
    """Hands a noted interrupt on, which as a rule raises `KeyboardInterrupt`."""
    noted = _innermost
    if noted is not None and noted.pending and threading.current_thread() is threading.main_thread():
        noted.deliver()


def release() -> None:
    """Ends the deferral that is in force: a noted interrupt is handed on, and so are those that follow."""
    if _innermost is not None and threading.current_thread() is threading.main_thread():
        _innermost.release()
