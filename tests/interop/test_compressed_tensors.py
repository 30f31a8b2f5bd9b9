"""The sparse-bitmask layouts against compressed-tensors 0.14.0.1, the last version that has them."""

import json
from pathlib import Path

import golden
import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskTensor
from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import fastsparse as fs
from fastsparse import checkpoint, compressed_tensors

DATA = Path(__file__).parents[1] / "data" / "compressed_tensors"

KINDS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
SHAPES = [(3, 16), (5, 13), (64, 100), (1, 1), (7, 8)]


def weights(shape, kind):
    """Small integers, a good half of them zero."""
    rng = np.random.default_rng(5)
    w = rng.integers(0 if kind == "uint8" else -4, 5, shape) * (rng.random(shape) < 0.5)
    return w.astype(getattr(ml_dtypes, kind, None) or kind)


def to_torch(w, kind):
    return torch.from_numpy(w.reshape(-1).view(np.uint8).copy()).view(KINDS[kind]).reshape(w.shape)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_write_is_read(tmp_path, kind, shape):
    w = weights(shape, kind)
    for prefix in ("fc", "fc.weight"):
        theirs = BitmaskTensor.from_dense(to_torch(w, kind)).dict(prefix)
        save_file(theirs, tmp_path / "x.safetensors")
        found = checkpoint.open(tmp_path / "x.safetensors")["fc.weight"]
        assert found == fs.pack(w)
        checkpoint.verify(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (2, 3, 16), (6, 1, 3, 3)])
def test_their_masks_of_convolutions_are_read(tmp_path, shape):
    w = weights(shape, "float32")
    save_file(BitmaskTensor.from_dense(torch.from_numpy(w)).dict("conv"), tmp_path / "x.safetensors")
    assert checkpoint.open(tmp_path / "x.safetensors")["conv.weight"] == fs.pack(w)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_read_what_is_written(tmp_path, kind, shape):
    w = weights(shape, kind)
    checkpoint.save({"fc.weight": fs.pack(w)}, tmp_path / "x.safetensors")
    parts = {key.removeprefix("fc."): part for key, part in load_file(tmp_path / "x.safetensors").items()}
    theirs = BitmaskTensor.from_dense(to_torch(w, kind))
    for part in ("compressed", "bitmask", "row_offsets"):
        ours, other = parts[part], getattr(theirs, part)
        assert (ours.dtype, ours.shape) == (other.dtype, other.shape)
        assert np.array_equal(raw(ours), raw(other))
    dense = BitmaskTensor(**{**parts, "shape": parts["shape"].tolist()}).decompress()
    assert np.array_equal(raw(dense), fs.pack(w).to_dense().reshape(-1).view(np.uint8))


def test_their_two_four_layout_is_read(tmp_path):
    rng = np.random.default_rng(8)
    w = rng.standard_normal((16, 64)).astype(np.float32)
    w[3, :8] = 0
    kept = fs.prune(w, "2:4")
    theirs = Sparse24BitMaskTensor.from_dense(torch.from_numpy(kept))
    save_file(theirs.dict(name_prefix="fc", device="cpu"), tmp_path / "x.safetensors")
    found = checkpoint.open(tmp_path / "x.safetensors")["fc.weight"]
    assert np.array_equal(found.to_dense(), kept)
    assert found.pattern == fs.NM(zeros=2, of=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:compressed_tensors")
def test_a_model_folder_of_ours_is_read_by_their_model_compressor(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 64))
    src = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "src").mkdir()
    save_file(src, tmp_path / "src" / "model.safetensors")
    (tmp_path / "src" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    folder = tmp_path / "folder"
    checkpoint.compress(tmp_path / "src", folder, "2:4", config="compressed-tensors")
    theirs = ModelCompressor.from_pretrained(str(folder))
    assert isinstance(theirs.sparsity_config, BitmaskConfig)
    fresh = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 64))
    theirs.decompress(str(folder), fresh)
    for name in ("0.weight", "1.weight"):
        pruned = fs.prune(src[name].numpy(), "2:4")
        assert np.array_equal(dict(fresh.named_parameters())[name].detach().numpy(), pruned)


def logits(model):
    with torch.inference_mode():
        return model.eval()(torch.arange(12).reshape(2, 6)).logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("folder", sorted(path.name for path in DATA.iterdir()))
def test_an_orphaned_model_is_rescued(tmp_path, folder):
    """What 0.3.3, 0.8.1 and 0.14.0.1 packed is loaded by today's transformers, with the logits of the dense model."""
    compressed_tensors.convert(DATA / folder, tmp_path / "dense", "dense")
    rescued = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    wanted = LlamaForCausalLM(LlamaConfig(**golden.CONFIG)).to(torch.bfloat16)
    state = {name: torch.from_numpy(golden.weights(name)) for name in golden.SHAPES}
    wanted.load_state_dict(state)
    assert torch.equal(logits(rescued), logits(wanted))
    assert rescued.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["sparse-bitmask", "sparse-24-bitmask"])
