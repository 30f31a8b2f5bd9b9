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

SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# The class with its configuration, how many weights are packed in the model, and how many in the folder: the experts of
# Mixtral are modules there.
MODELS = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, 10, 10),
    "Llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}, 10, 10),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {**LLAMA, **EXPERTS}, 8, 28),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", {**LLAMA, **EXPERTS, "head_dim": 16}, 8, 8),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}, 8, 8),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {"vocab_size": 128, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 64, "max_position_embeddings": 64},
        12,
        12,
    ),
    "BERT": ("BertForMaskedLM", "BertConfig", {**SIZES, "num_attention_heads": 4}, 13, 13),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 128, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 1, "num_heads": 4}
        | {"decoder_start_token_id": 0},
        16,
        16,
    ),
}


def run(what, *folders):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([VERSION_5, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "transformers5.py"), what, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def make(name, folder, bits=None):
    model, config, options, *_ = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    made.save_pretrained(folder / "source", max_shard_size="100KB")
    checkpoint.compress(folder / "source", folder / "packed", checkpoint.Recipe(default="50%", bits=bits))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """What the plug-in made of each model, all of them in one process."""
    folders = {name: tmp_path_factory.mktemp("model") for name in MODELS}
    for name, folder in folders.items():
        make(name, folder)
    return dict(zip(folders, run("plugin", *folders.values()), strict=True))


@needs_version_5
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_folder_runs_packed(plugin, name):
    found, (*_, layers, tensors) = plugin[name], MODELS[name]
    assert found["missing"] == found["unexpected"] == []
    assert (found["packed"], found["verified"]) == (layers, tensors)
    assert found["base"] == layers - (name == "BERT")  # one is in its head
    assert found["difference"] < 1e-5
    assert found["tokens"]
    assert found["shards"] > 1
    assert found["again"] == [layers, True]
    assert found["half"] == ["torch.bfloat16", layers, "torch.bfloat16"]
    assert found["pruned"] >= layers
    assert "device_map" in found["refused"]
    assert "cuda" in found["refused"]
    assert found["dequantized"][0] == 0
    assert found["dequantized"][1] < 1e-5


@needs_version_5
@pytest.mark.parametrize(("name", "layers"), [("Llama", 10), ("Mixtral", 4)])
def test_weights_of_eight_bits_run_so(tmp_path, name, layers):
    """Those of linear layers; experts that are merged are packed in the dtype of the model."""
    make(name, tmp_path, bits=8)
    (found,) = run("eightbit", tmp_path)
    assert found["missing"] == found["unexpected"] == []
    assert (found["packed"], found["verified"]) == (layers, MODELS[name][4])
    assert found["same"] == [True] * 3
    assert found["loaded"][:layers] == [8] * layers
    assert 0 < found["difference"] < 0.03
    assert found["again"]
    assert found["half"] == ["torch.bfloat16"]
    assert found["pruned"] >= layers
    assert found["dequantized"] < 1e-5


@needs_version_5
@pytest.mark.parametrize(
    ("layout", "section"),
    [
        ("sparse-bitmask", "quantization_config"),
        ("sparse-bitmask", "compression_config"),
        ("sparse-24-bitmask", "quantization_config"),
    ],
)
def test_orphaned_folders_of_compressed_tensors_run(tmp_path, layout, section):
    from compressed_tensors import BitmaskConfig, ModelCompressor, Sparse24BitMaskConfig

    torch.manual_seed(0)
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
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
    if section == "compression_config":  # as before 0.10
        config = json.loads((folder / "config.json").read_text())
        config[section] = config.pop("quantization_config")
        (folder / "config.json").write_text(json.dumps(config))
    (found,) = run("orphan", tmp_path)
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
    (found,) = run("experts", tmp_path)
    assert found["eager"] == found["grouped_mm"]
    assert found["eager"]["sparsities"] == [0.5]
    assert len(found["eager"]["tokens"]) == 16
    assert sum(found["eager"]["tokens"]) == 4 * 2 * 384  # four parameters, two experts for each token
    assert found["batched_mm"]["sparsities"] == [None]
    assert found["batched_mm"]["reasons"] == ["no product with it was seen"]


@needs_version_5
def test_the_example_generates_from_a_packed_folder():
    example = HERE.parents[1] / "examples" / "transformers_generate.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([VERSION_5, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(example), "--new", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "28 tensors packed, 50.0% of their weights are zero" in done.stdout
    assert "tokens/s: 'The quick brown fox" in done.stdout.splitlines()[-1]
