"""Progress of a command: a bar on a terminal, JSON or plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
import rich.progress

from fastsparse import checkpoint
from fastsparse.cli._table import size

__all__ = ["progress_of"]


@contextmanager
def progress_of(as_json: bool) -> Iterator[checkpoint.Progress]:
    """A line of JSON for each tensor where the report is JSON; else a bar on a terminal, plain lines otherwise."""
    console = rich.console.Console(stderr=True)
    if as_json or not console.is_terminal:
        yield (_Events() if as_json else _Lines()).tick
        return
    bar = rich.progress.Progress(
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


class _Pace:
    """How fast the work goes, and how long the rest will take at that."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def pace(self, done: int, total: int) -> tuple[float, float]:
        """Bytes in a second, and seconds left."""
        elapsed = time.perf_counter() - self._started
        return done / elapsed, elapsed * (total - done) / max(done, 1)


class _Events(_Pace):
    """One event for each tensor that was counted, written or checked."""

    def tick(self, done: int, total: int, name: str) -> None:
        rate, left = self.pace(done, total)
        event = {"event": "progress", "tensor": name, "done": done, "total": total}
        print(json.dumps({**event, "rate": round(rate), "eta": round(left, 3)}), file=sys.stderr, flush=True)


class _Lines(_Pace):
    """One line for every tenth of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._tenths = 0

    def tick(self, done: int, total: int, name: str) -> None:
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths:
            self._tenths = tenths
            rate, left = self.pace(done, total)
            print(f"{10 * tenths} %  {size(int(rate))}/s, {left:.0f} s left  {name}", file=sys.stderr, flush=True)
