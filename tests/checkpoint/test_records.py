"""Packed files that other tools save again: without the record, or with one that no longer fits."""

import json

import ml_dtypes
import numpy as np
import pytest
import raw_safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastsparse as fs
from fastsparse import checkpoint, compressed_tensors
from fastsparse.cli import main


@pytest.fixture
def tensors():
    rng = np.random.default_rng(3)
    shapes = {
        "experts.gate_up_proj": (3, 32, 40),
        "lstm.weight_hh_l0": (48, 64),
        "conv.kernel": (16, 8, 3, 11),
        "conv.weight": (16, 8, 3, 11),
        "fc.weight": (64, 64),
        "x": (64, 64),
        "x.weight": (64, 65),
        "y.weight.weight": (64, 64),
        "weight": (64, 64),
        "norm.weight": (64,),
        "empty": (0,),
        "empty.weight": (64, 64),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def packed(tmp_path, tensors):
    checkpoint.save(tensors, tmp_path / "dense")
    every = checkpoint.Rule(r"^(?!norm\.|empty$)", "50%")  # whatever the default selection thinks of the names
    checkpoint.compress(tmp_path / "dense", tmp_path / "packed", checkpoint.Recipe(rules=[every]))
    return tmp_path / "packed"


def record_of(path):
    with safe_open(path, "np") as file:
        return file.metadata()


def assert_same(found, tensors):
    assert set(found) == set(tensors)
    for name, w in tensors.items():
        assert found[name] == fs.compress(w, "50%") if w.ndim > 1 else np.array_equal(found[name], w), name


def test_names_survive_without_the_record(tmp_path, packed, tensors):
    """As mergekit, `save_pretrained` and resharding save it; in folders and in single files."""
    opened = checkpoint.open(packed)
    assert_same(opened, tensors)
    save_file(load_file(packed), tmp_path / "again", metadata={"format": "pt"})
    assert_same(checkpoint.open(tmp_path / "again"), tensors)
    checkpoint.verify(tmp_path / "again", tmp_path / "dense")
    checkpoint.decompress(tmp_path / "again", tmp_path / "back")
    back = checkpoint.open(tmp_path / "back")
    assert {name: array.shape for name, array in back.items()} == {name: w.shape for name, w in tensors.items()}

    keys = load_file(packed)
    (tmp_path / "folder").mkdir()
    for at, key in enumerate(keys):  # each key in a file of its own
        save_file({key: keys[key]}, tmp_path / "folder" / f"{at}.safetensors")
    where = {key: f"{at}.safetensors" for at, key in enumerate(keys)}
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(checkpoint.open(tmp_path / "folder"), tensors)


def test_only_names_that_the_keys_do_not_tell_have_a_stub_in_a_file(packed, tensors):
    stubs = {key for key, array in load_file(packed).items() if array.shape == (0,)}
    assert stubs == tensors.keys() - {"fc.weight", "conv.weight", "norm.weight"}


def test_a_file_that_is_dense_again_and_kept_its_metadata(tmp_path, packed, tensors):
    dense = {name: w if name == "norm.weight" else fs.prune(w, "50%") for name, w in tensors.items()}
    save_file(dense, tmp_path / "again", metadata=record_of(packed))
    with pytest.warns(UserWarning, match=r"again: the record.*is stale: '.*' is not there in packed form"):
        opened = checkpoint.open(tmp_path / "again")
    assert all(np.array_equal(opened[name], dense[name]) for name in dense)
    assert opened.metadata == {}
    with pytest.warns(UserWarning, match="stale"), pytest.raises(fs.FormatError, match="the record is stale"):
        checkpoint.verify(tmp_path / "again")
    with pytest.warns(UserWarning, match="stale"):
        checkpoint.compress(tmp_path / "again", tmp_path / "new", "nonzero")
    assert_same(checkpoint.open(tmp_path / "new"), tensors)


@pytest.mark.filterwarnings("default:.*is stale:UserWarning")
def test_the_command_line_says_so_in_one_line(tmp_path, packed, tensors, capsys):
    save_file({"fc.weight": tensors["fc.weight"]}, tmp_path / "again", metadata=record_of(packed))
    assert main(["inspect", str(tmp_path / "again")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"fastsparse: warning: {tmp_path}/again: the record of packed tensors")
    assert main(["verify", str(tmp_path / "again")]) == 1


def test_some_tensors_dense_again_and_some_new(tmp_path, packed, tensors):
    arrays = {key: array for key, array in load_file(packed).items() if not key.startswith("fc.")}
    own = fs.pack(np.eye(8, dtype=np.float32))
    extra = {"new.shape": np.int64([8, 8]), "new.compressed": own.values, "new.bitmask": own.bitmask}
    extra |= {"new.row_offsets": own.row_offsets[:-1], "fc.weight": tensors["fc.weight"]}
    save_file(arrays | extra, tmp_path / "again", metadata=record_of(packed))
    with pytest.warns(UserWarning, match="'fc.weight' is not there in packed form; so it is with 1 more"):
        opened = checkpoint.open(tmp_path / "again")
    assert opened["new.weight"] == own
    assert np.array_equal(opened["fc.weight"], tensors["fc.weight"])
    assert opened["x"] == fs.compress(tensors["x"], "50%")


def test_renamed_keys(tmp_path, packed, tensors):
    renamed = {f"model.{key}": array for key, array in load_file(packed).items()}
    save_file(renamed, tmp_path / "again", metadata=record_of(packed))
    with pytest.warns(UserWarning, match="stale"):
        assert_same(checkpoint.open(tmp_path / "again"), {f"model.{name}": w for name, w in tensors.items()})


def test_cast_values(tmp_path, packed, tensors):
    cast = {key: array.astype("f2") if array.dtype == "f4" else array for key, array in load_file(packed).items()}
    save_file(cast, tmp_path / "again", metadata=record_of(packed))
    with pytest.warns(UserWarning, match="is recorded as F32 and there as F16"):
        opened = checkpoint.open(tmp_path / "again")
    for name in ("fc.weight", "experts.gate_up_proj"):
        wanted = fs.compress(tensors[name], "50%")
        assert np.array_equal(opened[name].values, wanted.values.astype(np.float16))
        assert opened[name].mask == wanted.mask


def test_a_record_of_dense_pruned_tensors_without_them(tmp_path):
    text = json.dumps({"format": 2, "packed": {}, "pruned": {"gone": {"pattern": "50%", "density": 0.5}}})
    raw_safetensors.write(tmp_path / "x", {"a": np.ones(3, "f")}, {"fastsparse": text})
    with pytest.warns(UserWarning, match="'gone' is not there as a dense tensor"):
        assert list(checkpoint.open(tmp_path / "x")) == ["a"]


@pytest.mark.parametrize("text", ["1.0", "yes", "{}", '"2"', "", '{"version": 1}'])
def test_metadata_of_that_name_by_someone_else(tmp_path, text):
    """Harmless in a dense file, an error beside packed tensors."""
    raw_safetensors.write(tmp_path / "x", {"a": np.ones(3, "f")}, {"fastsparse": text})
    with pytest.warns(UserWarning, match="stale"):
        assert list(checkpoint.open(tmp_path / "x")) == ["a"]
    s = fs.pack(np.eye(8, dtype=np.float32))
    parts = {"a.shape": np.int64([8, 8]), "a.compressed": s.values, "a.bitmask": s.bitmask}
    raw_safetensors.write(tmp_path / "x", parts, {"fastsparse": text})
    with pytest.raises(fs.FormatError, match="metadata 'fastsparse'"):
        checkpoint.open(tmp_path / "x")


def test_a_later_version_is_refused_whatever_is_in_it(tmp_path):
    raw_safetensors.write(tmp_path / "x", {"a": np.ones(3, "f")}, {"fastsparse": '{"format": 4}'})
    with pytest.raises(fs.FormatError, match=r"format 4 is unknown.*update"):
        checkpoint.open(tmp_path / "x")


def test_names_of_format_1_are_lost_with_its_record(tmp_path):
    """Then the file is refused: `m.compressed` may be any of `m` and `m.weight`."""
    s = fs.pack(np.eye(8, dtype=np.float32))
    fields = {"shape": [8, 8], "dtype": "F32", "pattern": None, "exact": False, "density": 0.125}
    parts = {"shape": np.int64([8, 8]), "compressed": s.values, "bitmask": s.bitmask}
    parts["row_offsets"] = s.row_offsets[:-1]

    def write(prefix, recorded, name):
        record = {"format": 1, "packed": {name: {"prefix": recorded, **fields}}}
        keys = {f"{prefix}.{part}": array for part, array in parts.items()}
        return raw_safetensors.write(tmp_path / "x", keys, {"fastsparse": json.dumps(record)})

    assert list(checkpoint.open(write("m", "m", "m"))) == ["m"]
    with pytest.raises(fs.FormatError, match=r"stale and has no 'model\.m'.*names such as 'm' in the record only"):
        checkpoint.open(write("model.m", "m", "m"))
    with pytest.warns(UserWarning, match="stale"):  # by the rule of compressed-tensors
        assert list(checkpoint.open(write("model.m", "m", "m.weight"))) == ["model.m.weight"]


@pytest.mark.parametrize("missing", ["shape", "compressed", "bitmask"])
def test_a_part_that_was_lost_is_an_error_without_a_record_too(tmp_path, packed, missing):
    keys = {key: array for key, array in load_file(packed).items() if key != f"fc.{missing}"}
    save_file(keys, tmp_path / "again")
    with pytest.raises(fs.FormatError, match=rf"'fc\.weight': 'fc\.{missing}' is missing"):
        checkpoint.open(tmp_path / "again")


def test_what_open_would_refuse_is_not_saved(tmp_path):
    s = fs.pack(np.eye(8, dtype=ml_dtypes.bfloat16))
    parts = {"a.compressed": s.values, "a.bitmask": s.bitmask, "a.row_offsets": s.row_offsets[:-1]}
    for tensors, options, why in (
        ({"a": np.ones(3)}, {"metadata": {"fastsparse": "1.0"}}, "metadata: the key 'fastsparse'"),
        (parts, {}, r"'a\.shape' is missing"),
        ({**parts, "a.shape": np.int64([8, 9])}, {}, "expected"),
        ({**parts, "a.shape": np.int64([8, 8]), "a.weight": np.ones(3)}, {}, "occurs twice"),
        ({**parts, "b": s}, {}, "'a': arrays have the names of its parts"),
    ):
        with pytest.raises(fs.FastSparseError, match=why):
            checkpoint.save(tensors, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()
    checkpoint.save({**parts, "a.shape": np.int64([8, 8])}, tmp_path / "x")
    assert checkpoint.open(tmp_path / "x")["a.weight"] == s


def test_convert_packs_only_what_compressed_tensors_reads_under_its_name(tmp_path):
    w = fs.prune(np.random.default_rng(1).standard_normal((64, 64), np.float32), "75%")
    names = ["a.weight", "x", "x.weight", "y.weight.weight"]
    checkpoint.save({name: fs.pack(w) for name in names}, tmp_path / "src")
    report = compressed_tensors.convert(tmp_path / "src", tmp_path / "dst", "sparse-bitmask")
    assert [row.name for row in report.tensors if row.reason is None] == ["a.weight"]
    save_file(load_file(tmp_path / "dst"), tmp_path / "again")
    assert sorted(checkpoint.open(tmp_path / "again")) == names
