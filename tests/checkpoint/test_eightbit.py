"""Checkpoints whose kept weights are int8 with a scale for each row."""

import json
import re
import tomllib

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastsparse as fs
from fastsparse import checkpoint, compressed_tensors
from fastsparse.checkpoint import Recipe
from fastsparse.cli import main

F32, F16, BF16 = (np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


@pytest.fixture
def tensors():
    rng = np.random.default_rng(5)
    kinds = {
        "a.weight": ((64, 96), BF16),
        "b.weight": ((50, 70), F32),
        "conv.weight": ((16, 8, 3, 11), F16),
        "experts.gate_up_proj": ((3, 32, 40), BF16),
        "norm.weight": ((64,), F32),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in kinds.items()}


@pytest.fixture
def src(tmp_path, tensors):
    checkpoint.save(tensors, tmp_path / "src.safetensors", metadata={"format": "pt"})
    return tmp_path / "src.safetensors"


def packed_names(tensors):
    return [name for name, w in tensors.items() if w.ndim > 1]


def test_there_and_back(tmp_path, src, tensors):
    path = tmp_path / "packed.safetensors"
    report = checkpoint.compress(src, path, Recipe(default="50%", bits=8))
    checkpoint.verify(path)
    verified = checkpoint.verify(path, src)
    opened = checkpoint.open(path)
    assert set(opened) == set(tensors)
    for name in packed_names(tensors):
        assert opened[name] == fs.compress(tensors[name], "50%").quantize()
    rows = {row.name: row for row in report.tensors}
    assert {row.name: row.bits for row in report.tensors if row.bits} == dict.fromkeys(packed_names(tensors), 8)
    a = rows["a.weight"]
    assert (a.dtype, a.bytes_before, a.bytes_after) == ("BF16", 64 * 96 * 2, 64 * 96 * 5 // 8 + 64 * 12 + 16)
    wide = tensors["a.weight"].astype(np.float64)
    kept_share = np.square(fs.prune(wide, "50%")).sum() / np.square(wide).sum()
    for one in (a, next(row for row in verified.tensors if row.name == "a.weight")):
        assert one.kept_energy == pytest.approx(kept_share, rel=1e-6)
    planned = checkpoint.plan(src, Recipe(default="50%", bits=8)).report
    looked = checkpoint.inspect(path)
    for other in (planned, looked):
        for row in other.tensors:
            assert (row.bits, row.bytes_after) == (rows[row.name].bits, rows[row.name].bytes_after)
    back = tmp_path / "back.safetensors"
    checkpoint.decompress(path, back)
    dense = load_file(back)
    for name, w in tensors.items():
        assert (dense[name].dtype, dense[name].shape) == (w.dtype, w.shape)
        expected = opened[name].to_dense() if w.ndim > 1 else w
        assert np.array_equal(dense[name].view(np.uint8), expected.view(np.uint8))
    with safe_open(back, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_keys_are_those_that_are_documented(tmp_path, src, tensors):
    path = tmp_path / "packed.safetensors"
    checkpoint.compress(src, path, Recipe(default="50%", bits=8))
    keys = load_file(path)
    q = fs.compress(tensors["a.weight"], "50%").quantize()
    assert keys["a.compressed"].dtype == np.int8
    assert np.array_equal(keys["a.compressed"], q.packed.values)
    assert np.array_equal(keys["a.row_scale"], q.scale)
    assert keys["a.row_scale"].dtype == np.float32
    assert (keys["a.weight"].shape, keys["a.weight"].dtype) == ((0,), BF16)
    assert keys["experts.gate_up_proj.row_scale"].shape == (3,)
    with safe_open(path, "np") as file:
        record = json.loads(file.metadata()["fastsparse"])
    assert record["format"] == 3
    assert record["packed"]["a.weight"] == {
        "prefix": "a",
        "shape": [64, 96],
        "dtype": "BF16",
        "pattern": "50%",
        "exact": True,
        "density": 0.5,
        "bits": 8,
    }
    checkpoint.compress(src, tmp_path / "plain", "50%")  # without them the file is one that earlier versions read
    with safe_open(tmp_path / "plain", "np") as file:
        assert json.loads(file.metadata()["fastsparse"])["format"] == 2


def test_names_and_dtypes_survive_without_the_record(tmp_path, src, tensors):
    path, again = tmp_path / "packed", tmp_path / "again"
    checkpoint.compress(src, path, Recipe(default="2:4", bits=8))
    save_file(load_file(path), again)
    for name in packed_names(tensors):
        assert checkpoint.open(again)[name] == checkpoint.open(path)[name]
    checkpoint.verify(again, src)
    keys = load_file(path)
    del keys["b.row_scale"]
    save_file(keys, again)
    with pytest.raises(fs.FormatError, match=r"tensor 'b\.weight': 'b\.row_scale' is missing"):
        checkpoint.open(again)
    cast = {key: part.astype(F16) if part.dtype in (F32, BF16) else part for key, part in load_file(path).items()}
    save_file(cast, again)
    with pytest.raises(fs.FormatError, match=r"'a\.row_scale' is F16 \[64\], expected F32 \[64\]"):
        checkpoint.open(again)


def test_what_has_eight_bits_already_is_packed_as_it_is(tmp_path):
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(ml_dtypes.float8_e4m3fn)
    checkpoint.save({"a.weight": w}, tmp_path / "src")
    report = checkpoint.compress(tmp_path / "src", tmp_path / "packed", Recipe(default="50%", bits=8))
    assert report.tensors[0].bits is None
    assert checkpoint.open(tmp_path / "packed")["a.weight"] == fs.compress(w, "50%")


def test_a_mapping_is_saved_as_it_is(tmp_path, src, tensors):
    path, again = tmp_path / "packed", tmp_path / "again"
    checkpoint.compress(src, path, Recipe(default="2:4", bits=8))
    checkpoint.save(checkpoint.open(path), again)
    for name in packed_names(tensors):
        assert checkpoint.open(again)[name] == checkpoint.open(path)[name]
    assert checkpoint.open(again)["a.weight"].pattern == fs.pattern("2:4")
    checkpoint.verify(again)


def test_zeros_of_the_source_and_weights_that_round_to_zero(tmp_path):
    w = np.zeros((64, 64), F32)
    w[:, ::4] = 1
    w[:, 1] = 1e-4  # less than half a step
    checkpoint.save({"a.weight": w}, tmp_path / "src")
    report = checkpoint.compress(tmp_path / "src", tmp_path / "packed", Recipe(default="50%", bits=8))
    assert report.tensors[0].sparsity == 47 / 64
    q = checkpoint.open(tmp_path / "packed")["a.weight"]
    assert q.nnz == 17 * 64
    assert (q.packed.values == 0).sum() == 64
    assert np.array_equal(q.to_dense(), np.where(w == 1, np.float32(127) * (np.float32(1) / np.float32(127)), 0))
    checkpoint.verify(tmp_path / "packed", tmp_path / "src")


def test_what_is_damaged_is_found(tmp_path, src):
    path = tmp_path / "packed"
    checkpoint.compress(src, path, Recipe(default="50%", bits=8))
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    keys = load_file(path)
    for change, message in [
        ({"b.row_scale": -keys["b.row_scale"]}, r"tensor 'b\.weight': scale: that of row 0 is -"),
        ({"b.row_scale": np.full_like(keys["b.row_scale"], np.nan)}, "row 0 is nan"),
        ({"b.row_scale": keys["b.row_scale"][1:]}, r"'b\.row_scale' is F32 \[49\], expected F32 \[50\]"),
        ({"b.compressed": keys["b.compressed"].view(np.uint8)}, r"'b\.compressed' is U8"),
    ]:
        save_file({**keys, **change}, tmp_path / "broken", metadata=metadata)
        with pytest.raises(fs.FormatError, match=message):
            checkpoint.verify(tmp_path / "broken")
    for key in ("b.row_scale", "b.compressed"):
        other = keys[key].copy()
        other[3] += 1
        save_file({**keys, key: other}, tmp_path / "broken", metadata=metadata)
        checkpoint.verify(tmp_path / "broken")
        with pytest.raises(fs.FormatError, match=r"tensor 'b\.weight': kept elements differ from the source"):
            checkpoint.verify(tmp_path / "broken", src)
    record = json.loads(metadata["fastsparse"])
    record["packed"]["b.weight"]["bits"] = 4
    save_file(keys, tmp_path / "broken", metadata={"fastsparse": json.dumps(record)})
    with pytest.raises(fs.FormatError, match=r"tensor 'b\.weight': metadata: 4 bits in layout 'matrix'"):
        checkpoint.open(tmp_path / "broken")


def test_other_layouts_get_the_weights_that_these_stand_for(tmp_path, src, tensors):
    path = tmp_path / "packed"
    checkpoint.compress(src, path, Recipe(default="2:4", bits=8))
    checkpoint.decompress(path, tmp_path / "back")
    dense = load_file(tmp_path / "back")
    for to in ("sparse-bitmask", "sparse-24", "dense"):
        compressed_tensors.convert(path, tmp_path / to, to)
        found = checkpoint.open(tmp_path / to)
        for name in ("a.weight", "b.weight"):
            array = found[name].to_dense() if isinstance(found[name], fs.BitmaskArray) else found[name]
            assert np.array_equal(array, dense[name])
            assert array.dtype == tensors[name].dtype
    with pytest.raises(fs.FastSparseError, match="config: compressed-tensors reads no weights of 8 bits"):
        checkpoint.compress(src, tmp_path / "x", Recipe(default="50%", bits=8), config="compressed-tensors")


def test_infinities_and_nans_are_named(tmp_path):
    for wrong in (np.inf, np.nan):
        w = np.random.default_rng(0).standard_normal((64, 64)).astype(F32)
        w[7, 3] = wrong
        checkpoint.save({"a.weight": w}, tmp_path / "src", overwrite=True)
        with pytest.raises(fs.FastSparseError, match=rf"tensor 'a\.weight': row 7: its largest magnitude is {wrong}"):
            checkpoint.compress(tmp_path / "src", tmp_path / "dst", Recipe(default="nonzero", bits=8))
        assert not (tmp_path / "dst").exists()


def test_recipes_and_the_command_line(tmp_path, src, capsys):
    (tmp_path / "recipe.toml").write_text('default = "50%"\nbits = 8\n')
    assert Recipe.from_toml(tmp_path / "recipe.toml") == Recipe(default="50%", bits=8)
    assert tomllib.loads((tmp_path / "recipe.toml").read_text())["bits"] == 8
    for wrong in (4, 16, True, "8"):
        with pytest.raises(fs.FastSparseError, match="bits: expected 8, or None"):
            Recipe(default="50%", bits=wrong)
    assert main(["compress", str(src), str(tmp_path / "one"), "--recipe", str(tmp_path / "recipe.toml")]) == 0
    assert main(["compress", str(src), str(tmp_path / "two"), "--pattern", "50%", "--bits", "8"]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "two")]) == 0
    assert re.search("BF16 +8 ", capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "two"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert {row["name"]: row["bits"] for row in rows}["a.weight"] == 8
    assert main(["compress", str(src), str(tmp_path / "x"), "--pattern", "50%", "--bits", "4"]) == 2


def test_a_folder(tmp_path, tensors):
    (tmp_path / "src").mkdir()
    checkpoint.save(tensors, tmp_path / "src" / "model.safetensors")
    (tmp_path / "src" / "config.json").write_text('{"model_type": "llama"}')
    checkpoint.compress(tmp_path / "src", tmp_path / "packed", Recipe(default="50%", bits=8))
    checkpoint.verify(tmp_path / "packed", tmp_path / "src")
    report = checkpoint.decompress(tmp_path / "packed", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"model_type": "llama"}
    assert report.bytes_after == sum(w.nbytes for w in tensors.values())


def test_zeros_spread_over_all_tensors(tmp_path, src, tensors):
    report = checkpoint.compress(src, tmp_path / "packed", Recipe(default="50%", scope="global", bits=8))
    checkpoint.verify(tmp_path / "packed", src)
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    assert [row.bits for row in report.tensors if row.reason is None].count(8) == 4
