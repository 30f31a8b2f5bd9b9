"""Finished stages of a run: who holds the folder, and that it can be removed."""

import shutil
import sys

import numpy as np
import pytest

from fastsparse import checkpoint
from fastsparse.checkpoint import _stages
from fastsparse.checkpoint._reader import Reader
from fastsparse.checkpoint._stages import Stages


@pytest.fixture
def stages(tmp_path):
    checkpoint.save({"w": np.ones(3, np.float32)}, tmp_path / "model")
    return Stages(tmp_path / "stages", Reader(tmp_path / "model"), "settings")


def test_an_interrupt_while_stages_are_checked_gives_the_folder_back(stages, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "_valid", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stages.__enter__()
    assert stages._lock.closed
    with stages:
        pass
    assert not stages.folder.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_the_lock_is_closed_where_an_open_file_cannot_be_removed(stages, monkeypatch, locks):
    """Where files can be locked it is held until the folder is gone, so that no other run gets into it."""
    if not locks:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    elif _stages._fcntl() is None:
        pytest.skip("no locks")
    closed, rmtree = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: closed.append(stages._lock.closed) or rmtree(*a, **k))
    with stages:
        assert not stages._lock.closed
    assert (closed, stages._lock.closed, stages.folder.exists()) == ([not locks], True, False)


def test_what_is_kept_is_noted_on_the_error(stages):
    with pytest.raises(OSError, match="full") as caught, stages:  # noqa: PT012
        stages.add("prune", "block", {"w": np.ones(3, np.float32)}, {}, ["w"], None)
        raise OSError("full")
    assert caught.value.__notes__ == [
        f"finished blocks are kept in {stages.folder}; the same command goes on after them"
    ]
    assert (stages.folder / "000000.safetensors").exists()
