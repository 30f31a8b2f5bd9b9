"""Progress of a command: a bar on a terminal, JSON or plain lines elsewhere."""

import json
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import rich.console
import rich.progress
import rich.table

from fastsparse import checkpoint
from fastsparse._table import elide, line_width
from fastsparse.checkpoint._progress import Phases
from fastsparse.packed import byte_count

__all__ = ["progress_of"]

_DELAY = 1.0
"""Seconds after which a bar or a line is shown: what is done by then needs none."""


@contextmanager
def progress_of(as_json: bool) -> Iterator[checkpoint.Progress]:
    """A line of JSON for each tensor where the report is JSON; else a bar on a terminal, plain lines otherwise."""
    console = rich.console.Console(stderr=True)
    if as_json:
        yield _Events()
    elif not console.is_terminal:
        yield _Lines()
    else:
        with _Bar(console) as bar:
            yield bar


class _Phased:
    """Knows which phase of the work is under way, and how far it is."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._names, self._ends = ["working"], [sys.maxsize]

    def begin(self, phases: Phases) -> None:
        """Called with the names and bytes of the phases, before the first tensor is done."""
        self._names = [name for name, _ in phases]
        self._ends = list(accumulate(size for _, size in phases))

    def phase(self, done: int) -> tuple[str, int, int]:
        """The name of the phase at hand, the bytes done before it, and its bytes."""
        at = min(bisect_left(self._ends, done), len(self._ends) - 1)
        before = self._ends[at - 1] if at else 0
        return self._names[at], before, self._ends[at] - before

    @property
    def elapsed(self) -> float:
        """Seconds since the command began its work."""
        return time.perf_counter() - self._started

    def pace(self, done: int, total: int) -> tuple[float, float]:
        """Bytes in a second, and seconds left."""
        elapsed = self.elapsed
        return done / elapsed, elapsed * (total - done) / max(done, 1)


class _Events(_Phased):
    """One event for each tensor that was counted, written or checked."""

    def __call__(self, done: int, total: int, name: str) -> None:
        rate, left = self.pace(done, total)
        event = {"event": "progress", "phase": self.phase(done)[0], "tensor": name, "done": done, "total": total}
        print(json.dumps({**event, "rate": round(rate), "eta": round(left, 3)}), file=sys.stderr, flush=True)


class _Lines(_Phased):
    """One line for every tenth of the work, from `_DELAY` on."""

    def __init__(self) -> None:
        super().__init__()
        self._tenths = 0

    def __call__(self, done: int, total: int, name: str) -> None:
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths and self.elapsed >= _DELAY:
            self._tenths = tenths
            rate, left = self.pace(done, total)
            line = f"{10 * tenths} %  {byte_count(int(rate))}/s, {left:.0f} s left  {self.phase(done)[0]} "
            width = line_width(sys.stderr)
            room = None if width is None else max(width - len(line), 1)
            print(line + elide(name, room), file=sys.stderr, flush=True)


class _Bar(_Phased):
    """A bar for each phase, with its bytes, from `_DELAY` on."""

    def __init__(self, console: rich.console.Console) -> None:
        super().__init__()
        name = rich.table.Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=16),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("{task.fields[tensor]}", markup=False, table_column=name),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("working", total=None, tensor="")
        self._phase = ""
        self._timer = threading.Timer(_DELAY, self._bar.start)
        self._timer.daemon = True

    def __enter__(self) -> "_Bar":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        if self._bar.live.is_started:  # else it would write a line end to a dumb terminal
            self._bar.stop()

    def __call__(self, done: int, total: int, name: str) -> None:
        phase, before, size = self.phase(done)
        if phase != self._phase:
            self._phase = phase
            self._bar.reset(self._task, total=size, description=phase)
        self._bar.update(self._task, completed=done - before, tensor=elide(name, 40))
