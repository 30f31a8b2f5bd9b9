"""Ctrl-C is raised where it is asked for."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastsparse import _sigint
from fastsparse.checkpoint._executor import Task, map_bounded, workers


@pytest.fixture(autouse=True)
def interruptible():
    """A shell that starts the tests in the background has them ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_it_is_asked_for():
    before = signal.getsignal(signal.SIGINT)
    reached = []
    with pytest.raises(KeyboardInterrupt), _sigint.defer_sigint():  # noqa: PT012
        _sigint.deliver()
        signal.raise_signal(signal.SIGINT)
        reached.append("held")
        _sigint.deliver()
        reached.append("delivered")
    assert reached == ["held"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_comes_at_the_end_at_the_latest():
    reached = []
    with pytest.raises(KeyboardInterrupt), _sigint.defer_sigint():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    assert reached == ["end"]


def test_a_handler_of_the_caller_gets_it():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with _sigint.defer_sigint(), _sigint.defer_sigint():
            signal.raise_signal(signal.SIGINT)
            assert seen == []
        assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _sigint.defer_sigint():
            signal.raise_signal(signal.SIGINT)
            _sigint.deliver()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_task_that_takes_long_does_not_keep_it():
    release = threading.Event()
    threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), workers(ThreadPoolExecutor(1)) as pool:  # noqa: PT012
        try:
            next(map_bounded(pool, [Task(release.wait, (), peak=1)], 1))
        finally:
            waited = time.monotonic() - started
            release.set()
    assert waited < 30  # the task itself would have waited for ever


def test_other_threads_hold_nothing():
    before = signal.getsignal(signal.SIGINT)

    def inside():
        with _sigint.defer_sigint():
            _sigint.deliver()
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() is before
