"""Global pruning against sorting everything at once."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse import _core, checkpoint
from fastsparse.checkpoint import Recipe, Rule

DTYPES = ["float64", "float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, "int8"]


def oracle(tensors, sparsity, floor=0.0, ceiling=1.0):
    """What is kept of each tensor: sort by magnitude, of equal ones the last name and index goes first."""
    names = sorted(tensors)
    keys = {name: np.abs(tensors[name].astype(np.float64)).reshape(-1) for name in names}
    goes = {name: np.zeros(keys[name].size, bool) for name in names}
    open_to_all = []
    for place, name in enumerate(names):
        order = np.lexsort((-np.arange(keys[name].size), keys[name]))
        least, most = round(floor * order.size), round(ceiling * order.size)
        goes[name][order[:least]] = True
        open_to_all += [(keys[name][at], -place, -at, name) for at in order[least:most].tolist()]
    total = round(sparsity * sum(map(len, keys.values())))
    for *_, at, name in sorted(open_to_all)[: total - sum(int(mask.sum()) for mask in goes.values())]:
        goes[name][-at] = True
    return {name: ~goes[name].reshape(tensors[name].shape) for name in names}


def compress(folder, tensors, **recipe):
    src, dst = folder / "src", folder / "dst"
    checkpoint.save(tensors, src, overwrite=True)
    report = checkpoint.compress(src, dst, Recipe(scope="global", include=["."], **recipe), overwrite=True)
    checkpoint.verify(dst, src)
    return report, checkpoint.open(dst)


def check(report, opened, tensors, kept):
    for row in report.tensors:
        w, found = tensors[row.name], opened[row.name]
        expected = np.where(kept[row.name], w, np.zeros((), w.dtype))
        assert row.reason is None or "larger" in row.reason
        assert np.array_equal(found.to_dense() if row.reason is None else found, expected)
        assert round(row.sparsity * row.elements) == np.count_nonzero(expected == 0)
    assert any(row.reason is None for row in report.tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sparsity", "bounds"), [(0.5, ()), (0.9, (0.6,)), (0.5, (0.3, 0.7)), (0.5, (0.0, 0.55)), (1.0, ())]
)
def test_it_is_what_sorting_everything_gives(tmp_path, dtype, sparsity, bounds):
    rng = np.random.default_rng(2)
    scales = {"b.weight": 3, "a.weight": 9, "c": 30}
    tensors = {name: (scale * rng.standard_normal((30, 33))).astype(dtype) for name, scale in scales.items()}
    options = dict(zip(("min_sparsity", "max_sparsity"), bounds, strict=False))
    report, opened = compress(tmp_path, tensors, default=f"{100 * sparsity}%", **options)
    check(report, opened, tensors, oracle(tensors, sparsity, *bounds))
    zeros = sum(round(row.elements * row.sparsity) for row in report.tensors)
    if all(np.count_nonzero(w) == w.size for w in tensors.values()):
        assert zeros == round(sparsity * 3 * 990)


def test_types_are_compared_by_value(tmp_path):
    rng = np.random.default_rng(3)
    tensors = {f"{i}": (4 * rng.standard_normal((20, 25))).astype(dtype) for i, dtype in enumerate(DTYPES)}
    report, opened = compress(tmp_path, tensors, default="60%")
    check(report, opened, tensors, oracle(tensors, 0.6))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ties_are_kept_by_name_then_index(tmp_path, data):
    few = st.lists(st.sampled_from([1.0, -1.0, 2.0, 1e-40, 3e38]), min_size=256, max_size=256)
    names = data.draw(st.lists(st.sampled_from("abcde"), min_size=1, unique=True))
    tensors = {name: np.float32(data.draw(few)).reshape(2, 128) for name in names}
    sparsity = data.draw(st.sampled_from([0.3, 0.5, 0.77]))
    floor, ceiling = data.draw(st.sampled_from([(0.0, 1.0), (0.25, 1.0), (0.125, 0.875)]))
    report, opened = compress(tmp_path, tensors, default=f"{100 * sparsity}%", min_sparsity=floor, max_sparsity=ceiling)
    check(report, opened, tensors, oracle(tensors, sparsity, floor, ceiling))


def test_a_tensor_that_stays_dense_loses_its_share_too(tmp_path):
    """Else fewer zeros would be made than were asked for."""
    rng = np.random.default_rng(8)
    scales = {"a.weight": 1, "b.weight": 50, "c.weight": 1e6}
    tensors = {name: (scale * rng.standard_normal((64, 64))).astype(np.float32) for name, scale in scales.items()}
    report, opened = compress(tmp_path, tensors, default="34%")
    check(report, opened, tensors, oracle(tensors, 0.34))
    small, middle, large = report.tensors
    assert (small.reason, large.sparsity) == (None, 0)
    assert "larger" in middle.reason
    assert 0 < middle.sparsity < 0.06
    assert 0 < 1 - middle.kept_energy < 1e-4
    assert report.sparsity == pytest.approx(0.34, abs=1e-4)
    assert sum(round(row.sparsity * row.elements) for row in report.tensors) == round(0.34 * 3 * 64 * 64)
    assert report.packed == 1
    stored = checkpoint.inspect(tmp_path / "dst").tensors
    assert [(row.name, row.pattern, row.sparsity) for row in sorted(stored, key=lambda row: row.name)] == [
        (row.name, row.pattern, row.sparsity) for row in report.tensors
    ]
    planned = checkpoint.plan(tmp_path / "src", Recipe(default="34%", scope="global")).report.tensors
    assert [row.sparsity for row in planned] == [row.sparsity for row in report.tensors]
    checkpoint.decompress(tmp_path / "dst", tmp_path / "dense")
    dense = checkpoint.open(tmp_path / "dense")
    assert all(np.count_nonzero(dense[row.name]) == round((1 - row.sparsity) * 4096) for row in report.tensors)

    content = bytearray((tmp_path / "dst").read_bytes())
    w = opened["b.weight"]
    start = content.index(w.tobytes())
    for at, why in (
        (np.flatnonzero(w)[5], "is not what .* makes of the source"),
        (np.flatnonzero(w.reshape(-1) == 0)[0], "other zeros than recorded"),
    ):
        changed = bytearray(content)
        changed[start + 4 * int(at) + 2] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(fs.FormatError, match=rf"'b.weight': it .*{why}"):
            checkpoint.verify(tmp_path / "changed", tmp_path / "src")
    with pytest.raises(fs.FormatError, match="other zeros than recorded"):
        checkpoint.verify(tmp_path / "changed")


@pytest.mark.parametrize(("dtype", "reads"), [("float16", 2), ("int8", 2), ("float32", 3), ("float64", 4)])
def test_how_often_the_tensors_are_read(tmp_path, dtype, reads):
    """To find the threshold and the share of each; and once more to pack."""
    w = (20 * np.random.default_rng(0).standard_normal((64, 64))).astype(dtype)
    checkpoint.save({"a.weight": w, "b.weight": w}, tmp_path / "src")
    recipe, names = Recipe(default="50%", scope="global", include=["."]), []
    checkpoint.plan(tmp_path / "src", recipe, progress=lambda done, total, name: names.append(name))
    assert names == reads * ["a.weight", "b.weight"]
    checkpoint.compress(tmp_path / "src", tmp_path / "dst", recipe, progress=lambda *tick: names.append(tick[2]))
    assert names == (2 * reads + 1) * ["a.weight", "b.weight"]


def test_tensors_with_a_rule_are_not_counted(tmp_path):
    rng = np.random.default_rng(4)
    tensors = {name: rng.standard_normal((40, 40)).astype(np.float32) for name in ("a", "b", "ruled")}
    tensors["ruled"] *= 1e-6
    _, opened = compress(tmp_path, tensors, default="50%", rules=[Rule("ruled", "2:4")])
    assert opened["ruled"] == fs.compress(tensors["ruled"], "2:4")
    del tensors["ruled"]
    kept = oracle(tensors, 0.5)
    assert all(np.array_equal(opened[name].mask.to_bool(), kept[name]) for name in tensors)
    assert sum(opened[name].nnz for name in tensors) == 1600


def test_over_the_shards_of_a_folder(tmp_path):
    rng = np.random.default_rng(5)
    tensors = {f"{i}.weight": rng.standard_normal((64, 64)).astype(np.float16) * (i + 1) for i in range(4)}
    (tmp_path / "src").mkdir()
    where = {name: f"{int(name[0]) % 2}.safetensors" for name in tensors}
    for shard in set(where.values()):
        own = {name: tensor for name, tensor in tensors.items() if where[name] == shard}
        checkpoint.save(own, tmp_path / "src" / shard)
    (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    report = checkpoint.compress(tmp_path / "src", tmp_path / "dst", Recipe(default="70%", scope="global"))
    check(report, checkpoint.open(tmp_path / "dst"), tensors, oracle(tensors, 0.7))


def test_what_cannot_be_met_is_refused_before_anything_is_written(tmp_path):
    w = np.arange(1, 2602, dtype=np.float32).reshape(51, 51)
    checkpoint.save({"a.weight": w, "b.weight": w}, tmp_path / "src")
    # Half of each is 1300, rounded to even, and half of both together 2601.
    recipe = Recipe(default="50%", scope="global", max_sparsity=0.5)
    with pytest.raises(fs.FastSparseError, match="max_sparsity: over all tensors it asks for 2600 zeros, not for 2601"):
        checkpoint.compress(tmp_path / "src", tmp_path / "dst", recipe)
    assert os.listdir(tmp_path) == ["src"]


def test_nan_is_refused(tmp_path):
    w = np.ones((64, 64), np.float16)
    w[7, 9] = np.nan
    checkpoint.save({"a.weight": np.ones((64, 64), "f"), "b.weight": w}, tmp_path / "src")
    with pytest.raises(fs.FastSparseError, match=r"'b.weight': .*NaN at index \(7, 9\)"):
        checkpoint.compress(tmp_path / "src", tmp_path / "dst", Recipe(default="50%", scope="global"))


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "all"},
        {"scope": "global", "default": "2:4"},
        {"scope": "global", "default": "50%/row"},
        {"scope": "global", "default": None},
        {"min_sparsity": 0.1},
        {"scope": "global", "min_sparsity": 0.6},
        {"scope": "global", "max_sparsity": 0.4},
        {"scope": "global", "max_sparsity": True},
        {"scope": "global", "max_sparsity": "0.7"},
        {"scope": "global", "min_sparsity": -0.1},
    ],
)
def test_recipes_are_checked_when_made(options):
    with pytest.raises(fs.FastSparseError, match=r"scope|_sparsity"):
        Recipe(**{"default": "50%", **options})


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_are_those_of_the_values(dtype):
    w = (5 * np.random.default_rng(6).standard_normal(5000)).astype(dtype)
    keys = np.abs(w.astype(np.float64)).view(np.int64)
    for low, shift in ((0, 42), (int(np.median(keys)) >> 42 << 42, 21), (int(np.median(keys)), 0), (2**62, 42)):
        below, bins, elements = _core.count_magnitudes(w, low, shift)
        inside = (keys[keys >= low] - low) >> shift
        expected = np.unique(inside[inside < 2**21], return_counts=True)
        assert below == (keys < low).sum()
        assert np.array_equal(bins, expected[0])
        assert np.array_equal(elements, expected[1])
