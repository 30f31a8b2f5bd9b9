"""Packed folders in transformers 5, in a process of its own: other tests need version 4. Prints JSON.

python transformers5.py plugin|eightbit|orphan|experts FOLDER...
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

PROMPT = torch.arange(3, 11)[None]


def auto_class(folder):
    config = json.loads((folder / "config.json").read_text())
    kinds = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
    return kinds.get(config["model_type"], AutoModelForCausalLM)


def logits(model, as_made=False):
    others = {"decoder_input_ids": PROMPT} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        found = model(PROMPT, **others).logits
    return found if as_made else found.float()


def tokens(model):
    if not model.can_generate():
        return None
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False).tolist()


def plugin(folder):
    """A folder that `compress` packed, by way of `import fastsparse.transformers`."""
    import fastsparse.torch as fst
    from fastsparse import checkpoint
    from fastsparse.transformers import FastSparseConfig

    def packed(model):
        return sum(isinstance(module, fst.SparseLinear) for module in model.modules())

    checkpoint.decompress(folder / "packed", folder / "dense")
    kind = auto_class(folder / "dense")
    dense = kind.from_pretrained(folder / "dense")
    model, info = kind.from_pretrained(folder / "packed", output_loading_info=True)
    model.save_pretrained(folder / "again", max_shard_size="60KB")
    again = kind.from_pretrained(folder / "again")
    half = kind.from_pretrained(folder / "packed", dtype=torch.bfloat16, device_map="cpu")
    pruned = kind.from_pretrained(folder / "source", quantization_config=FastSparseConfig("50%"))
    try:
        kind.from_pretrained(folder / "packed", device_map={"": "cuda:0"})
        refused = ""
    except ValueError as error:
        refused = str(error)
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "packed": packed(model),
        "base": packed(AutoModel.from_pretrained(folder / "packed")),
        "difference": (logits(model) - logits(dense)).abs().max().item(),
        "tokens": tokens(model) == tokens(dense),
        "shards": len(list((folder / "again").glob("*.safetensors"))),
        "again": [packed(again), torch.equal(logits(again), logits(model))],
        "verified": checkpoint.verify(folder / "again").packed,
        "half": [str(half.dtype), packed(half), str(logits(half, as_made=True).dtype)],
        "pruned": packed(pruned),
        "refused": refused,
    }
    back = model.dequantize()
    found["dequantized"] = [packed(back), (logits(back) - logits(dense)).abs().max().item()]
    return found


def eightbit(folder):
    """A folder whose kept weights are of eight bits."""
    import fastsparse.torch as fst
    from fastsparse import QuantizedArray, checkpoint
    from fastsparse.transformers import FastSparseConfig

    def layers(model):
        found = {name: m for name, m in model.named_modules() if isinstance(m, fst.SparseLinear)}
        return {name: layer for name, layer in found.items() if isinstance(layer.packed, QuantizedArray)}

    def same(model, path):
        stored = checkpoint.open(path)
        return all(layer.packed.packed == stored[f"{name}.weight"].packed for name, layer in layers(model).items())

    checkpoint.decompress(folder / "packed", folder / "dense")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    model, info = AutoModelForCausalLM.from_pretrained(folder / "packed", output_loading_info=True)
    model.save_pretrained(folder / "again", max_shard_size="60KB")
    again = AutoModelForCausalLM.from_pretrained(folder / "again")
    half = AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.bfloat16)
    config = FastSparseConfig("50%", weight_bits=8)
    pruned = AutoModelForCausalLM.from_pretrained(folder / "source", quantization_config=config)
    reference = fst.load(AutoModelForCausalLM.from_config(model.config), folder / "packed", strict=False)
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "packed": len(layers(model)),
        "same": [same(model, folder / "packed"), same(again, folder / "again"), same(half, folder / "packed")],
        "loaded": [row.bits for row in reference.tensors if row.reason is None],
        "difference": ((logits(model) - logits(dense)).norm() / logits(dense).norm()).item(),
        "again": torch.equal(logits(again), logits(model)),
        "half": sorted({str(layer.dtype) for layer in layers(half).values()}),
        "pruned": len(layers(pruned)),
        "verified": checkpoint.verify(folder / "again").packed,
    }
    back = model.dequantize()
    found["dequantized"] = (logits(back) - logits(dense)).abs().max().item()
    return found


def orphan(folder):
    """A folder that compressed-tensors packed."""
    import fastsparse.torch as fst
    import fastsparse.transformers  # noqa: F401
    from fastsparse import checkpoint

    checkpoint.decompress(folder / "orphan", folder / "dense")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    model, info = AutoModelForCausalLM.from_pretrained(folder / "orphan", output_loading_info=True)
    return {
        "missing": sorted(info["missing_keys"]),
        "packed": sum(isinstance(module, fst.SparseLinear) for module in model.modules()),
        "difference": (logits(model) - logits(dense)).abs().max().item(),
    }


def experts(folder):
    """Pruned with calibration data, whatever multiplies the experts: layers pruned, dense ones, and their reasons."""
    import warnings

    import fastsparse.torch as fst

    warnings.simplefilter("ignore")
    found = {}
    for way in ("eager", "grouped_mm", "batched_mm"):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4}
        config = transformers.MixtralConfig(**sizes, **heads, experts_implementation=way)
        model = transformers.MixtralForCausalLM(config).eval()
        report = fst.prune_model(model, "50%", [torch.randint(0, 64, (2, 64)) for _ in range(3)])
        rows = [row for row in report.layers if "experts" in row.name]
        found[way] = {
            "tokens": [row.tokens for row in rows],
            "sparsities": sorted({row.sparsity for row in rows}, key=str),
            "reasons": sorted({str(row.reason) for row in rows if row.method is None}),
        }
    return found


if __name__ == "__main__":
    assert int(transformers.__version__.split(".")[0]) >= 5, transformers.__version__
    job = {"plugin": plugin, "eightbit": eightbit, "orphan": orphan, "experts": experts}[sys.argv[1]]
    print(json.dumps([job(Path(folder)) for folder in sys.argv[2:]]))
