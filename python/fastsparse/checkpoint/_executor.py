"""Doing the work on tensors, on one worker or many, never holding more of them than memory is meant for."""

import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastsparse import _backend, _sigint

__all__ = ["Task", "map_bounded", "result_of", "workers"]

T = TypeVar("T")
_SLACK = 160 << 20
"""What may be held beyond two of the largest tensors: many small ones. Another 100 MB are for the interpreter."""
_SMALL = 256 << 10
"""Tasks up to this peak are handed over together: to hand one over takes as long as such a task itself."""
_TOGETHER = 64
"""How many of them at most, which are 16 MB."""
_WAITING = 256
"""How many calls are under way at most. Few workers are more, and the tiniest tensors have results that count."""


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


class _Ahead(ThreadPoolExecutor):
    """One thread of this module's own: what it calls uses as many threads as ever."""

    def __init__(self) -> None:
        super().__init__(1, "fastsparse-ahead")


@contextmanager
def workers(executor: Executor | None = None) -> Iterator[Executor]:
    """The executor; without one a thread that works ahead while the caller writes.

    Interrupts come in `map_bounded` only.
    """
    with _sigint.defer_sigint():
        if executor is None:
            with _Ahead() as own:
                yield own
            return
        yield executor


def map_bounded(executor: Executor, tasks: Iterable[Task[T]], largest: int) -> Generator[T, None, None]:
    """Yields the results in order; as many tasks are under way as fit into two of the `largest` bytes and some.

    On the workers of a caller's executor each call uses one thread. Time and calls under way are linear in the tasks.
    """
    budget = 2 * largest + _SLACK
    coming = _batches(tasks)
    following = next(coming, None)
    waiting: deque[tuple[_Batch[T], Future[list[T]]]] = deque()

    def admit(held: int) -> None:
        nonlocal following
        if following is None:
            return
        taken = held + sum(batch.held if future.done() else batch.peak for batch, future in waiting)
        while following is not None and len(waiting) < _WAITING and (taken == 0 or taken + following.peak <= budget):
            waiting.append((following, following.submit(executor)))
            taken += following.peak
            following = next(coming, None)

    try:
        admit(0)
        while waiting:
            batch, future = waiting.popleft()
            results = result_of(future)
            del future
            admit(batch.held)
            results.reverse()
            while results:
                yield results.pop()
            admit(0)
    finally:
        for _, future in waiting:
            future.cancel()


class _Batch(Generic[T]):
    """Tasks that are handed over together."""

    def __init__(self, task: Task[T]) -> None:
        self._tasks = [task]
        self.peak, self.held, self.here = task.peak, task.held, task.here

    def takes(self, task: Task[T]) -> bool:
        """Whether this task is added: small ones are, until there are many."""
        if task.here != self.here or len(self._tasks) == _TOGETHER or max(self._tasks[-1].peak, task.peak) > _SMALL:
            return False
        self._tasks.append(task)
        self.peak, self.held = self.peak + task.peak, self.held + task.held
        return True

    def submit(self, executor: Executor) -> "Future[list[T]]":
        """The results, now or later."""
        calls = [(task.function, task.arguments) for task in self._tasks]
        if not self.here:
            return executor.submit(_Call(calls, one_thread=not isinstance(executor, _Ahead)))
        done: Future[list[T]] = Future()
        done.set_result([function(*arguments) for function, arguments in calls])
        return done


def _batches(tasks: Iterable[Task[T]]) -> Iterator[_Batch[T]]:
    batch: _Batch[T] | None = None
    for task in tasks:
        if batch is None or not batch.takes(task):
            if batch is not None:
                yield batch
            batch = _Batch(task)
    if batch is not None:
        yield batch


def result_of(future: "Future[T]") -> T:
    """Waits for the result, looking up for an interrupt now and then."""
    _sigint.deliver()
    while not future.done():
        wait((future,), timeout=0.1)
        _sigint.deliver()
    return future.result()


_Calls = list[tuple[Callable[..., T], tuple[Any, ...]]]


@dataclass(frozen=True)
class _Call(Generic[T]):
    """Calls that are unpickled where they are made.

    What fails then, because the source has vanished or is not seen from there, is an error of the call like any other.
    An executor that unpickles it by itself loses its worker over that.
    """

    calls: "_Calls[T]"
    one_thread: bool

    def __call__(self) -> list[T]:
        if not self.one_thread:
            return [function(*arguments) for function, arguments in self.calls]
        before = _backend.active.limit_threads(1)
        try:
            return [function(*arguments) for function, arguments in self.calls]
        finally:
            _backend.active.limit_threads(before)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Elsewhere, (pickle.dumps(self.calls),)


@dataclass(frozen=True)
class _Elsewhere:
    """Calls in another process. They are made on one thread, because there are others beside it."""

    pickled: bytes

    def __call__(self) -> list[Any]:
        return _Call(pickle.loads(self.pickled), one_thread=True)()
