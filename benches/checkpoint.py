"""Memory and speed of whole checkpoints: `python benches/checkpoint.py PLACE`, with ten gigabytes free there.

Makes a Llama-shaped model folder of bfloat16 weights in PLACE, does every job on it in a process of its own, in turn
with `cp` and `sync` of the same folder, and prints seconds, their ratio and the peak of resident memory (VmHWM, mapped
pages included). `--peers` does the same job on a smaller folder with compressed-tensors and torch, and selects the same
tensors with coremltools. The source is in the page cache for everybody, as far as memory allows.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastsparse as fs
from fastsparse import checkpoint

VOCABULARY, WIDTH, INNER = 32000, 4096, 11008
JOBS = {
    "compress 50%": "checkpoint.compress(dense, target, '50%')",
    "compress 2:4": "checkpoint.compress(dense, target, '2:4')",
    "compress 50% --global": "checkpoint.compress(dense, target, checkpoint.Recipe(default='50%', scope='global'))",
    "decompress": "checkpoint.decompress(packed, target)",
}
CHILD = """
import json, os, sys, time
from fastsparse import checkpoint
dense, packed, target = sys.argv[1:]
started = time.perf_counter()
{job}
os.sync()
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
print(json.dumps([seconds, peak]))
"""


def make(folder: Path, gigabytes: float) -> int:
    """A model folder of about this size in shards of about a gigabyte; its weights are normal, their order differs."""
    folder.mkdir()
    normal = np.random.default_rng(0).standard_normal(1 << 24, np.float32).astype(ml_dtypes.bfloat16)

    def weights(seed: int, *shape: int) -> Any:
        return np.resize(np.roll(normal, 7919 * seed), shape)

    layer = {"q_proj": (WIDTH, WIDTH), "o_proj": (WIDTH, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    per_layer = 2 * sum(rows * cols for rows, cols in layer.values())
    edge = 2 * VOCABULARY * WIDTH
    layers = max(1, round((gigabytes * 1e9 - 2 * edge) / per_layer)) if gigabytes >= 1 else 1
    shards = [[("embed_tokens.weight", (VOCABULARY, WIDTH))], [("lm_head.weight", (VOCABULARY, WIDTH))]]
    for i in range(layers):
        if i % 4 == 0:
            shards.append([])
        shards[-1] += [(f"layers.{i}.{name}.weight", shape) for name, shape in layer.items()]
    if gigabytes < 1:
        del shards[:2]
    where = {}
    for at, tensors in enumerate(shards):
        shard = f"model-{at:05}.safetensors"
        checkpoint.save({name: weights(at * 8 + i, *shape) for i, (name, shape) in enumerate(tensors)}, folder / shard)
        where.update({name: shard for name, _ in tensors})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return max(2 * int(np.prod(shape)) for tensors in shards for _, shape in tensors)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp` and `sync`."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    os.sync()
    return time.perf_counter() - started


def whole(place: Path, gigabytes: float, rounds: int) -> None:
    """Each job in turn with copying."""
    dense, packed, target = place / "dense", place / "packed", place / "target"
    if not dense.exists():
        make(dense, gigabytes)
    if not packed.exists():
        checkpoint.compress(dense, packed, "50%")
    largest = max(row.bytes_before for row in checkpoint.inspect(dense).tensors)
    os.sync()
    print(f"{size(dense) / 1e9:.2f} GB, packed {size(packed) / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    print(f"allowed memory: two of the largest + 256 MB = {(2 * largest + (256 << 20)) / 1e6:.0f} MB")
    results: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(rounds):
        for name, job in JOBS.items():
            copied = copy(dense, target)
            shutil.rmtree(target)
            os.sync()
            command = [sys.executable, "-c", CHILD.format(job=job), *map(str, (dense, packed, target))]
            seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            shutil.rmtree(target)
            os.sync()
            results.setdefault(name, []).append((copied, seconds, peak))
            print(f"{name}: cp {copied:.2f} s, {seconds:.2f} s, {peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    for name, rows in results.items():
        copied, seconds = (statistics.median(row[i] for row in rows) for i in (0, 1))
        ratio = statistics.median(row[0] / row[1] for row in rows)
        peak = max(row[2] for row in rows)
        print(
            f"{name:22} {seconds:6.2f} s, {size(dense) / seconds / 1e9:.2f} GB/s of dense weights; "
            f"cp + sync {copied:6.2f} s: {ratio:.2f} × its speed; peak {peak / 1e6:.0f} MB"
        )


def against_peers(place: Path, rounds: int) -> None:
    """compressed-tensors with torch does the same job from file to file; coremltools selects the same tensors."""
    import peers
    import torch
    from safetensors.torch import load_file, save_file

    dense, target = place / "small", place / "small-target"
    if not dense.exists():
        make(dense, 0.1)
    (shard,) = dense.glob("*.safetensors")

    def theirs() -> None:
        tensors = {}
        for name, w in load_file(shard).items():
            mask = w.abs() > w.abs().view(-1).kthvalue(w.numel() // 2).values
            tensors.update(peers.bitmask.BitmaskTensor.from_dense(w * mask).dict(name.removesuffix(".weight")))
        save_file(tensors, target)
        os.sync()
        target.unlink()

    def ours() -> None:
        checkpoint.compress(shard, target, "50%")
        os.sync()
        target.unlink()

    compare("compressed-tensors 0.14.0.1 + torch", ours, theirs, rounds, size(dense))
    weights = [np.asarray(w).astype(np.float32) for w in checkpoint.open(shard).values()]
    options: dict[str, Any] = {"target_sparsity": 0.5, "block_size": None, "dim": None}
    compare(
        "coremltools, selection in memory, float32",
        lambda: [fs.select(w, "50%") for w in weights],
        lambda: [peers.coreml.compress_by_magnitude(w, **options) for w in weights],
        rounds,
        sum(w.nbytes for w in weights),
    )
    assert torch.get_num_threads() > 0


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, nbytes: int) -> None:
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for job, taken in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            job()
            taken.append(time.perf_counter() - started)
    mine, other = map(statistics.median, times)
    print(f"{name}: {other:.2f} s; fastsparse {mine:.3f} s, {nbytes / mine / 1e9:.2f} GB/s: {other / mine:.1f} ×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", help="only those whose name contains this")
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    arguments.place.mkdir(exist_ok=True)
    for name in list(JOBS):
        if arguments.jobs and arguments.jobs not in name:
            del JOBS[name]
    fs.show_runtime()
    if arguments.peers:
        against_peers(arguments.place, arguments.rounds)
    else:
        whole(arguments.place, arguments.gigabytes, arguments.rounds)


if __name__ == "__main__":
    main()
