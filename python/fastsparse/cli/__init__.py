"""The command line's entry point."""

import sys
from collections.abc import Sequence
from io import TextIOWrapper

from fastsparse._sigint import Deferred, defer_sigint
from fastsparse.cli._notes import notes_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; by default that of this process.

    Returns
    -------
    int
        0 done, 1 failed, 2 the command line was not understood, 130 interrupted.
    """
    interrupt: Deferred | None = None
    try:
        with defer_sigint() as interrupt:  # until a command begins
            return _run(arguments)
    except BaseException as error:
        # What imports lazily, or calls back, may wrap the exception into one of its own.
        if not isinstance(error, KeyboardInterrupt) and not (interrupt and interrupt.seen):
            raise
        left = "; ".join(notes_of(error)) or "what was begun is removed"
        print(f"fastsparse: interrupted; {left}", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    from fastsparse.cli._commands import run  # here, so that an interrupt meanwhile is one line too

    if arguments is None and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names and signs may be in no code page
    return run(arguments)
