"""From NumPy weights to a packed file and back, with what each step costs.

    python examples/numpy_pipeline.py

The weights are random, with a few strong columns, as those of trained layers have; put your own in their place.
"""

import tempfile
from pathlib import Path

import numpy as np

import fastsparse as fs
from fastsparse import checkpoint


def layers() -> dict[str, np.ndarray]:
    """Two linear layers and a bias."""
    rng = np.random.default_rng(0)
    strength = np.exp(rng.normal(0, 1, 512))
    return {
        "up.weight": (rng.normal(0, 0.02, (1024, 512)) * strength).astype(np.float32),
        "down.weight": rng.normal(0, 0.02, (512, 1024)).astype(np.float32),
        "up.bias": rng.normal(0, 0.02, 1024).astype(np.float32),
    }


def main() -> None:
    """Prune, pack, save, load, compute."""
    weights = layers()
    x = np.random.default_rng(1).normal(size=(256, 512)).astype(np.float32)

    # The mask alone: which weights stay, by their size and by their size times the activations they
    # meet (Wanda).
    by_size = fs.select(weights["up.weight"], "50%/row")
    by_effect = fs.select(weights["up.weight"], "50%/row", column_scale=np.linalg.norm(x, axis=0))
    print(f"masks {by_size}, and {(by_size ^ by_effect).count} weights chosen otherwise with activations")

    # Mask and values in one go. A 2:4 tensor remembers its pattern.
    packed = {
        "up.weight": fs.pack(weights["up.weight"], by_effect),
        "down.weight": fs.compress(weights["down.weight"], "2:4"),
        "up.bias": weights["up.bias"],
    }
    for name in ("up.weight", "down.weight"):
        print(f"{name}: {packed[name]}, pattern {packed[name].pattern}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        checkpoint.save(packed, path)
        before = sum(array.nbytes for array in weights.values())
        print(f"saved {before} bytes of weights in a file of {path.stat().st_size}")
        loaded = checkpoint.open(path, mmap=False)
        up, down = loaded["up.weight"], loaded["down.weight"]

    # What was kept has the same bits; the rest is zero.
    assert np.array_equal(up.to_dense(), fs.apply_mask(weights["up.weight"], by_effect))

    # The layers computed as they are packed, and for comparison dense.
    hidden = np.maximum(fs.linear(x, up, loaded["up.bias"]), 0)
    y = fs.linear(hidden, down)
    dense = np.maximum(x @ up.to_dense().T + weights["up.bias"], 0) @ down.to_dense().T
    print(f"packed and dense differ by {np.abs(y - dense).max() / np.abs(dense).max():.0e} of the largest output")
    assert np.allclose(y, dense, atol=1e-4 * np.abs(dense).max())


if __name__ == "__main__":
    main()
