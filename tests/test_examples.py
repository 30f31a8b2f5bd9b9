"""The examples that need no framework run as they are; `tests/interop` runs the others."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [("numpy_pipeline", "packed and dense differ by"), ("model_folder", "rescued: every bit is there")],
)
def test_it_runs(capsys, monkeypatch, name, says):
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert says in capsys.readouterr().out
