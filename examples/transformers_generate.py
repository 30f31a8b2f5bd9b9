"""`pipeline("text-generation")` of transformers 5 on a packed model folder, beside the dense one: memory and speed.

    python examples/transformers_generate.py [MODEL] [--pattern 50%] [--prompt "…"] [--new 32]

MODEL is a model folder with its tokenizer. It is packed beside itself, by magnitude unless it is pruned already and
the pattern is "nonzero". Without one a small Llama of random weights stands in, with a tokenizer of a few words.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import fastsparse.transformers  # noqa: F401  (packed folders load with it)
from fastsparse import checkpoint


def stand_in(folder: Path) -> None:
    """A small model of random weights and a tokenizer of five words."""
    import tokenizers  # comes with transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=64, eos_token_id=None, **sizes)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = ["<unk>", "The", "quick", "brown", "fox", *(f"w{i}" for i in range(59))]
    words_of = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words_of)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
    made.save_pretrained(folder)


def measure(folder: Path, prompt: str, new: int) -> tuple[Any, float, float]:
    """The text, the megabytes of the model's tensors, and tokens a second."""
    generate = transformers.pipeline("text-generation", model=str(folder), dtype="auto", device_map="cpu")
    model = generate.model
    size = sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()}) / 1e6
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    generate(prompt, max_new_tokens=2, do_sample=False)  # the first call sets things up
    started = time.perf_counter()
    said = generate(prompt, **options)[0]["generated_text"]
    return said, size, new / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """Packs the folder, generates from both and says what it saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--prompt", default="The quick brown fox")
    parser.add_argument("--new", type=int, default=32)
    options = parser.parse_args(arguments)

    work = Path(tempfile.mkdtemp())
    source = options.model
    if source is None:
        print("stand-in: a small model of random weights")
        source = work / "dense"
        stand_in(source)
    report = checkpoint.compress(source, work / "packed", options.pattern)
    print(f"{report.packed} tensors packed, {report.sparsity:.1%} of their weights are zero")
    for name, folder in {"dense, unpruned": source, "packed": work / "packed"}.items():
        said, size, rate = measure(folder, options.prompt, options.new)
        print(f"{name}: {size:.1f} MB, {rate:.1f} tokens/s: {said!r}")


if __name__ == "__main__":
    main()
