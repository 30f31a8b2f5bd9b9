"""The sparse layouts of compressed-tensors 0.3 to 0.14.0.1, which no maintained package reads or writes any more.

Arrays go in and out here; `fastsparse.checkpoint` opens whole files and model folders in these layouts, and `convert`
turns them into each other. `docs/interop.md` says what is supported. Nothing of that package is imported, and nothing
that a config names is.
"""

from fastsparse.checkpoint._bitmask_layouts import from_sparse24, from_sparse_bitmask, to_sparse24, to_sparse_bitmask
from fastsparse.checkpoint._convert import convert

__all__ = ["convert", "from_sparse24", "from_sparse_bitmask", "to_sparse24", "to_sparse_bitmask"]
