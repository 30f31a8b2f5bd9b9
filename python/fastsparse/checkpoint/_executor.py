"""Doing the work on tensors, on one worker or many, never holding more of them than memory is meant for."""

import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastsparse import _backend, ops
from fastsparse.checkpoint import _sigint

__all__ = ["Task", "map_bounded", "result_of", "workers"]

T = TypeVar("T")
_SLACK = 160 << 20
"""What may be held beyond two of the largest tensors: many small ones. Another 100 MB are for the interpreter."""


@dataclass(frozen=True)
class Task(Generic[T]):
    """A call of a pure function, and the memory that it takes: `peak` bytes while it runs, `held` for its result.

    `here` says that it is called in this thread, because there is nothing to do but to look.
    """

    function: Callable[..., T]
    arguments: tuple[Any, ...]
    peak: int
    held: int = 0
    here: bool = False

    def submit(self, executor: Executor) -> "Future[T]":
        """Its result, now or later."""
        if not self.here:
            return executor.submit(_Call(self.function, self.arguments))
        done: Future[T] = Future()
        done.set_result(self.function(*self.arguments))
        return done


@contextmanager
def workers(executor: Executor | None = None) -> Iterator[Executor]:
    """The executor, with one thread a worker; without one a thread that works ahead while the caller writes.

    Interrupts come in `map_bounded` only.
    """
    with _sigint.defer_sigint():
        if executor is None:
            with ThreadPoolExecutor(1, "fastsparse-ahead") as own:
                yield own
            return
        before = _backend.active.get_num_threads()
        ops.set_num_threads(1)
        try:
            yield executor
        finally:
            ops.set_num_threads(before)


def map_bounded(executor: Executor, tasks: Iterable[Task[T]], largest: int) -> Generator[T, None, None]:
    """Yields the results in order; as many tasks are under way as fit into two of the `largest` bytes and some."""
    budget = 2 * largest + _SLACK
    coming = iter(tasks)
    following = next(coming, None)
    waiting: deque[tuple[Task[T], Future[T]]] = deque()

    def admit(held: int) -> None:
        nonlocal following
        taken = held + sum(task.held if future.done() else task.peak for task, future in waiting)
        while following is not None and (taken == 0 or taken + following.peak <= budget):
            waiting.append((following, following.submit(executor)))
            taken += following.peak
            following = next(coming, None)

    try:
        admit(0)
        while waiting:
            task, future = waiting.popleft()
            result = result_of(future)
            admit(task.held)
            yield result
            del future, result
            admit(0)
    finally:
        for _, future in waiting:
            future.cancel()


def result_of(future: "Future[T]") -> T:
    """Waits for the result, looking up for an interrupt now and then."""
    _sigint.deliver()
    while not future.done():
        wait((future,), timeout=0.1)
        _sigint.deliver()
    return future.result()


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A call that is unpickled where it is made.

    What fails then, because the source has vanished or is not seen from there, is an error of the call like any other.
    An executor that unpickles it by itself loses its worker over that.
    """

    function: Callable[..., T]
    arguments: tuple[Any, ...]

    def __call__(self) -> T:
        return self.function(*self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Elsewhere, (pickle.dumps((self.function, self.arguments)),)


@dataclass(frozen=True)
class _Elsewhere:
    """A call in another process. It is made on one thread, because there are others beside it."""

    pickled: bytes

    def __call__(self) -> Any:
        ops.set_num_threads(1)
        function, arguments = pickle.loads(self.pickled)
        return function(*arguments)
