"""The command line, called in this process."""

import pytest

from fastsparse.cli import main


@pytest.fixture
def run(capsys):
    """Calls it with these arguments; returns exit code, stdout and stderr."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
