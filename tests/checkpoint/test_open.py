"""An open checkpoint as a mapping: names that are nearly right, closing, reports in print."""

import copy
import pickle

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint


@pytest.fixture
def path(tmp_path):
    w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    checkpoint.save({"layers.0.up_proj.weight": fs.compress(w, "50%"), "bias": w[0]}, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_a_missing_name_has_near_ones(path):
    weights = checkpoint.open(path)
    with pytest.raises(KeyError) as caught:
        weights["layers.0.upproj.weight"]
    assert str(caught.value) == (
        f"{path}: there is no tensor 'layers.0.upproj.weight' among its 2; did you mean 'layers.0.up_proj.weight'?"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(copy.copy(caught.value)) == str(caught.value)
    assert weights.get("nothing") is None
    with pytest.raises(KeyError, match="no tensor 3"):
        weights[3]


@pytest.mark.parametrize("mmap", [True, False])
def test_it_closes(path, mmap):
    with checkpoint.open(path, mmap=mmap) as weights:
        bias, packed = weights["bias"], weights["layers.0.up_proj.weight"]
        expected, dense = bias.copy(), packed.to_dense()
    assert np.array_equal(bias, expected)
    assert np.array_equal(packed.to_dense(), dense)
    assert set(weights) == {"layers.0.up_proj.weight", "bias"}
    for _ in range(2):
        with pytest.raises(fs.FastSparseError, match="is closed"):
            weights["bias"]
        weights.release("bias")
        weights.close()


def test_an_error_goes_through_it(path):
    with pytest.raises(ZeroDivisionError), checkpoint.open(path):
        1 / 0  # noqa: B018


def test_reports_print_as_tables(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(checkpoint.inspect(path)).splitlines()
    assert lines[0].split() == ["tensor", "shape", "dtype", "zeros", "before", "after"]
    assert lines[1].startswith("bias")
    assert lines[-2:][0] == "2 tensors, 1 packed, 50.0% zeros where pruned"
    checkpoint.decompress(path, path.with_name("dense.safetensors"))
    plan = checkpoint.plan(path.with_name("dense.safetensors"), "50%")
    assert str(plan) == str(plan.report)
