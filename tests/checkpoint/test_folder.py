"""Model folders: shards, index, config and side files go through and come back."""

import json
import os
import signal

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint, compressed_tensors
from fastsparse.checkpoint import _folder

INDEX = "model.safetensors.index.json"
SHARDS = {
    "model-00001-of-00002.safetensors": ("embed_tokens.weight", "layers.0.fc.weight", "layers.0.norm.weight"),
    "model-00002-of-00002.safetensors": ("layers.1.fc.weight", "lm_head.weight"),
}
CONFIG = {"model_type": "llama", "architectures": ["A"], "note": "ü", "eps": 1e-05}


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def write_index(folder, where, **more):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1, **more}, "weight_map": where}))


@pytest.fixture
def tensors():
    rng = np.random.default_rng(1)
    names = [name for names in SHARDS.values() for name in names]
    shapes = {name: (64,) if "norm" in name else (64, 96) for name in names}
    return {name: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}


@pytest.fixture
def src(tmp_path, tensors):
    """A folder as a hub's cache holds it: some of its files are links."""
    folder = tmp_path / "src"
    (folder / "original").mkdir(parents=True)
    (folder / ".git").mkdir()
    for shard, names in SHARDS.items():
        checkpoint.save({name: tensors[name] for name in names}, tmp_path / "blob", metadata={"format": "pt"})
        os.rename(tmp_path / "blob", tmp_path / f"blob-{shard}")
        (folder / shard).symlink_to(tmp_path / f"blob-{shard}")
    write_index(folder, {name: shard for shard, names in SHARDS.items() for name in names}, total_parameters=7)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2, ensure_ascii=False) + "\n")
    (folder / "tokenizer.json").write_bytes(b"\0\1")
    (folder / ".gitattributes").write_text("*")
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "original" / "params.json").write_text("{}")
    return folder


def listing(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)


SIDE = [".gitattributes", "config.json", "original/params.json", "tokenizer.json"]


def test_there_and_back(tmp_path, src, tensors):
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    report = checkpoint.compress(src, packed, "50%")
    assert {row.name for row in report.tensors if row.reason is None} == {"layers.0.fc.weight", "layers.1.fc.weight"}
    assert listing(packed) == sorted([*SIDE, INDEX, *SHARDS])
    opened = checkpoint.open(packed)
    assert list(opened) == [row.name for row in report.tensors]
    assert opened["layers.0.fc.weight"] == fs.compress(tensors["layers.0.fc.weight"], "50%")
    assert [row.bytes_after for row in checkpoint.inspect(packed).tensors] == [
        row.bytes_after for row in report.tensors
    ]
    checkpoint.verify(packed, src)

    index = json.loads((packed / INDEX).read_text())
    assert index["metadata"] == {"total_size": report.bytes_after, "total_parameters": 7}
    for shard in SHARDS:
        keys = [key for key, name in index["weight_map"].items() if name == shard]
        assert sorted(keys) == sorted(checkpoint.open(packed / shard).reader.entries)
    assert not any(os.path.islink(packed / name) for name in os.listdir(packed))

    checkpoint.decompress(packed, dense)
    assert listing(dense) == sorted([*SIDE, INDEX, *SHARDS])
    restored = checkpoint.open(dense)
    for name, tensor in tensors.items():
        expected = fs.prune(tensor, "50%") if "fc" in name else tensor
        assert (restored[name].dtype, restored[name].shape) == (expected.dtype, expected.shape)
        assert np.array_equal(bits(restored[name]), bits(expected))
    weight_map = json.loads((src / INDEX).read_text())["weight_map"]
    assert {name: restored.reader.shard_of(restored.reader.tensors[name]) for name in tensors} == weight_map
    for name in SIDE:
        assert (dense / name).read_bytes() == (src / name).read_bytes()
    assert checkpoint.open(dense / next(iter(SHARDS))).metadata == {"format": "pt"}
    assert [name for name in os.listdir(tmp_path) if name.endswith(".partial")] == []


