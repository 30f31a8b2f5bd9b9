"""What demonstrations show: a model of random weights, and what packing makes of a file."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastsparse import checkpoint, ops
from fastsparse._table import Column, table
from fastsparse.packed import byte_count

__all__ = ["PATTERNS", "Shrunk", "introduction", "show_table", "shrink", "write_random_model"]

PATTERNS = {
    "50%": "the smaller half",
    "2:4": "two in every four",
    "75%/4x1": "whole blocks of four",
    "90%": "nine in ten",
}
"""What each of them prunes."""


def introduction() -> str:
    """The bit mask on eight weights."""
    s = ops.pack(np.array([0, 7, 0, 0, 0, 0, 0, 56.3], dtype=np.float32))
    printed = "".join("01"[bit] for bit in s.mask.to_bool().astype(int))
    values = ", ".join(str(value) for value in s.values)
    mask = f"mask {printed} in reading order, stored as the byte {s.bitmask[0, 0]:#04x}"
    return f"{{0, 7, 0, 0, 0, 0, 0, 56.3}}\n  {mask}; values {values}"


def write_random_model(path: Path, layers: int, width: int) -> None:
    """A file with the linear layers of a small transformer: normal weights, float32, the same each time."""
    rng = np.random.default_rng(0)
    shapes = {
        "self_attn.qkv_proj": (3 * width, width),
        "self_attn.o_proj": (width, width),
        "mlp.up_proj": (4 * width, width),
        "mlp.down_proj": (width, 4 * width),
    }
    scale = np.float32(width**-0.5)
    weights = {
        f"model.layers.{layer}.{name}.weight": rng.standard_normal(shape, np.float32) * scale
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    checkpoint.save(weights, path)


@dataclass(frozen=True)
class Shrunk:
    """A file before and after: its bytes, the share of energy that is kept, and seconds."""

    before: int
    after: int
    energy: float
    seconds: float

    @property
    def sizes(self) -> str:
        """Both sizes in words."""
        return f"{byte_count(self.before)} → {byte_count(self.after)}"


def shrink(source: Path, target: Path, pattern: str | checkpoint.Recipe) -> Shrunk:
    """Packs a file, and checks every bit of the result against it.

    Raises
    ------
    FormatError
        If the result is not what the pattern makes of the source.
    """
    started = time.perf_counter()
    checkpoint.compress(source, target, pattern, overwrite=True)
    seconds = time.perf_counter() - started
    report = checkpoint.verify(target, source)
    kept = [(tensor.elements, tensor.kept_energy) for tensor in report.tensors if tensor.kept_energy is not None]
    energy = sum(size * share for size, share in kept) / max(sum(size for size, _ in kept), 1)
    return Shrunk(source.stat().st_size, target.stat().st_size, energy, seconds)


def show_table(headings: list[str], rows: list[list[str]]) -> None:
    """Prints a table; what has a number in its first row is aligned to the right."""
    columns = [Column(heading, right=at > 0 and rows[0][at][:1].isdigit()) for at, heading in enumerate(headings)]
    print("\n".join(table(columns, rows, [None] * len(rows), None)))