def test_a_model_that_they_pack_now_is_rescued(tmp_path, form):
    """Their writer in this very process, several shards, bfloat16."""
    model = LlamaForCausalLM(LlamaConfig(**{**golden.CONFIG, "hidden_size": 64, "num_hidden_layers": 2}))
    model = model.to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if "_proj" in name:
            array = weight.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            fs.prune(array, "2:4", out=array)
    model.save_pretrained(tmp_path / "pruned")
    wanted = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16))
    config = BitmaskConfig if form == "sparse-bitmask" else Sparse24BitMaskConfig
    theirs = ModelCompressor(sparsity_config=config(targets=["Linear"], ignore=["lm_head"]))
    model.save_pretrained(tmp_path / "packed", state_dict=theirs.compress(model), max_shard_size="40KB")
    theirs.update_config(str(tmp_path / "packed"))
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1
    assert any(key.endswith(".bitmask") for key in checkpoint.open(tmp_path / "packed").reader.entries)
    compressed_tensors.convert(tmp_path / "packed", tmp_path / "dense", "dense")
    rescued = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    assert torch.equal(logits(rescued), wanted)


def test_they_read_what_is_converted(tmp_path):
    """Both layouts, and a tensor of three dimensions."""
    rng = np.random.default_rng(3)
    matrix = fs.prune(rng.standard_normal((64, 64), np.float32), "2:4")
    matrix[5, :10] = 0
    checkpoint.save(
        {"fc.weight": matrix, "conv.weight": fs.prune(rng.standard_normal((16, 8, 20), np.float32), "75%")},
        tmp_path / "x",
    )
    for to in ("sparse-bitmask", "sparse-24"):
        compressed_tensors.convert(tmp_path / "x", tmp_path / "packed", to, overwrite=True)
        dense, packed = checkpoint.open(tmp_path / "x"), load_file(tmp_path / "packed")
        names = ["fc", "conv"] if to == "sparse-bitmask" else ["fc"]
        for name in names:
            own = {key.removeprefix(f"{name}."): part for key, part in packed.items() if key.startswith(name)}
            tensor = (
                BitmaskTensor(**own) if to == "sparse-bitmask" else Sparse24BitMaskTensor.from_compressed_data(**own)
            )
            assert np.array_equal(tensor.decompress().numpy(), dense[f"{name}.weight"])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float8_e4m3fn"])
def test_two_four_arrays(kind):
    """What they choose among zeros is read as it is, and written as it was."""
    rng = np.random.default_rng(4)
    w = fs.prune(rng.integers(0, 4, (16, 64)).astype(getattr(ml_dtypes, kind, None) or kind), "2:4")
    theirs = Sparse24BitMaskTensor.from_dense(to_torch(w, kind))
    values, mask = raw(theirs.compressed).view(w.dtype).reshape(16, 32), theirs.bitmask.numpy()
    s = compressed_tensors.from_sparse24(values, mask, w.shape)
    assert np.array_equal(s.to_dense().view(np.uint8), w.view(np.uint8))
    assert (w != 0).sum() < s.nnz
    back = compressed_tensors.to_sparse24(s)
    assert np.array_equal(back[0].view(np.uint8), values.view(np.uint8))
    assert np.array_equal(back[1], mask)
    filled = compressed_tensors.to_sparse24(fs.pack(w))
    parts = torch.from_numpy(filled[0].reshape(-1).view(np.uint8).copy()).view(KINDS[kind]).reshape(16, 32)
    again = Sparse24BitMaskTensor(list(w.shape), parts, torch.from_numpy(filled[1].copy())).decompress()
    assert np.array_equal(raw(again), w.reshape(-1).view(np.uint8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:compressed_tensors")
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_a_llama_of_ours_is_loaded_by_their_model_compressor(tmp_path, pattern):
    """Shards, index, config: what their reader makes of the packed folder has the logits of the dense one."""
    torch.manual_seed(4)
    options = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, **options)).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path / "src", max_shard_size="60kB")
    report = checkpoint.compress(tmp_path / "src", tmp_path / "packed", pattern, config="compressed-tensors")
    assert report.packed == 14
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1

    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).eval()
    # They read the packed tensors; the others come as from any folder.
    packed = checkpoint.open(tmp_path / "packed")
    rest = {name: to_torch(w, "bfloat16") for name, w in packed.items() if not isinstance(w, fs.BitmaskArray)}
    fresh.load_state_dict(rest, strict=False)
    ModelCompressor.from_pretrained(str(tmp_path / "packed")).decompress(str(tmp_path / "packed"), fresh)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16).eval()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        found, expected, before = (m(tokens).logits for m in (fresh, dense, model))
    assert torch.equal(found, expected)
    assert not torch.equal(expected, before)