def test_other_loaders_stop_at_a_packed_folder(tmp_path, src, tensors):
    """Each packed tensor has an empty one under its name, a mismatch of sizes for who does not know the layout."""
    checkpoint.compress(src, tmp_path / "packed", "50%")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    section = config.pop("quantization_config")
    assert config == CONFIG
    assert section == {"quant_method": "fastsparse", "format": "sparse-bitmask", "version": fs.__version__}
    opened = checkpoint.open(tmp_path / "packed")
    stubs = {key: entry for key, entry in opened.reader.entries.items() if entry.shape == (0,)}
    assert set(stubs) == {"layers.0.fc.weight", "layers.1.fc.weight"}
    assert {entry.dtype for entry in stubs.values()} == {"BF16"}
    index = json.loads((tmp_path / "packed" / INDEX).read_text())["weight_map"]
    assert {index[key] for key in stubs} == set(SHARDS)
    for shard in SHARDS:  # without them `verify` is not content
        path = tmp_path / "packed" / shard
        kept = dict(checkpoint.open(path))
        checkpoint.save(kept, tmp_path / "shard")
        os.replace(tmp_path / "shard", path)
    write_index(tmp_path / "packed", {key: shard for key, shard in index.items() if key not in stubs})
    with pytest.raises(fs.FormatError, match=r"'layers\.0\.fc\.weight' has no empty tensor under its name"):
        checkpoint.verify(tmp_path / "packed")


@pytest.mark.parametrize("section", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_config_that_says_nothing_of_quantisation(tmp_path, src, section):
    (src / "config.json").write_text(json.dumps({**CONFIG, **section}))
    checkpoint.compress(src, tmp_path / "packed", "50%")
    checkpoint.compress(src, tmp_path / "theirs", "50%", config="compressed-tensors")
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    compressed_tensors.convert(tmp_path / "dense", tmp_path / "converted", "sparse-bitmask")
    found = {
        name: json.loads((tmp_path / name / "config.json").read_text()).get("quantization_config")
        for name in ("packed", "theirs", "dense", "converted")
    }
    assert found["packed"]["quant_method"] == "fastsparse"
    assert found["theirs"]["sparsity_config"]["format"] == "sparse-bitmask"
    assert found["dense"] is None
    assert found["converted"]["sparsity_config"]["format"] == "sparse-bitmask"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "x-quantized"}}, "'x-quantized'"),
        ({"quantization_config": {"quant_method": "fastsparse", "format": "x"}}, "format 'x' is unknown"),
        ({"quantization_config": [7]}, r"is \[7\], expected an object"),
        ({"quantization_config": {"format": "marlin-24"}}, "marlin-24"),
    ],
)
def test_what_cannot_come_back_is_refused_first(tmp_path, src, config, why):
    (src / "config.json").write_text(json.dumps(config))
    with pytest.raises(fs.FormatError, match=why):
        checkpoint.plan(src, "50%")
    with pytest.raises(fs.FormatError, match=why):
        checkpoint.compress(src, tmp_path / "packed", "50%")
    assert not (tmp_path / "packed").exists()


def test_the_config_for_compressed_tensors_says_what_is_sparse(tmp_path, src):
    recipe = checkpoint.Recipe(default="2:4", exclude=["layers.1"])
    checkpoint.compress(src, tmp_path / "packed", recipe, config="compressed-tensors")
    assert not any(entry.shape == (0,) for entry in checkpoint.open(tmp_path / "packed").reader.entries.values())
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    section = config.pop("quantization_config")
    assert config == CONFIG
    assert section == {
        "version": "0.14.0.1",
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "registry_requires_subclass": False,
            "format": "sparse-bitmask",
            "targets": ["Linear"],
            "ignore": ["embed_tokens", "layers.1.fc", "lm_head"],
            "global_sparsity": 0.5,
            "sparsity_structure": "2:4",
        },
    }


@pytest.mark.parametrize(
    ("section", "config", "changed"),
    [
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors", True),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fastsparse", False),
        ({"quant_method": "compressed-tensors", "format": "mxfp8-quantized"}, "fastsparse", False),
        ({"quant_method": "gptq", "bits": 4}, "compressed-tensors", False),
        ({"quant_method": "gptq", "bits": 4}, "fastsparse", False),
    ],
)
def test_a_config_with_a_section_gets_it_back(tmp_path, src, section, config, changed):
    (src / "config.json").write_text(json.dumps({"quantization_config": section}))
    checkpoint.compress(src, tmp_path / "packed", "50%", config=config)
    found = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert ("sparsity_config" in found) == changed
    assert found == {**section, **({"sparsity_config": found["sparsity_config"]} if changed else {})}
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / "config.json").read_text()) == {"quantization_config": section}


