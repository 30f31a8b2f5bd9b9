"""`fastsparse inspect`."""

from fastsparse import checkpoint
from fastsparse.cli._options import Json, Packed, TrustShards
from fastsparse.cli._table import show

__all__ = ["inspect"]


def inspect(path: Packed, trust_shards: TrustShards = False, as_json: Json = False) -> None:
    """Show what a checkpoint holds, from its header."""
    show(checkpoint.inspect(path, trust_shards=trust_shards), as_json)
