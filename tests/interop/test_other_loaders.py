"""A packed folder in loaders that do not know it: an error, never random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fastsparse.torch as fst
from fastsparse import checkpoint

MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4)),
}
LATER = os.environ.get("FASTSPARSE_TRANSFORMERS5", str(Path(__file__).parents[2] / ".venv-transformers5"))
"""A folder with transformers 5 and a current compressed-tensors, as `make interop` makes it."""
LOAD = """
import sys, torch, transformers
assert transformers.__version__.split(".")[0] == "5"
for folder in sys.argv[1:]:
    try:
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        print("refused:", error)
    else:
        print("loaded")
"""


@pytest.fixture(params=MODELS)
def folders(request, tmp_path):
    """A packed folder, and one whose config has lost the section that says so."""
    torch.manual_seed(1)
    MODELS[request.param]().save_pretrained(tmp_path / "src")
    checkpoint.compress(tmp_path / "src", tmp_path / "packed", "50%")
    checkpoint.compress(tmp_path / "src", tmp_path / "unnamed", "50%")
    config = json.loads((tmp_path / "unnamed" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "fastsparse"
    (tmp_path / "unnamed" / "config.json").write_text(json.dumps(config))
    return tmp_path / "packed", tmp_path / "unnamed"


def test_transformers_4_stops(folders):
    for folder in folders:
        with pytest.raises(RuntimeError, match=r"size mismatch for .*torch.Size\(\[0\]\)"):
            AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.skipif(not Path(LATER).is_dir(), reason="needs transformers 5: make interop")
def test_transformers_5_stops_and_names_the_layers(folders):
    path = os.pathsep.join([LATER, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["refused", "refused"], done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "MISMATCH" in said
    assert "mlp.down_proj.weight" in said or "mlp.c_proj.weight" in said


def test_it_loads_dense_again(folders, tmp_path):
    checkpoint.decompress(folders[0], tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    stored = checkpoint.open(tmp_path / "dense")
    assert all((stored[name] == parameters[name]).all() for name in stored if name in parameters)


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_layers_take_the_keys_of_a_folder(folders):
    """With the empty tensors among them."""
    prefix = "model.layers.1.mlp.up_proj."
    keys = safetensors.torch.load_file(folders[0] / "model.safetensors")
    own = {key.removeprefix(prefix): part for key, part in keys.items() if key.startswith(prefix)}
    assert own["weight"].shape == (0,)
    layer = fst.SparseLinear(64, 96, bias=False)
    layer.load_state_dict(own)
    assert layer.packed == checkpoint.open(folders[0])[f"{prefix}weight"]