def test_a_folder_of_one_file_needs_no_index(tmp_path, tensors):
    (tmp_path / "src").mkdir()
    checkpoint.save(tensors, tmp_path / "src" / "model.safetensors")
    checkpoint.compress(tmp_path / "src", tmp_path / "packed", "50%")
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    assert listing(tmp_path / "packed") == listing(tmp_path / "dense") == ["model.safetensors"]
    checkpoint.verify(tmp_path / "packed", tmp_path / "src")


def test_parts_in_other_shards_are_found(tmp_path):
    w = np.float32([[0, 7, 0, 0], [5, 0, 0, 1]])
    packed = fs.pack(w)
    parts = {"shape": np.int64(w.shape), "compressed": packed.values, "bitmask": packed.bitmask}
    keys = {f"m.{part}": array for part, array in {**parts, "row_offsets": packed.row_offsets[:-1]}.items()}
    src = tmp_path / "src"
    src.mkdir()
    where = {key: f"{at}.safetensors" for at, key in enumerate(keys)}
    for key, shard in where.items():
        checkpoint.save({key: keys[key]}, src / shard)
    write_index(src, where)
    assert checkpoint.open(src)["m.weight"] == packed
    checkpoint.decompress(src, tmp_path / "dense")
    assert np.array_equal(checkpoint.open(tmp_path / "dense")["m.weight"], w)
    assert listing(tmp_path / "dense") == ["1.safetensors", INDEX]


@pytest.mark.parametrize("shard", ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", "c:x", "\0", INDEX, "config.json"])
def test_an_index_leads_nowhere_else(src, shard):
    write_index(src, {"a": shard})
    with pytest.raises(fs.FormatError, match="is not the name of a file in the folder"):
        checkpoint.open(src)


def test_an_index_that_does_not_fit(tmp_path, src):
    where = json.loads((src / INDEX).read_text())["weight_map"]
    first, second = SHARDS
    less = {name: shard for name, shard in where.items() if name != "lm_head.weight"}
    for changed, why in (
        ({**where, "more.weight": first}, f"'more.weight' is in the index, but not in its shard '{first}'"),
        ({**where, "lm_head.weight": first}, f"'lm_head.weight' is in the index, but not in its shard '{first}'"),
        (less, f"'lm_head.weight' is in shard '{second}', but not so in the index"),
        ({**where, "x": "none.safetensors"}, "shard 'none.safetensors' is missing"),
        ({"x": 7}, "does not map"),
        (["x"], "does not map"),
        ({}, "names no shard"),
    ):
        write_index(src, changed)
        with pytest.raises(fs.FormatError, match=why):
            checkpoint.compress(src, tmp_path / "dst", "50%")
    for text in ("", "[]", "{}", "[" * 100_000, "\ud800"):
        (src / INDEX).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(fs.FormatError, match=r"index\.json"):
            checkpoint.open(src)
    assert not (tmp_path / "dst").exists()


def test_a_corrupt_shard_is_named(tmp_path, src):
    shard = src / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1])
    with pytest.raises(fs.FormatError, match=r"model-00002-of-00002\.safetensors: .*beyond the end"):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    shard.unlink()
    with pytest.raises(fs.FormatError, match=r"'model-00002-of-00002\.safetensors' is missing"):
        checkpoint.compress(src, tmp_path / "dst", "50%")


