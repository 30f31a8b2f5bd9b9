"""Packed folders in transformers 5, in a process of its own: other tests need version 4. Prints JSON.

python transformers5.py plugin|orphan FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

PROMPT = torch.arange(3, 11)[None]


def logits(model):
    with torch.inference_mode():
        return model(PROMPT).logits.float()


def tokens(model):
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False).tolist()


def plugin(folder):
    """A folder that `compress` packed, by way of `import fastsparse.transformers`."""
    import fastsparse.torch as fst
    from fastsparse import checkpoint
    from fastsparse.transformers import FastSparseConfig

    def packed(model):
        return sum(isinstance(module, fst.SparseLinear) for module in model.modules())

    checkpoint.decompress(folder / "packed", folder / "dense")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    model, info = AutoModelForCausalLM.from_pretrained(folder / "packed", output_loading_info=True)
    model.save_pretrained(folder / "again", max_shard_size="60KB")
    again = AutoModelForCausalLM.from_pretrained(folder / "again")
    half = AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.bfloat16, device_map="cpu")
    pruned = AutoModelForCausalLM.from_pretrained(folder / "source", quantization_config=FastSparseConfig("50%"))
    try:
        AutoModelForCausalLM.from_pretrained(folder / "packed", device_map={"": "cuda:0"})
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
        "half": [str(half.dtype), packed(half), str(half(PROMPT).logits.dtype)],
        "pruned": [packed(pruned), (logits(pruned) - logits(dense)).abs().max().item()],
        "refused": refused,
    }
    back = model.dequantize()
    found["dequantized"] = [packed(back), (logits(back) - logits(dense)).abs().max().item()]
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


if __name__ == "__main__":
    assert int(transformers.__version__.split(".")[0]) >= 5, transformers.__version__
    print(json.dumps({"plugin": plugin, "orphan": orphan}[sys.argv[1]](Path(sys.argv[2]))))
