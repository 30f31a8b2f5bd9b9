"""Text from a pruned language model, packed beside dense: how many tokens a second, and how much memory.

    python examples/torch_decode.py MODEL [--pattern 50%] [--prompt "…"] [--new 32]

MODEL is a folder or a name that `transformers` knows. Without one a small Llama of random weights is made, and the
prompt is a few token numbers. Magnitude pruning in one step costs accuracy: train on afterwards (torch_train.py), or
take a model that was pruned with care and the pattern "nonzero".
"""

import argparse
import copy
import time

import torch
import transformers
from torch import Tensor, nn

import fastsparse.torch as fst


def load(name: str | None, prompt: str) -> tuple[nn.Module, Tensor]:
    """The model in bfloat16, and the tokens of the prompt."""
    if name is None:
        shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
        config = transformers.LlamaConfig(**shape, eos_token_id=None)
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval(), torch.arange(3, 11).view(1, 8)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).eval()
    return model, transformers.AutoTokenizer.from_pretrained(name)(prompt, return_tensors="pt").input_ids


def decode(model: nn.Module, tokens: Tensor, new: int) -> tuple[Tensor, float]:
    """What the model says, and the tokens a second."""
    model.generate(tokens, max_new_tokens=2, min_new_tokens=2, do_sample=False)  # the first call sets things up
    started = time.perf_counter()
    said = model.generate(tokens, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return said, new / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """Decodes twice and says what it saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--prompt", default="The quick brown fox")
    parser.add_argument("--new", type=int, default=32)
    options = parser.parse_args(arguments)

    dense, tokens = load(options.model, options.prompt)
    packed = copy.deepcopy(dense)
    report = fst.sparsify(packed, options.pattern)
    said, rate = {}, {}
    for name, model in {"dense": dense, "packed": packed}.items():
        said[name], rate[name] = decode(model, tokens, options.new)
        print(f"{name}: {rate[name]:.1f} tokens/s")
    print(f"{report.packed} layers packed, {report.sparsity:.1%} of their weights are zero")
    print(f"weights: {report.bytes_after / 1e6:.1f} MB, dense {report.bytes_before / 1e6:.1f} MB")
    print(f"tokens: {said['packed'][0].tolist()}")


if __name__ == "__main__":
    main()