def test_a_target_is_replaced_only_when_asked_to(tmp_path, src):
    dst = tmp_path / "dst"
    checkpoint.compress(src, dst, "50%")
    (dst / "old").write_text("old")
    with pytest.raises(fs.FastSparseError, match="exists"):
        checkpoint.compress(src, dst, "2:4")
    checkpoint.compress(src, dst, "2:4", overwrite=True)
    assert checkpoint.inspect(dst).tensors[1].pattern == "2:4"
    assert not (dst / "old").exists()
    (tmp_path / "mine").mkdir()
    checkpoint.compress(src, tmp_path / "mine", "50%", overwrite=True)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_what_is_no_model_is_never_replaced(tmp_path, src):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(src)
    for dst, why in (
        (tmp_path / "home", "something else than a model"),
        (tmp_path / "file", "no folder"),
        (src, "same folder"),
        (tmp_path / "link", "same folder"),
        (src / "inside", "is inside the other"),
        (tmp_path, "is inside the other"),
    ):
        with pytest.raises(fs.FastSparseError, match=why):
            checkpoint.compress(src, dst, "50%", overwrite=True)
    assert (tmp_path / "home" / "letter").read_text() == (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_run_left_is_removed(tmp_path, src):
    left = tmp_path / ".dst.partial"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "x").write_text("x")
    (left / "model.safetensors").write_text("x")
    checkpoint.compress(src, tmp_path / "dst", "50%")
    assert not left.exists()
    assert listing(tmp_path / "dst") == sorted([*SIDE, INDEX, *SHARDS])


def test_a_link_to_a_folder_is_refused(tmp_path, src):
    (src / "original" / "back").symlink_to(src)
    with pytest.raises(fs.FormatError, match="back: a link to a folder"):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    assert not (tmp_path / "dst").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path, src, name):
    (src / name).unlink(missing_ok=True)
    os.mkfifo(src / name)
    with pytest.raises(fs.FormatError, match=f"{name}: not a regular file"):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    assert not (tmp_path / "dst").exists()


def test_a_failure_leaves_nothing_behind(tmp_path, src):
    before = sorted(os.listdir(tmp_path))

    def stop(done, total, name):
        if done > 0.8 * total:
            assert ".dst.partial" in os.listdir(tmp_path)
            with pytest.raises(fs.FastSparseError, match="another run"):
                checkpoint.compress(src, tmp_path / "dst", "50%")
            raise KeyboardInterrupt

    for overwrite in (False, True):
        with pytest.raises(KeyboardInterrupt):
            checkpoint.compress(src, tmp_path / "dst", "50%", progress=stop, overwrite=overwrite)
        assert sorted(os.listdir(tmp_path)) == before


def test_an_interrupt_does_not_wait_for_side_files(tmp_path, src, monkeypatch):
    """Weights in another format may be among them, of any size."""
    (src / "pytorch_model.bin").write_bytes(bytes(1000))
    flush, flushed = _folder._flush, []

    def interrupted(file):
        flush(file)
        if "pytorch_model" in file.name:
            flushed.append(file.tell())
            if len(flushed) == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_folder, "_BLOCK", 100)
    monkeypatch.setattr(_folder, "_flush", interrupted)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    assert flushed == [100, 200]
    assert sorted(os.listdir(tmp_path)) == before


def test_what_has_the_temporary_name_stays(tmp_path, src):
    (tmp_path / ".dst.partial").write_text("mine")
    (tmp_path / ".file.partial").mkdir()
    with pytest.raises(fs.FastSparseError, match=r"dst: .*\.dst\.partial is in the way.* no folder; move or remove it"):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    with pytest.raises(fs.FastSparseError, match=r"file: .*\.file\.partial is in the way.* no file; move or remove it"):
        checkpoint.compress(src / next(iter(SHARDS)), tmp_path / "file", "50%")
    assert (tmp_path / ".dst.partial").read_text() == "mine"
    assert (tmp_path / ".file.partial").is_dir()


def test_a_shard_that_proves_bad_halfway_leaves_nothing(tmp_path, src):
    """The header is right and the first shard is done; then a mask has other bits than there are values."""
    packed = tmp_path / "packed"
    checkpoint.compress(src, packed, "50%")
    shard = packed / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    mask = checkpoint.open(packed)["layers.1.fc.weight"].bitmask.tobytes()
    content[content.index(mask)] ^= 1
    shard.write_bytes(content)
    before = sorted(os.listdir(tmp_path))
    reached = []
    with pytest.raises(fs.FormatError, match=r"packed: tensor 'layers\.1\.fc\.weight'"):
        checkpoint.decompress(packed, tmp_path / "dst", progress=lambda done, total, name: reached.append(name))
    assert "layers.0.fc.weight" in reached
    assert sorted(os.listdir(tmp_path)) == before
