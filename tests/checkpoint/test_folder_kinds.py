"""The folders that hubs hold beside those of transformers: taken, or refused with what is there."""

import json

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.cli import main

W = np.random.default_rng(0).standard_normal((64, 64), np.float32)


def make(folder, files):
    """A folder of files: names of tensors make weights, a mapping an index, a text itself."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            checkpoint.save({f"{tensor}.weight": W for tensor in content}, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))
    return folder


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


DIFFUSERS = "diffusion_pytorch_model"
TAKEN = {
    "diffusers": ({f"{DIFFUSERS}.safetensors": ["a"], "config.json": "{}"}, {"a"}, {}),
    "diffusers, fp16 alone": ({f"{DIFFUSERS}.fp16.safetensors": ["a"]}, {"a"}, {}),
    "diffusers, with a variant": (
        {f"{DIFFUSERS}.safetensors": ["a"], f"{DIFFUSERS}.fp16.safetensors": ["b"]},
        {"a"},
        {f"{DIFFUSERS}.fp16.safetensors": "no file of this model"},
    ),
    "diffusers, indexed variants": (
        {
            f"{DIFFUSERS}.safetensors.index.json": {"a.weight": "x-00001-of-00001.safetensors"},
            f"{DIFFUSERS}.safetensors.index.fp16.json": {"b.weight": "x.fp16-00001-of-00001.safetensors"},
            "x-00001-of-00001.safetensors": ["a"],
            "x.fp16-00001-of-00001.safetensors": ["b"],
        },
        {"a"},
        {"x.fp16-00001-of-00001.safetensors": "no file of this model"},
    ),
    "an adapter": ({"adapter_model.safetensors": ["a"], "adapter_config.json": "{}"}, {"a"}, {}),
    "Mistral's own": ({"consolidated.safetensors": ["a"], "params.json": "{}"}, {"a"}, {}),
    "both of Mistral's": (
        {"model.safetensors": ["a"], "consolidated.safetensors": ["b"], "model.fp16.safetensors": ["a"]},
        {"a"},
        {"consolidated.safetensors": "no file of this model", "model.fp16.safetensors": "no file of this model"},
    ),
    "shards without an index": (
        {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["b"]},
        {"a", "b"},
        {},
    ),
    "sentence-transformers": (
        {"model.safetensors": ["a"], "2_Dense/model.safetensors": ["d"], "onnx/model.onnx": "x", "a.bin": "x"},
        {"a"},
        {
            "2_Dense/model.safetensors": "a model of its own; compress the folder '2_Dense' by itself",
            "a.bin": "no safetensors file",
            "onnx/model.onnx": "no safetensors file",
        },
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken(tmp_path, kind):
    files, packed, copied = TAKEN[kind]
    src = make(tmp_path / "src", files)
    report = checkpoint.compress(src, tmp_path / "packed", "50%")
    assert {row.name.removesuffix(".weight") for row in report.tensors if row.reason is None} == packed
    rows = {row.name: row for row in report.tensors if row.dtype == "file"}
    assert rows.keys() == copied.keys()
    for name, row in rows.items():
        assert row.reason.startswith(f"copied, not pruned: {copied[name]}")
        assert row.bytes_before == row.bytes_after == (src / name).stat().st_size
        assert (tmp_path / "packed" / name).read_bytes() == (src / name).read_bytes()
    planned = checkpoint.plan(src, "50%").report
    assert [(row.name, row.reason) for row in planned.tensors] == [(row.name, row.reason) for row in report.tensors]
    assert listing(tmp_path / "packed") == listing(src)
    checkpoint.verify(tmp_path / "packed", src)
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    assert listing(tmp_path / "dense") == listing(src)
    checkpoint.compress(tmp_path / "dense", tmp_path / "packed", "50%", overwrite=True)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (
            {"unet/diffusion_pytorch_model.safetensors": ["a"], "text_encoder/model.safetensors": ["b"]},
            r"without safetensors of its own; below it are 'text_encoder/model.safetensors', 'unet/.*by itself",
        ),
        ({"0_Transformer/model.safetensors": ["a"], "modules.json": "[]"}, "below it are '0_Transformer/model"),
        ({"model-00001-of-00002.safetensors": ["a"]}, "1 of 2 shards and no index: 'model-00001-of-00002"),
        (
            {"model-00001-of-00003.safetensors": ["a"], "model-00003-of-00003.safetensors": ["b"]},
            "2 of 3 shards and no index",
        ),
        ({"detail.safetensors": ["a"], "style.safetensors": ["b"]}, "several models, 'detail.*', 'style.*'; name one"),
        (
            {"x.safetensors": ["a"], "x.safetensors.index.json": {"b.weight": "y.safetensors"}, "y.safetensors": ["b"]},
            "several models",
        ),
        ({"pytorch_model.bin": "x"}, "'pytorch_model.bin' is a zip archive"),
        ({}, "a folder without safetensors of its own$"),
        (
            {"model.safetensors.index.json": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
            r"index.json: this is a Git LFS pointer.*git lfs pull",
        ),
        ({"model.safetensors": ["a"], "config.json": "<!DOCTYPE html><html>"}, "config.json: this is a web page"),
        ({"model.safetensors": ["a"], "config.json": "{'a': 1}"}, "config.json: not valid JSON"),
    ],
)
def test_what_is_refused(tmp_path, files, why):
    (tmp_path / "src").mkdir()
    src = make(tmp_path / "src", files)
    with pytest.raises(fs.FormatError, match=why):
        checkpoint.compress(src, tmp_path / "packed", "50%")
    assert listing(tmp_path) == sorted(f"src/{name}" for name in files)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"a": 1, "lm_head": 1}, r"'lm_head.weight' is in the index.*tied to the embeddings.*trust_shards=True"),
        ({"a": 1}, r"'mtp.weight' is in shard .*trust_shards=True"),
        ({"a": 1, "mtp": 1, "gone": 1}, r"'gone.weight' is in the index, but not in its shard '1'; trust_shards"),
    ],
)
def test_an_index_that_disagrees(tmp_path, index, why):
    tensors = ["a"] if "lm_head" in index else ["a", "mtp"]
    weight_map = {f"{name}.weight": str(shard) for name, shard in index.items()}
    src = make(tmp_path / "src", {"1": tensors, "model.safetensors.index.json": weight_map})
    with pytest.raises(fs.FormatError, match=why):
        checkpoint.compress(src, tmp_path / "packed", "50%")
    assert main(["compress", str(src), str(tmp_path / "packed"), "--pattern", "50%"]) == 1
    assert main(["compress", str(src), str(tmp_path / "packed"), "--pattern", "50%", "--trust-shards"]) == 0
    written = json.loads((tmp_path / "packed" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(written) == set(checkpoint.open(tmp_path / "packed").reader.entries)
    checkpoint.verify(tmp_path / "packed", src, trust_shards=True)
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    assert sorted(checkpoint.open(tmp_path / "dense")) == sorted(f"{name}.weight" for name in tensors)
    assert sorted(checkpoint.open(src, trust_shards=True)) == sorted(checkpoint.open(tmp_path / "dense"))


def test_shards_that_share_a_tensor_are_refused_all_the_same(tmp_path):
    src = make(tmp_path / "src", {"1": ["a"], "2": ["a"], "model.safetensors.index.json": {"a": "1", "b": "2"}})
    with pytest.raises(fs.FormatError, match=r"'a\.weight' is in '1' and in '2'"):
        checkpoint.open(src, trust_shards=True)


def test_a_folder_of_one_file_of_another_name_is_not_replaced(tmp_path):
    src = make(tmp_path / "src", {"model.safetensors": ["a"]})
    make(tmp_path / "mine", {"style.safetensors": ["a"]})
    with pytest.raises(fs.FastSparseError, match="something else than a model"):
        checkpoint.compress(src, tmp_path / "mine", "50%", overwrite=True)
