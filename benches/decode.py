"""Tokens a second of a Llama of 1.1 billion bfloat16 weights: packed layers beside the dense ones of torch.

    python benches/decode.py [--layers 22] [--new 24] [--rounds 3]

The weights are random, in the shape of TinyLlama; `generate` decodes greedily after a prompt of eight tokens. All
models are in memory and take turns within each round; the rate is that of the tokens after the first, and the ratio is
the median over the rounds. The dense model holds the same pruned weights. Before anything is timed the logits are
compared, and in a process of its own the peak of the resident memory while decoding is taken, dense and then packed.

It is meant to be run as a user would: nothing set in the environment.
"""

import argparse
import copy
import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers
from measure import Side, interleave, ratio
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst

SPARSITIES = {"50%": 1.5, "75%": 2.0}
"""What is measured, and how many times as fast as dense it should be."""
PROMPT = torch.arange(3, 11).view(1, 8)


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


def packed(dense: nn.Module, pattern: str) -> tuple[nn.Module, float]:
    """A packed model that shares what stays dense, and the bytes of its weights over those of the dense one."""
    model = copy.deepcopy(dense, {id(w): w for w in dense.parameters()})
    report = fst.sparsify(model, pattern)
    return model, report.bytes_after / report.bytes_before


def prune(dense: nn.Module, like: nn.Module, pattern: str) -> None:
    """Prunes the layers of the dense model that are packed in the other."""
    for name, module in like.named_modules():
        if isinstance(module, fst.SparseLinear):
            w = dense.get_submodule(name).weight.data
            fst.prune(w, pattern, out=w)


def assert_same_logits(dense: nn.Module, model: nn.Module) -> float:
    """The largest difference, in the largest logit; it has to be within the rounding of bfloat16 over the layers."""
    with torch.inference_mode():
        expected, found = dense(PROMPT).logits.float(), model(PROMPT).logits.float()
    difference: float = ((expected - found).abs().max() / expected.abs().max()).item()
    assert difference < 0.03, f"logits differ by {difference:.2%} of the largest"
    return difference


def generate(model: nn.Module, new: int) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(PROMPT, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return tokens


def peak_while_decoding(model: nn.Module) -> int:
    """Bytes of resident memory at the most."""
    Path("/proc/self/clear_refs").write_text("5")
    generate(model, 4)
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def memory(layers: int, pattern: str) -> dict[str, int]:
    """Peaks above what the process has before there is a model."""
    generate(llama(1, 256), 4)  # what torch itself allocates on first use
    before = peak_while_decoding(llama(1, 256))
    model = llama(layers)
    dense = peak_while_decoding(model) - before
    fst.sparsify(model, pattern)
    return {"dense": dense, "packed": peak_while_decoding(model) - before}


def memory_in_a_process(layers: int, pattern: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--layers", str(layers), "--memory", pattern]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--new", type=int, default=24, help="tokens a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", metavar="PATTERN", help="only the memory, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if arguments.memory:
        print(json.dumps(memory(arguments.layers, arguments.memory)))
        return
    peaks = {pattern: memory_in_a_process(arguments.layers, pattern) for pattern in SPARSITIES}
    dense = llama(arguments.layers)
    models, shares, differences = {"dense": dense}, {}, {}
    for pattern in SPARSITIES:
        models[pattern], shares[pattern] = packed(dense, pattern)
    for pattern in SPARSITIES:  # what 50 % keeps holds all that 75 % does
        prune(dense, models[pattern], pattern)
        differences[pattern] = assert_same_logits(dense, models[pattern])
    for model in models.values():
        generate(model, 2)  # the first call sets things up
    sides = [
        Side(f"{name}, {new}", partial(generate, model, new), rounds=arguments.rounds)
        for name, model in models.items()
        for new in (1, 1 + arguments.new)
    ]
    times = interleave(sides)
    for name in models:  # the prompt and the first token do not count
        times[name] = [
            (long - short) / arguments.new
            for long, short in zip(times[f"{name}, {1 + arguments.new}"], times[f"{name}, 1"], strict=True)
        ]
    weights = sum(w.numel() for w in dense.parameters())
    fs.show_runtime()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{weights / 1e9:.2f} billion weights, bfloat16")
    print(f"dense: {1 / median(times['dense']):.1f} tokens/s")
    for pattern, target in SPARSITIES.items():
        rate, faster = 1 / median(times[pattern]), ratio(times, "dense", pattern)
        print(f"{pattern}: {rate:.1f} tokens/s, {faster:.2f} × dense (wanted ≥ {target})")
        print(f"  prompt of 8: {ratio(times, 'dense, 1', f'{pattern}, 1'):.2f} × dense")
        share = peaks[pattern]["packed"] / peaks[pattern]["dense"]
        print(f"  peak memory {share:.2f} of {peaks[pattern]['dense'] / 1e9:.2f} GB (weights: {shares[pattern]:.2f})")
        print(f"  logits differ by at most {differences[pattern]:.2%} of the largest")


if __name__ == "__main__":
    main()
