"""A model folder as hubs hold them: pruned, packed, checked, dense again, and in the layout of compressed-tensors.

    python examples/model_folder.py [FOLDER]

Without a folder it makes a small one with random weights. What it writes is in a temporary place.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from fastsparse import checkpoint, compressed_tensors
from fastsparse.checkpoint import Recipe, Rule


def make_model(folder: Path) -> Path:
    """Two shards, their index, a config and a tokenizer."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    where = {}
    for layer in range(2):
        shard = f"model-0000{layer + 1}-of-00002.safetensors"
        names = {f"model.layers.{layer}.{part}.weight": (256, 256) for part in ("self_attn.q_proj", "mlp.up_proj")}
        tensors = {name: rng.normal(0, 0.02, shape).astype(np.float16) for name, shape in names.items()}
        checkpoint.save(tensors, folder / shard)
        where.update(dict.fromkeys(tensors, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def main(source: Path | None = None) -> None:
    """Compress a folder, look at it, and turn it back."""
    with tempfile.TemporaryDirectory() as place:
        target = Path(place)
        model = source or make_model(target / "model")

        # 2:4 in the attention, half of everything else; what that will do, before anything is
        # written.
        recipe = Recipe(default="50%", rules=[Rule("self_attn", pattern="2:4")])
        for row in checkpoint.plan(model, recipe).report.tensors:
            print(f"{row.name:40} {row.pattern or row.reason}: {row.bytes_before} → {row.bytes_after} bytes")

        report = checkpoint.compress(model, target / "small", recipe)
        print(
            f"{report.bytes_before} → {report.bytes_after} bytes, {report.packed} tensors {report.sparsity:.1%} sparse"
        )
        checkpoint.verify(target / "small", against=model)

        # One tensor of it, without reading the others.
        name = next(row.name for row in report.tensors if row.sparsity is not None)
        print(name, checkpoint.open(target / "small")[name])

        # Dense again, for whatever reads plain folders; the config says nothing of sparsity any
        # more.
        checkpoint.decompress(target / "small", target / "dense")
        section = json.loads((target / "small" / "config.json").read_text())["quantization_config"]
        assert "quantization_config" not in json.loads((target / "dense" / "config.json").read_text())
        print(f"the packed config: {section['quant_method']}, {section['format']}")

        # The way back of models that compressed-tensors packed is the same, whichever of its
        # versions did.
        compressed_tensors.convert(target / "dense", target / "theirs", "sparse-bitmask")
        compressed_tensors.convert(target / "theirs", target / "rescued", "dense")
        checkpoint.verify(target / "rescued", against=target / "dense")
        print("packed for compressed-tensors and rescued: every bit is there")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
