"""What five recipes make of the demo's model, as the table of docs/checkpoints.md: `python benches/recipes.py`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fastsparse import checkpoint
from fastsparse.checkpoint import Recipe, Rule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import demo

RECIPES = {
    "`50%`": Recipe(default="50%"),
    "`50% --global`": Recipe(default="50%", scope="global"),
    "`2:4`": Recipe(default="2:4"),
    "`75%/4x1`": Recipe(default="75%/4x1"),
    "`80%`, attention `50%`, embeddings `50%`": Recipe(
        default="80%", rules=(Rule("attention", "50%"), Rule("word_embeddings", "50%"))
    ),
}


def main() -> None:
    demo.CACHE.mkdir(exist_ok=True)
    source, title = demo.fetch_model()
    dense = checkpoint.open(source)
    energy = {name: float(np.square(w, dtype=np.float64).sum()) for name, w in dense.items()}
    print(f"{title}, {source.stat().st_size / 1e6:.1f} MB\n")
    print("| recipe | file | pruned tensors | zeros in them | energy kept | least of a tensor |")
    print("|---|---|---|---|---|---|")
    for name, recipe in RECIPES.items():
        with TemporaryDirectory(dir=demo.CACHE) as work:
            target = Path(work, "packed.safetensors")
            checkpoint.compress(source, target, recipe)
            report = checkpoint.verify(target, against=source)
            size = target.stat().st_size
        rows = [row for row in report.tensors if row.reason is None]
        shares = {row.name: row.kept_energy for row in rows if row.kept_energy is not None}
        assert len(shares) == len(rows)
        kept = sum(share * energy[name] for name, share in shares.items()) / sum(energy[name] for name in shares)
        before, after = (sum(getattr(row, field) for row in rows) / 1e6 for field in ("bytes_before", "bytes_after"))
        print(
            f"| {name} | {size / 1e6:.1f} MB | {before:.1f} → {after:.1f} MB | {report.sparsity:.1%} "
            f"| {kept:.1%} | {min(shares.values()):.1%} |"
        )


if __name__ == "__main__":
    main()
