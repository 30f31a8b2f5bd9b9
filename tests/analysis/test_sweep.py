"""Sweeps against pruning: what each pattern keeps is what `prune` leaves."""

import json
import math

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, NAMES, patterns, tensors, weights

import fastsparse as fs

pytestmark = pytest.mark.usefixtures("backend")


def energy(values):
    with np.errstate(over="ignore", under="ignore"):
        return math.fsum(np.square(values).tolist())


def check(w, chosen, column_scale=None):
    """Each row against the pruned tensor, in float64."""
    swept = fs.sweep(w, chosen, column_scale=column_scale)
    assert (swept.shape, swept.dtype, len(swept)) == (w.shape, w.dtype.name, len(chosen))
    values = oracle.ranked(w, column_scale=column_scale).reshape(w.shape)
    total = energy(values.reshape(-1))
    for pattern, row in zip(chosen, swept, strict=True):
        scale = None if isinstance(fs.pattern(pattern), fs.Nonzero) else column_scale
        packed = fs.compress(w, pattern, column_scale=scale)
        assert row.pattern == fs.pattern(pattern)
        assert (row.sparsity, row.packed_bytes) == (packed.sparsity, packed.nbytes)
        assert row.ratio == packed.ratio
        kept = energy(values[packed.mask.to_bool()].reshape(-1))
        if not math.isfinite(total):
            assert row.kept_energy is None or row.kept_energy == 0
        elif total == 0:
            assert row.kept_energy == 1
        else:
            assert row.kept_energy == pytest.approx(kept / total, rel=1e-12, abs=1e-300)


@given(data=st.data())
def test_any_tensor_and_patterns(data):
    w = data.draw(tensors())
    chosen = data.draw(st.lists(patterns(w.ndim), min_size=1, max_size=4))
    check(w, chosen)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "wild"])
def test_every_ratio_of_a_tensor(dtype, kind):
    w = weights((70, 257), dtype, 3, kind)
    check(w, [f"{percent}%" for percent in (0, 0.01, 1, 10, 33.3, 50, 66.7, 90, 99, 99.99, 100)])


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_groups_of_one_length(dtype):
    w = weights((9, 16, 3, 5), dtype, 4)
    chosen = [fs.NM(zeros=zeros, of=of, axis=axis) for of in (2, 4, 7, 16) for zeros in (1, of // 2) for axis in (0, 1)]
    check(w, [*chosen, "top3/8@tail=keep", "40:64@axis=1", "2:3", "100:200@axis=1"])


def test_every_kind_beside_each_other():
    w = weights((64, 96), np.float32, 5)
    check(w, ["50%", "50%/row", "2:4", "4:8", "75%/4x1", "50%/8@axis=0,norm=max", "threshold=0.5", "nonzero", "50%"])


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_scaled_columns(dtype):
    scale = np.linspace(0, 3, 48)
    check(
        weights((50, 48), dtype, 6), ["0%", "50%", "99%", "2:4", "1:4@axis=0", "50%/row", "75%/2x4", "nonzero"], scale
    )
    check(weights((4, 48, 3), dtype, 6), ["30%", "2:4@axis=1"], scale)


def test_more_weights_than_a_table_serves():
    """Several runs of a histogram, and bins that hold many."""
    w = np.random.default_rng(7).standard_normal((1100, 2048)).astype(np.float32)
    w[:, ::5] = np.float32(0.37)
    w[5, ::3] = 0
    check(w, ["5%", "25%", "50%", "75%", "99.9%", "3:4"])


def test_the_number_of_threads_changes_nothing():
    w = np.random.default_rng(8).standard_normal((1500, 2048)).astype(np.float32)
    chosen = ["50%", "90%", "2:4", "8:16@axis=0", "75%/4x1"]
    assert fs.sweep(w, chosen, threads=1) == fs.sweep(w, chosen, threads=3)


def test_nothing_has_no_ratio_in_json():
    found = fs.sweep(np.ones((0, 4), np.float32), ["50%", "2:4"])
    assert found[0].ratio == math.inf
    assert [row["ratio"] for row in json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"]] == [None, None]


def test_infinity_has_no_share():
    w = np.float32([[1, np.inf, 2, 3]])
    assert fs.sweep(w, "50%")[0].kept_energy is None


@pytest.mark.parametrize("chosen", ["50%", "2:4", "75%/4x1", "50%/row"])
def test_nan_is_named(chosen):
    w = np.ones((4, 40), np.float32)
    w[2, 3] = np.nan
    with pytest.raises(fs.FastSparseError, match=r"w contains NaN at index \(2, 3\)"):
        fs.sweep(w, chosen)


def test_what_does_not_fit_is_refused():
    with pytest.raises(fs.FastSparseError, match=r"axis: 2 is out of range"):
        fs.sweep(np.ones((4, 4)), "2:4@axis=2")
    with pytest.raises(fs.FastSparseError, match='tail="error"'):
        fs.sweep(np.ones((4, 6)), "2:4@tail=error")
    with pytest.raises(fs.FastSparseError, match="dtype int16"):
        fs.sweep(np.ones(4, np.int16))
    with pytest.raises(fs.FastSparseError, match="threads"):
        fs.sweep(np.ones(4), threads=0)


def test_what_is_taken():
    w = weights((6, 10), np.float32, 9)
    assert fs.sweep(w[:, ::2], "50%") == fs.sweep(w[:, ::2].copy(), "50%")
    assert fs.sweep(w.tolist(), "50%").dtype == "float64"
    assert fs.sweep(fs.compress(w, "2:4"), "25%") == fs.sweep(fs.prune(w, "2:4"), "25%")
    assert [str(row.pattern) for row in fs.sweep(w)][::9] == ["10%", "2:4"]


def test_rows_are_found_by_pattern():
    swept = fs.sweep(weights((6, 10), np.float32, 9), ["50%", "2:4"])
    assert swept["2:4"] is swept[1]
    assert swept[fs.Unstructured(0.5)] is swept[0]
    with pytest.raises(KeyError, match="75%"):
        swept["75%"]
    assert swept.to_dict()["rows"][1]["pattern"] == "2:4"
    assert "2:4" in repr(swept)
