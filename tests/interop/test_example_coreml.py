"""The Core ML example runs as it is."""

import runpy
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore")
def test_it_runs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coreml_model"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "coreml_model.py"), run_name="__main__")
    assert "blob at 64" in capsys.readouterr().out
