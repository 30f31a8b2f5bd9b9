"""Running the command line: every command is registered, errors become one line and an exit code."""

import errno
import functools
import sys
import warnings
from collections.abc import Callable, Sequence

from fastsparse import _sigint
from fastsparse._errors import FastSparseError
from fastsparse.cli._app import app
from fastsparse.cli.bench import bench
from fastsparse.cli.compress import compress
from fastsparse.cli.convert import convert
from fastsparse.cli.decompress import decompress
from fastsparse.cli.eval import evaluate
from fastsparse.cli.inspect import inspect
from fastsparse.cli.prune import prune
from fastsparse.cli.verify import verify

__all__ = ["run"]


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which an interrupt reaches at once: until it begins, libraries load, and `main` holds it off."""

    @functools.wraps(command)
    def begun(*args: object, **kwargs: object) -> None:
        _sigint.release()
        command(*args, **kwargs)

    return begun


for _command in (compress, prune, decompress, convert, inspect, verify, bench):
    app.command()(_interruptible(_command))
app.command("eval")(_interruptible(evaluate))


def run(arguments: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code. A warning is a line too."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"fastsparse: warning: {message}", file=sys.stderr)
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="fastsparse")
    except SystemExit as error:
        if error.code == 130:  # typer's way, without a word, to say that it was interrupted
            raise KeyboardInterrupt from None
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (FastSparseError, OSError, MemoryError) as error:
        advice = _ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        print(f"fastsparse: {str(error) or type(error).__name__}{advice}", file=sys.stderr)
        return 1
    return 0


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room and run it again, nothing of it is left"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; check who may read and write there"),
    errno.EROFS: "; name a target on a disk that can be written",
    errno.EFBIG: "; the disk or a limit allows no file of that size, name another target",
    errno.EIO: "; the disk is failing, read or write elsewhere",
}
"""What to do about a refusal of the operating system that does not say so itself."""
