"""Running the command line: every command is registered, errors become one line and an exit code."""

import errno
import functools
import re
import sys
import warnings
from collections.abc import Callable, Sequence

import typer

from fastsparse import _sigint
from fastsparse._errors import FastSparseError
from fastsparse.cli._app import app
from fastsparse.cli._examples import EXAMPLES
from fastsparse.cli._notes import notes_of
from fastsparse.cli.bench import bench
from fastsparse.cli.calibrate import calibrate
from fastsparse.cli.compress import compress
from fastsparse.cli.convert import convert
from fastsparse.cli.decompress import decompress
from fastsparse.cli.demo import demo
from fastsparse.cli.eval import evaluate
from fastsparse.cli.inspect import inspect
from fastsparse.cli.prune import prune
from fastsparse.cli.sweep import report, sweep
from fastsparse.cli.verify import verify

__all__ = ["run"]


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which an interrupt reaches at once: until it begins, libraries load, and `main` holds it off."""

    @functools.wraps(command)
    def begun(*args: object, **kwargs: object) -> None:
        _sigint.release()
        command(*args, **kwargs)

    return begun


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "compress": compress,
    "prune": prune,
    "calibrate": calibrate,
    "eval": evaluate,
    "decompress": decompress,
    "convert": convert,
    "inspect": inspect,
    "verify": verify,
    "sweep": sweep,
    "report": report,
    "bench": bench,
}
for _name, _command in _COMMANDS.items():
    _examples = "\n\n\b\n" + "\n".join(f"  {line}" for line in EXAMPLES[_name])
    app.command(_name, epilog=f"Examples:{_examples}")(_interruptible(_command))


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
        for line in (f"{_with_options(str(error)) or type(error).__name__}{advice}", *notes_of(error)):
            print(f"fastsparse: {line}", file=sys.stderr)
        return 1
    return 0


def _with_options(message: str) -> str:
    """A message of the library with the options in place of its arguments, such as `overwrite=True` and `min_size`."""
    commands = getattr(typer.main.get_command(app), "commands", {}).values()
    options = {option.name: option.opts[0] for command in commands for option in command.params}
    given = r"\b(?:([a-z_]+)=True|([a-z]+(?:_[a-z]+)+))\b"
    return re.sub(given, lambda found: options.get(found[1] or found[2], found[0]), message)


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room and run it again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; check who may read and write there"),
    errno.EROFS: "; name a target on a disk that can be written",
    errno.EFBIG: "; the disk or a limit allows no file of that size, name another target",
    errno.EIO: "; the disk is failing, read or write elsewhere",
}
"""What to do about a refusal of the operating system that does not say so itself."""
