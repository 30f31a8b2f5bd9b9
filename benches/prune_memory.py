"""Peak memory of pruning a model that is larger than that: `python benches/prune_memory.py FOLDER`.

Makes a folder of random weights in the shape of Llama 7B, with `--blocks` of its 32 blocks, and prunes it by SparseGPT
with refinement on random tokens. After each layer it prints the largest size that the process has had, mapped pages
included. Linux only.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from fastsparse import checkpoint
from fastsparse.torch import _folder
from fastsparse.torch._tensors import as_array


def make(folder: Path, blocks: int) -> None:
    """The folder, in bfloat16."""
    config = transformers.LlamaConfig(num_hidden_layers=blocks, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in transformers.LlamaForCausalLM(config).named_parameters()}
    weights = {name: (torch.randn(shape) / shape[-1] ** 0.5).to(torch.bfloat16) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    arrays = {name: as_array(weight) for name, weight in weights.items()}
    checkpoint.save(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def peak() -> str:
    """The largest resident size of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return f"{int(line.split()[1]) * 1024 / 1e9:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Made where it does not exist.")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--refine", type=int, default=10)
    options = parser.parse_args()
    if not options.folder.exists():  # in another process, whose memory does not count
        process = multiprocessing.get_context("spawn").Process(target=make, args=(options.folder, options.blocks))
        process.start()
        process.join()
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, 32000, (1, options.length))) for _ in range(options.samples)]
    started = time.perf_counter()

    def progress(done: int, total: int, name: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {done / total:4.0%}  peak {peak()}  {name}", flush=True)

    print(f"start: peak {peak()}", flush=True)
    recipe = checkpoint.Recipe(
        default="50%",
        calibration=checkpoint.Calibration(),
        method=checkpoint.Method(refine=options.refine),
        allocation=checkpoint.Allocation(),
    )
    target = options.folder.with_name(options.folder.name + "-packed")
    _, report = _folder.prune_folder(options.folder, target, recipe, batches, overwrite=True, progress=progress)
    sizes = f"{report.bytes_before / 1e9:.2f} GB → {report.bytes_after / 1e9:.2f} GB"
    print(f"{sizes} in {report.seconds:.0f} s, peak {peak()}")


if __name__ == "__main__":
    main()
