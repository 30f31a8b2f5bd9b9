"""Files of statistics: what is stored of the inputs of layers, and what a file may not be."""

import json

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import calibration, checkpoint
from fastsparse.calibration import _statistics

KEY = _statistics.METADATA_KEY


def gather(*, diagonal=False):
    rng = np.random.default_rng(0)
    shared, own = calibration.Gram(8, diagonal=diagonal), calibration.Gram(6, diagonal=diagonal)
    shared.update(rng.standard_normal((20, 8)))
    own.update(rng.standard_normal((11, 6)))
    return {"a.q": shared, "a.k": shared, "b": own}


@pytest.fixture
def grams():
    return gather()


@pytest.mark.parametrize(("matrices", "clip"), [(True, None), (False, 2.5)])
def test_what_is_stored_is_loaded(tmp_path, matrices, clip):
    grams = gather(diagonal=not matrices)
    path = tmp_path / "s.safetensors"
    transposed = {"a.q": False, "a.k": False, "b": True}
    arrays, layers = _statistics.describe(grams, transposed)
    assert [key for key in arrays if key.endswith(".gram")] == (["a.q.gram", "b.gram"] if matrices else [])
    _statistics.save_statistics(path, arrays, layers, model="tiny", tokens=20, clip=clip)
    found = calibration.load_statistics(path)
    assert (found.model, found.tokens, found.clip, list(found)) == ("tiny", 20, clip, list(grams))
    for name, gram in grams.items():
        layer = found[name]
        assert (layer.tokens, layer.transposed) == (gram.tokens, transposed[name])
        assert np.array_equal(layer.norms, gram.norms.astype(np.float32))
        assert layer.gram is None if not matrices else np.array_equal(layer.gram, gram.matrix)
        found.release(name)
    assert np.array_equal(checkpoint.open(path)["a.k.norms"], found["a.q"].norms)
    with pytest.raises(KeyError):
        found["c"]


def document(**changes):
    layers = {"a": {"tokens": 3, "transposed": False, "gram": "a"}}
    return {"version": 1, "model": "m", "tokens": 3, "layers": layers} | changes


@pytest.mark.parametrize(
    ("arrays", "text", "message"),
    [
        ({}, None, "no statistics"),
        ({}, "{", "is not valid"),
        ({}, json.dumps({"version": 1}), "is not valid"),
        ({}, json.dumps(document(version=2)), r"safetensors: statistics of version 2; this package reads 1$"),
        ({}, json.dumps(document(layers={"a": {"tokens": 3}})), "is not valid"),
        ({}, json.dumps(document(clip="two")), "is not valid"),
        ({}, json.dumps(document()), r"layer 'a': expected 'a\.norms'"),
        ({"a.norms": [1, np.nan]}, json.dumps(document()), "not all finite"),
        ({"a.norms": [1, 2]}, json.dumps(document()), r"layer 'a': expected 'a\.gram'"),
        ({"a.norms": [1, 2], "a.gram": [[1]]}, json.dumps(document()), r"'a\.gram' is \(1, 1\), its norms \(2,\)"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, text, message):
    path = tmp_path / "s.safetensors"
    tensors = {name: np.array(values, np.float32) for name, values in arrays.items()} or {"x": np.zeros(1, np.float32)}
    checkpoint.save(tensors, path, metadata={} if text is None else {KEY: text})
    with pytest.raises(fs.FormatError, match=message):
        calibration.load_statistics(path)


def test_nothing_is_not_written(tmp_path):
    with pytest.raises(fs.FastSparseError, match="no layers"):
        _statistics.save_statistics(tmp_path / "s.safetensors", {}, {}, model="m", tokens=0)
