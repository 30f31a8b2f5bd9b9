"""Writes one of the folders in `tests/data/compressed_tensors` with the compressed-tensors that is installed.

    python tests/interop/make_compressed_tensors.py sparse-bitmask [sparse-24-bitmask]

Each folder was made once, in an environment of its own with torch and that version: 0.3.3, 0.8.1 and 0.14.0.1.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parents[1] / "data" / "compressed_tensors"
sys.path.insert(0, str(DATA.parents[1]))
import golden  # noqa: E402

try:
    from compressed_tensors.config import SparsityCompressionConfig
except ImportError:  # 0.3
    from compressed_tensors.config import CompressionConfig as SparsityCompressionConfig
VERSION = version("compressed-tensors")


def tensors(names):
    return {name: torch.from_numpy(golden.weights(name)).to(torch.bfloat16) for name in names}


def compressor(config):
    if VERSION.startswith("0.3."):
        from compressed_tensors.compressors import ModelCompressor as registry
    else:
        from compressed_tensors.compressors import BaseCompressor as registry
    return registry.load_from_registry(config.format, config=config)


def compress(config, state):
    """As the version does by itself: up to 0.3 every tensor, later the weights of the modules it is told to."""
    if VERSION.startswith("0.3."):
        return compressor(config).compress(state)
    if VERSION.startswith("0.8."):
        return {
            **compressor(config).compress({name: part for name, part in state.items() if golden.pruned(name)}),
            **{name: part for name, part in state.items() if not golden.pruned(name)},
        }
    targets = {name.removesuffix(".weight") for name in state if golden.pruned(name)}
    return compressor(config).compress(state, compression_targets=targets)


def section(config):
    """What the version's `update_config` adds to `config.json`."""
    if VERSION.startswith("0.3."):
        return {"sparsity_config": config.model_dump()}
    from compressed_tensors.compressors import ModelCompressor

    place = DATA / "config.json"
    place.write_text("{}")
    ModelCompressor(sparsity_config=config).update_config(str(DATA))
    content = json.loads(place.read_text())
    place.unlink()
    return content


def make(form):
    structure = "2:4" if "24" in form else "unstructured"
    config = SparsityCompressionConfig.load_from_registry(
        form, targets=["Linear"], ignore=["lm_head"], global_sparsity=0.55, sparsity_structure=structure
    )
    folder = DATA / f"{VERSION}-{form}"
    folder.mkdir()
    save_file(compress(config, tensors(golden.SHAPES)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**golden.CONFIG, **section(config)}, indent=1) + "\n")
    if structure != "2:4":
        save_file(compress(config, tensors(golden.EXTRA)), folder / "extra.safetensors")


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        make(wanted)
