"""Packed model folders in transformers 5: with the plug-in they run packed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from fastsparse import checkpoint

HERE = Path(__file__).parent
VERSION_5 = os.environ.get("FASTSPARSE_TRANSFORMERS5", str(HERE.parents[1] / ".venv-transformers5"))
needs_version_5 = pytest.mark.skipif(not Path(VERSION_5).is_dir(), reason="needs transformers 5: make interop")

LLAMA = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {**LLAMA, **HEADS}, 10),
    "Llama, tied": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        {**LLAMA, **HEADS, "tie_word_embeddings": True},
        10,
    ),
    "Mixtral": (
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        {**LLAMA, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
        4,
    ),
    "OPT": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig,
        {"vocab_size": 128, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 64, "max_position_embeddings": 64},
        12,
    ),
}


def run(what, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([VERSION_5, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "transformers5.py"), what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def make(name, folder, bits=None):
    model, config, options, _ = MODELS[name]
    torch.manual_seed(0)
    model(config(**options)).eval().save_pretrained(folder / "source", max_shard_size="100KB")
    checkpoint.compress(folder / "source", folder / "packed", checkpoint.Recipe(default="50%", bits=bits))


@needs_version_5
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_folder_runs_packed(tmp_path, name):
    make(name, tmp_path)
    found, layers = run("plugin", tmp_path), MODELS[name][3]
    assert found["missing"] == found["unexpected"] == []
    assert (found["packed"], found["base"], found["verified"]) == (layers, layers, layers)
    assert found["difference"] < 1e-5
    assert found["tokens"]
    assert found["shards"] > 1
    assert found["again"] == [layers, True]
    assert found["half"] == ["torch.bfloat16", layers, "torch.bfloat16"]
    assert found["pruned"][0] >= layers
    assert "device_map" in found["refused"]
    assert "cuda" in found["refused"]
    assert found["dequantized"][0] == 0
    assert found["dequantized"][1] < 1e-5


@needs_version_5
@pytest.mark.parametrize("name", ["Llama", "Mixtral"])
def test_weights_of_eight_bits_run_so(tmp_path, name):
    make(name, tmp_path, bits=8)
    found, layers = run("eightbit", tmp_path), MODELS[name][3]
    assert found["missing"] == found["unexpected"] == []
    assert found["packed"] == found["verified"] == layers
    assert found["same"] == [True] * 3
    assert found["loaded"][:layers] == [8] * layers
    assert 0 < found["difference"] < 0.03
    assert found["again"]
    assert found["half"] == ["torch.bfloat16"]
    assert found["pruned"] >= layers
    assert found["dequantized"] < 1e-5


@needs_version_5
@pytest.mark.parametrize("layout", ["sparse-bitmask", "sparse-24-bitmask"])
def test_orphaned_folders_of_compressed_tensors_run(tmp_path, layout):
    from compressed_tensors import BitmaskConfig, ModelCompressor, Sparse24BitMaskConfig

    torch.manual_seed(0)
    model, config, options, _ = MODELS["Llama"]
    dense = model(config(**options)).eval()
    pattern = "2:4" if layout == "sparse-24-bitmask" else "50%"
    import fastsparse.torch as fst

    for module in dense.model.modules():
        if type(module) is torch.nn.Linear:
            fst.prune(module.weight.data, pattern, out=module.weight.data)
    make_config = Sparse24BitMaskConfig if layout == "sparse-24-bitmask" else BitmaskConfig
    compressor = ModelCompressor(sparsity_config=make_config(targets=["Linear"], ignore=["lm_head"], format=layout))
    folder = tmp_path / "orphan"
    dense.save_pretrained(folder, state_dict=compressor.compress(dense))
    compressor.update_config(str(folder))
    found = run("orphan", tmp_path)
    assert found["missing"] == []
    assert found["packed"] == 14  # it packs whatever is a linear layer
    assert found["difference"] < 1e-5


def test_version_4_is_refused_in_one_sentence():
    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("this is version 5")
    code = "import fastsparse.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "needs transformers 5 or newer, this is 4." in last
    assert "fastsparse.torch.load" in last


@needs_version_5
def test_stacked_experts_are_pruned_on_what_is_routed_to_them(tmp_path):
    found = run("experts", tmp_path)
    assert found["eager"] == found["grouped_mm"]
    assert found["eager"]["sparsities"] == [0.5]
    assert len(found["eager"]["tokens"]) == 16
    assert sum(found["eager"]["tokens"]) == 4 * 2 * 384  # four parameters, two experts for each token
    assert found["batched_mm"]["sparsities"] == [None]
    assert found["batched_mm"]["reasons"] == ["no product with it was seen"]
