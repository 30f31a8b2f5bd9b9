"""`fastsparse inspect`."""

from fastsparse import checkpoint
from fastsparse.cli._options import Json, Packed
from fastsparse.cli._table import show

__all__ = ["inspect"]


def inspect(path: Packed, as_json: Json = False) -> None:
    """Show what a checkpoint holds, from its header."""
    show(checkpoint.inspect(path), as_json)
