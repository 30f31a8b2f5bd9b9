"""Times sides against each other: in turns, in one process, by the median of the ratios of a round.

Bandwidth drifts while a machine does other things, so a time alone says little and a quotient of two medians not much
more. Every round calls each side once, the probes first; the ratio of two sides is the median over the rounds that
both took part in. Slow sides take part in the first few rounds only.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

ROUNDS = 9
# Threads of OpenBLAS and OpenMP go on looking for work for a while, on the cores that the next side
# needs: those of NumPy's OpenBLAS for 0.12 s on a Zen 3, where 8 rows took us 1.6 times as long
# until then. Meanwhile a side is called and not timed, since cores that have slept are slow: one
# row took 1.6 times as long after it.
PAUSE = 0.2
# One measurement of a short call repeats it until it takes this long: the clock and its call cost
# 0.1 µs.
LEAST_SECONDS = 2e-3

Times: TypeAlias = dict[str, list[float]]


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Side:
    """One way of doing the job. `before` is not timed."""

    name: str
    run: Callable[[], object]
    rounds: int = ROUNDS
    before: Callable[[], None] = nothing


def seconds(run: Callable[[], object], number: int = 1) -> float:
    """Of one call. The result of a call dies before the next."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number


def pause(run: Callable[[], object]) -> None:
    """Lets threads of other sides go to sleep, and keeps the cores awake by calling `run`."""
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        run()


def calls(run: Callable[[], object]) -> int:
    """How many make a measurement long enough."""
    number = 1
    while (spent := seconds(run, number) * number) < LEAST_SECONDS:
        number = max(2 * number, int(number * LEAST_SECONDS / max(spent, 1e-7)))
    return number


def interleave(sides: Iterable[Side]) -> Times:
    """Seconds a call of every side, by round. A first call of each is not counted, unless it has few rounds."""
    sides = list(sides)
    numbers = {}
    for side in sides:
        side.before()
        numbers[side.name] = calls(side.run) if side.rounds >= ROUNDS else 1
    times: Times = {side.name: [] for side in sides}
    for turn in range(max(side.rounds for side in sides)):
        for side in sides:
            if turn < side.rounds:
                side.before()
                times[side.name].append(seconds(side.run, numbers[side.name]))
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """How many times as long `above` takes, the median over the rounds of both."""
    return median(a / b for a, b in zip(times[above], times[below], strict=False))


def probes(data: NDArray[np.generic]) -> list[Side]:
    """What the memory does: NumPy's sum of these bytes as float32, on one thread and on two; a copy, on one."""
    floats = data.reshape(-1).view(np.uint8)
    floats = floats[: floats.size // 8 * 8].view(np.float32)
    halves = np.array_split(floats, 2)
    target = np.zeros_like(floats)
    pool = ThreadPoolExecutor(2)

    def read() -> None:
        # Bytes of other types are NaN and infinity too, which add up as fast.
        with np.errstate(all="ignore"):
            floats.sum()

    def read_half(half: NDArray[np.float32]) -> None:
        with np.errstate(all="ignore"):
            half.sum()

    return [
        Side("read", read),
        Side("read, 2 threads", lambda: list(pool.map(read_half, halves))),
        Side("copy", lambda: np.copyto(target, floats)),
    ]
