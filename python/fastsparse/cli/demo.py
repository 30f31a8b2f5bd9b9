"""`fastsparse demo`."""

from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["demo"]

_NEXT = """Next:
  fastsparse compress model.safetensors small.safetensors --pattern 50%
  fastsparse inspect small.safetensors
  fastsparse verify small.safetensors --against model.safetensors
  fastsparse bench
  fastsparse -h"""


def demo() -> None:
    """Show on random weights what packing does.

    Sizes, what is lost, and speed. It takes seconds, writes to a temporary folder only and needs no network.
    """
    from fastsparse import checkpoint  # with what it needs, nothing that --help does
    from fastsparse.cli import _measure
    from fastsparse.cli._showcase import PATTERNS, introduction, show_table, shrink, write_random_model

    print("Eight weights, as a bit mask and what is left:\n")
    print(introduction())
    with TemporaryDirectory(prefix="fastsparse-demo-") as work:
        source, target = Path(work) / "model.safetensors", Path(work) / "small.safetensors"
        write_random_model(source, layers=4, width=512)
        print("\nA model of four layers, 512 wide, with RANDOM weights. Every bit is verified:\n")
        rows = []
        for pattern, meaning in PATTERNS.items():
            done = shrink(source, target, pattern)
            rows.append([pattern, meaning, done.sizes, f"{done.energy:.1%}", f"{done.seconds:.2f} s"])
        show_table(["pattern", "what is pruned", "file", "kept energy", "time"], rows)
        name = "model.layers.3.mlp.up_proj.weight"
        with checkpoint.open(target) as weights:
            print(f"\n{name}:\n  {weights[name]!r}")
    print("\nOne layer computed from the packed weights, beside dense ones:\n")
    print(_measure.measure((2048, 2048), "float32", [1], [0.5, 0.9], seconds=1, dense_bytes=128 << 20))
    print(f"\n{_NEXT}")
